"""All engines give the same results."""

import csv
from pathlib import Path

import pytest
import ray

from fedprox.engines import ray as ray_engine
from fedprox.experiment import run as experiment
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


def run(engine: str, strategy: str, folder: Path, **changes) -> Path:
    folder.mkdir()
    chosen = {"strategy": {"_target_": f"fedprox.strategies.fedprox.{strategy}"}, "engine": ENGINES[engine]}
    experiment.run(config_of(*SETTINGS, **chosen, **changes), folder)
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


@pytest.mark.parametrize("strategy", ["FedProx", "FedAvgWithStragglerDrop", "FedDane"])
def test_local_and_ray_give_the_same_metrics_and_clients(strategy, tmp_path):
    local, on_ray = (run(engine, strategy, tmp_path / engine) for engine in ENGINES)
    # Both run the same solver on one thread; 1e-6 leaves room for a float32 rounding on other processors.
    assert_agree(local, on_ray, 1e-6)
    assert rows(local / "clients.csv") == rows(on_ray / "clients.csv")
    one = rows(local / "metrics.csv")
    # Something happened: the model moved in each round, and the two strategies count 6 and 3 of 6 clients.
    assert len({row["test_loss"] for row in one}) == 6
    counted = {"FedProx": "6", "FedAvgWithStragglerDrop": "3", "FedDane": "6"}[strategy]
    assert {row["num_clients_counted"] for row in one[1:]} == {counted}
    assert all(float(row["gamma_max"]) >= float(row["gamma_mean"]) > 0 for row in one[1:])


def test_the_fastest_solver_gives_the_reference_solvers_run(tmp_path):
    fast, reference = (run("local", "FedProx", tmp_path / name, solver=name) for name in ("auto", "reference"))
    # Five rounds of up to 50 steps, rounded to float32 in another order; the accuracies may differ by no example.
    assert_agree(fast, reference, 1e-4)
    assert [row["test_accuracy"] for row in rows(fast / "metrics.csv")] == [
        row["test_accuracy"] for row in rows(reference / "metrics.csv")
    ]
