"""All engines give the same results. Whole runs on Ray are in this file, which starts it once."""

import csv
import json
from pathlib import Path

import pytest
import ray

from fedprox.engines import ray as ray_engine
from fedprox.experiment import run as experiment
from tests.data.sources.site_folders import write_sites
from tests.experiment.test_script_runs import COMMAND, SCRIPT, content
from tests.faults.compared import differences
from tests.settings import config_of

ENGINES = {
    "local": {"_target_": "fedprox.engines.local.local_grid"},
    "ray": {
        "_target_": "fedprox.engines.ray.RayGrid",
        "num_cpus": 1,
        "num_gpus": 0.0,
        "max_actors": 6,
        "address": None,
    },
}
SETTINGS = (
    *("dataset=digits", "protocol=paper", "evaluation=clients", "num_clients=20", "clients_per_round=6"),
    *("num_epochs=3", "num_rounds=5", "stragglers_fraction=0.5", "mu=0.7", "weight_decay=0.001", "seed=3"),
)


@pytest.fixture(autouse=True, scope="module")
def _ray_ends_with_this_module():
    yield
    ray.shutdown()
    ray_engine._pools.clear()
    ray_engine._shared.clear()


FOCAL = ("loss=focal", "optimizer=adam", "max_grad_norm=1.0", "learning_rate=0.003", "metrics=classification")
AUTHORS = ("protocol=authors", "dataset=synthetic_1_1", "num_clients=30", "model.init=zeros", "weight_decay=0")
FAILS = """
from pathlib import Path
from flwr.serverapp.strategy import FedAdam

class Fails(FedAdam):
    def configure_train(self, server_round, arrays, config, grid):
        if server_round == 12 and not Path("fixed").exists():
            raise RuntimeError("failed")
        return super().configure_train(server_round, arrays, config, grid)
"""


def run(engine: str, strategy: str, folder: Path, *more: str, **changes) -> Path:
    folder.mkdir()
    module = "corrected" if strategy == "Scaffold" else "fedprox"
    chosen = {"strategy": {"_target_": f"fedprox.strategies.{module}.{strategy}"}, "engine": ENGINES[engine]}
    experiment.run(config_of(*SETTINGS, *more, **chosen, **changes), folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_agree(folder: Path, other_folder: Path, tolerance: float) -> None:
    """Compare every number of metrics.csv but the time."""
    one, other = rows(folder / "metrics.csv"), rows(other_folder / "metrics.csv")
    assert [row["round"] for row in one] == ["0", "1", "2", "3", "4", "5"]
    assert len(other) == 6
    for row, same in zip(one, other, strict=True):
        assert row.keys() == same.keys()
        for name in row.keys() - {"time_s"}:
            if row[name] == "":
                assert same[name] == ""
            else:
                assert float(same[name]) == pytest.approx(float(row[name]), rel=tolerance), (row["round"], name)


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        *(("FedProx", ()), ("FedAvgWithStragglerDrop", ()), ("FedDane", ()), ("Scaffold", ())),
        *(("FedProx", AUTHORS), ("FedProx", FOCAL)),
    ],
    ids=["FedProx", "FedAvg", "FedDANE", "SCAFFOLD", "protocol=authors", "focal loss by Adam"],
)
def test_local_and_ray_give_the_same_metrics_and_clients(strategy, more, tmp_path):
    local, on_ray = (run(engine, strategy, tmp_path / engine, *more) for engine in ENGINES)
    # Both run the same solver on one thread; 1e-6 leaves room for a float32 rounding on other processors.
    assert_agree(local, on_ray, 1e-6)
    assert rows(local / "clients.csv") == rows(on_ray / "clients.csv")
    one = rows(local / "metrics.csv")
    # Something happened: the model moved in each round, and the strategies count 6 and 3 of 6 clients.
    assert len({row["test_loss"] for row in one}) == 6
    counted = "3" if strategy == "FedAvgWithStragglerDrop" else "6"
    assert {row["num_clients_counted"] for row in one[1:]} == {counted}
    assert all(float(row["gamma_max"]) >= float(row["gamma_mean"]) > 0 for row in one[1:])


@pytest.mark.parametrize("model", ["logistic", "cnn"])
def test_local_and_ray_write_the_same_bytes_on_sites(fedprox, tmp_path, monkeypatch, model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_sites(tmp_path / "sites", "image_folder")
    on_sites = ("dataset=sites", "dataset.format=image_folder", "dataset.path=sites", "dataset.size=28")
    more = ("num_rounds=2", "num_epochs=2", "evaluation.per_client=true", "client_resources.num_cpus=1")
    for engine in ENGINES:
        ended = fedprox(*on_sites, f"model={model}", *more, f"engine={engine}", f"hydra.run.dir={engine}")
        assert ended.status == 0, ended.err
    assert differences(tmp_path / "ray", tmp_path / "local") == []


def test_jobs_that_fail_on_one_engine_and_are_resumed_on_another_equal_undisturbed_ones(fedprox, tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text(FAILS)
    monkeypatch.syspath_prepend(tmp_path)
    small = ("dataset=digits", "clients_per_round=2", "num_epochs=2", "client_resources.num_cpus=1")
    sweep = ("--multirun", *small, "num_rounds=14", "mu=0,1", "strategy._target_=fails.Fails")
    begun = {"local": "ray", "ray": "local"}
    for engine in begun:
        assert fedprox(*sweep, f"engine={engine}", f"hydra.sweep.dir={engine}").status == 1
    (tmp_path / "fixed").touch()
    assert fedprox(*sweep, "engine=local", "hydra.sweep.dir=undisturbed").status == 0
    for engine, other in begun.items():  # another place to compute is the same sweep
        ended = fedprox(*sweep, f"engine={other}", f"hydra.sweep.dir={engine}")
        assert ended.status == 0, ended.err
        for job in "01":
            resumed = json.loads((tmp_path / engine / job / "run.json").read_text())["resumed"]
            assert [each["after_round"] for each in resumed] == [11]
            assert differences(tmp_path / engine / job, tmp_path / "undisturbed" / job) == []


def test_scripts_in_one_and_several_processes_on_ray_and_resumed_give_the_same_bytes(fedprox, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)

    def contents(*more: str, name: str) -> tuple:
        ended = fedprox(*COMMAND, "client_resources.num_cpus=1", *more, f"hydra.run.dir={name}")
        assert ended.status == 0, ended.err
        return content(tmp_path / name)

    expected = contents("engine=local", "num_rounds=3", "client.at_once=2", name="several")
    one = ("engine=local", "num_rounds=2", "client.at_once=1", "checkpoint.every=1")
    assert contents(*one, name="one") != expected
    same = ("client.script=train.py", "num_rounds=3")
    ended = fedprox("resume=one", *same, "client.at_once=2", "engine=local")
    assert ended.status == 0, ended.err
    assert content(tmp_path / "one") == expected
    assert contents("engine=ray", "num_rounds=3", name="ray") == expected


def test_the_fastest_solver_gives_the_reference_solvers_run(tmp_path):
    fast, reference = (run("local", "FedProx", tmp_path / name, solver=name) for name in ("auto", "reference"))
    # Five rounds of up to 50 steps, rounded to float32 in another order; the accuracies may differ by no example.
    assert_agree(fast, reference, 1e-4)
    assert [row["test_accuracy"] for row in rows(fast / "metrics.csv")] == [
        row["test_accuracy"] for row in rows(reference / "metrics.csv")
    ]
