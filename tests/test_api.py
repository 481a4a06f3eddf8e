"""Runs from Python have the directories and numbers of the command, and leave nothing behind in the process."""

import csv
import gc
import json
import logging
import random
import re
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import fedprox
from fedprox import RunStopped, UserError, held
from fedprox.data.federated import FederatedData, LabelledData
from fedprox.data.sources.digits import digits
from fedprox.main import main

QUICK = {"num_rounds": 2, "num_epochs": 1, "clients_per_round": 3}
DIGITS = {"dataset": "digits", "num_clients": 20, "partition": "dirichlet"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedprox.api.draw_curves", lambda _: None)  # drawing takes longer than a small run


def rows(run_dir: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (run_dir / name).open() as file:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(file)]


X = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + 2 * (X[:, 1] > 0)


class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=8):
        super().__init__(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))


def of_a_notebook() -> dict[str, object]:
    """Return a model and a loss that no other process can import."""

    class MyNet(Net):
        pass

    def my_loss(outputs, labels):
        return functional.cross_entropy(outputs, labels, label_smoothing=0.1)

    return {"model": MyNet, "loss": my_loss}


def test_importing_the_package_takes_no_torch_and_its_names_are_there():
    code = "import sys, fedprox; print({'torch', 'hydra', 'numpy'} & set(sys.modules), sorted(fedprox.__all__))"
    code += "; print(all(name in dir(fedprox) for name in fedprox.__all__), fedprox.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, complete = done.stdout.splitlines()
    names = ["Comparison", "Run", "RunStopped", "UserError", "__version__", "compare", "load_model", "load_run", "run"]
    assert loaded == f"set() {names}"
    assert complete.startswith("True ")
    assert [hasattr(fedprox, name) for name in (*names, "misspelt")] == [True] * len(names) + [False]


# The same as the command


def test_a_run_has_the_files_of_the_command_to_the_byte(in_this_process, tmp_path):
    words = ["dataset=digits", "num_clients=20", "partition=dirichlet", "mu=0.1", "num_rounds=3", "engine=local"]
    assert in_this_process(main, [*words, "hydra.run.dir=run"]).status == 0
    (tmp_path / "run").rename(tmp_path / "commanded")
    run = fedprox.run(dataset="digits", num_clients=20, partition="dirichlet", mu=0.1, num_rounds=3, directory="run")
    one, other = tmp_path / "commanded", run.directory
    hydras = (f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides"))
    for name in ("model.safetensors", "MODEL.md", "clients.csv", *hydras):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert rows(one) == rows(other)
    told = {"timings", "peak_memory_bytes", "command", "result"}
    first, second = (json.loads((each / "run.json").read_text()) for each in (one, other))
    assert {key: value for key, value in first.items() if key not in told} == {
        key: value for key, value in second.items() if key not in told
    }
    assert second["command"][:2] == ["fedprox.run", "dataset=digits"]
    files = {str(file.relative_to(one)) for file in one.rglob("*")} - {"curves.png"}
    assert files == {str(file.relative_to(other)) for file in other.rglob("*")}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_round": 3},
        {"mu": -1},
        {"mu": "much"},
        {"dataset": "digit"},
        {"num_clients": 2},
        {"partition": "iid,x"},
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_in_the_line_of_the_command(fedprox, tmp_path, wrong):
    with pytest.raises(UserError) as error:
        sys.modules["fedprox"].run({"dataset": "digits", **wrong})
    words = [f"{name}='{value}'" if "," in str(value) else f"{name}={value}" for name, value in wrong.items()]
    ended = fedprox("dataset=digits", *words, "engine=local")
    assert (ended.status, ended.err.strip()) == (2, f"error: {error.value}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_asked_for_in_python_is_there(tmp_path):
    run = fedprox.run(dataset="digits", num_clients=20, partition="dirichlet", mu=0.1, num_rounds=20)
    assert isinstance(run.metrics, pd.DataFrame)
    assert run.metrics["round"].tolist() == list(range(21))
    assert len(run.clients) == 20 * 10  # ten clients in each round
    assert run.clients["counted"].all()  # FedProx keeps the work of stragglers
    assert run.settings["mu"] == 0.1
    assert run.directory.parent.parent == tmp_path / "outputs"  # where the command puts a run
    source = digits()
    accuracy = (run.predict(source.test_features) == source.test_labels).mean()
    assert accuracy == run.metrics["test_accuracy"].iloc[-1]  # so features are normalised as in training
    logits = run.model(torch.from_numpy(source.test_features))
    loss = functional.cross_entropy(logits.double(), torch.from_numpy(source.test_labels))
    assert loss.item() == pytest.approx(run.metrics["test_loss"].iloc[-1], rel=1e-6)
    assert not run.model.training
    assert [len(axes.lines) > 0 for axes in run.plot().axes] == [True, True]
    assert "FedProx (mu = 0.1) on digits: finished" in repr(run)


# One's own data, model and loss


def test_own_data_model_and_loss_are_used_and_named_as_this_process_own():
    my_loss, MyNet = of_a_notebook()["loss"], of_a_notebook()["model"]  # noqa: N806
    run = fedprox.run({"partition.alpha": 0.1}, data=(X, Y), model=MyNet, loss=my_loss, num_rounds=8)
    names = {group: run.settings[group]["_target_"] for group in ("dataset", "model", "loss")}
    assert names == {"dataset": "fedprox.held.data", "model": "fedprox.held.MyNet", "loss": "fedprox.held.my_loss"}
    assert (run.settings["partition"]["alpha"], run.settings["num_clients"]) == (0.1, 10)
    assert (run.predict(X) == Y).mean() > 0.6  # of four classes
    with pytest.raises(UserError, match="MyNet, which existed only in the Python process that trained it"):
        fedprox.load_model(run.directory)
    assert np.array_equal(fedprox.load_model(run.directory, model=MyNet).predict(X), run.predict(X))


def test_an_importable_class_is_named_so_that_any_process_can_make_it():
    run = fedprox.run(data=(X, Y), model={"_target_": Net, "width": 4}, **QUICK)
    assert run.settings["model"] == {"_target_": f"{__name__}.Net", "init": "default", "width": 4}
    assert run.model.network[0].out_features == 4
    with pytest.raises(UserError, match="may not decide what is called; if you trust it, import and give it"):
        fedprox.load_run(run.directory).model  # noqa: B018  # the record may be a stranger's
    assert fedprox.load_model(run.directory, model=Net).network[0].out_features == 4


def labelled() -> LabelledData:
    return LabelledData.without_test_set(X, Y, num_classes=4)


FORMS = {
    "arrays": ((X, Y), 10),
    "tensors": ((torch.from_numpy(X), torch.from_numpy(Y)), 10),
    "client ids": ((X, Y, np.array(["b", "a", "c"])[np.arange(300) % 3]), 3),
    "a mapping": ({"north": (X[:100], Y[:100]), "south": (X[100:], Y[100:])}, 2),
    "LabelledData": (labelled(), 10),
    "a function": (labelled, 10),
    "FederatedData": (FederatedData(labelled(), [range(100), range(100, 290)], [range(290, 300), []]), 2),
}


@pytest.mark.parametrize(("data", "num_clients"), FORMS.values(), ids=FORMS)
def test_data_have_many_forms(data, num_clients):
    more = {"partition": "iid", "num_clients": 10} if callable(data) else {}
    run = fedprox.run(data=data, num_rounds=2, num_epochs=1, **more)
    assert run.record["data"].startswith(f"{num_clients} clients with ")
    assert len(run.clients) == 2 * num_clients  # all take part


def test_clients_of_ones_own_keep_their_examples():
    # a holds 0, b holds 1: with one class each, a client that trains alone predicts only its own class.
    data = {"a": (X[Y == 0], Y[Y == 0] * 0), "b": (X[Y == 1], Y[Y == 1])}
    run = fedprox.run(data=data, evaluation={"per_client": True}, personalisation="local", num_rounds=1)
    assert run.metrics["personal_accuracy"].iloc[-1] == 1.0
    assert run.clients["num_examples"].tolist() == [int(0.9 * (k == Y).sum()) for k in run.clients["client"]]


def test_labels_with_fractions_and_several_labels_are_taken_by_their_losses():
    zeros = {"model.init": "zeros", "mu": 0, "weight_decay": 0, "learning_rate": 0.1, "num_rounds": 6}
    run = fedprox.run(zeros, data=(X, 2 * X[:, 0] - X[:, 1]), loss="mse", model=nn.Linear(5, 1))
    assert np.allclose(run.predict(X)[:, 0], 2 * X[:, 0] - X[:, 1], atol=0.1)  # the labels are linear
    both = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    run = fedprox.run(zeros, data=(X, both), loss="bce", model=nn.Linear(5, 2))
    assert (run.predict(X) == both).mean() > 0.9  # and separable


BAD_DATA = {
    "too few labels": ((X, Y[:3]), r"labels must have as many rows as features, got shapes \(3,\) and \(300, 5\)"),
    "no labels": (X, r"data must be \(x, y\), .* got a ndarray; see docs/python.md"),
    "unequal clients": ({"a": (X, Y), "b": (X[:, :2], Y)}, r"client 'b': features must have the shape of the first"),
    "a client without data": ({"a": (X, Y), "b": (X[:0], Y[:0])}, "client 'b' has no example; leave it out of data"),
    "no client": ({}, "got a mapping without clients"),
    "too few ids": ((X, Y, [1, 2]), "clients must have one id for each of 300 examples"),
    "missing values": ((X * np.nan, Y), "features must be finite in float32, got nan in row 0"),
    "text labels": ((X, ["u"] * 300), "labels must be numbers, got 'u'"),
    "labels with fractions": ((X, Y + 0.5), "loss=CrossEntropy is for classification, but .* use loss=mse"),
    "a name": ("digits", "to choose by name, give dataset='digits'"),
}


@pytest.mark.parametrize(("data", "line"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_refused_in_one_line_and_leave_nothing(tmp_path, data, line):
    with pytest.raises(UserError, match=line) as error:
        fedprox.run(data=data, num_rounds=1)
    assert "\n" not in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


REFUSED = {
    "of the command": ({"hydra.run.dir": "x"}, "hydra.run.dir is for the command; from Python give directory="),
    "twice": ({"data": (X, Y), "dataset": "digits"}, "data and dataset were both given"),
    "other processes": ({"data": (X, Y), "engine": "ray"}, "cannot import data; import it from a module, or use"),
    "a federation": ({"engine": "deployment"}, "engine=deployment runs on a federation, from the command line alone"),
    "an object": ({"mu": object()}, "mu must be a number, a text, .* got a object"),
    "a directory and resume": ({"directory": "x", "resume": "y"}, "directory=x means nothing with resume="),
    "clients and a partition": ({"data": {1: (X, Y)}, "partition": "iid"}, "partition means nothing with data that"),
    "a model that is none": ({"dataset": "digits", "model": 3}, "must return Module, got int"),
}


@pytest.mark.parametrize(("given", "line"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_from_python_is_refused(given, line):
    directory = {"directory": given["directory"]} if "directory" in given else {}
    with pytest.raises(UserError, match=line):
        fedprox.run(
            {name: value for name, value in given.items() if name not in ("data", "directory")},
            data=given.get("data"),
            **directory,
        )


# The process


def test_a_run_prints_nothing_and_leaves_the_process_as_it_was(capfd):
    def state():
        log = logging.getLogger("fedprox")
        return (
            *(GlobalHydra().hydra, HydraConfig().cfg, JobRuntime().get("name"), torch.get_num_threads()),
            *(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
            *(log.level, log.propagate, list(log.handlers), list(logging.getLogger().handlers), dict(held._held)),
        )

    with hydra.initialize_config_dir(str(Path.cwd()), job_name="another program", version_base="1.2"):
        before = state()
        run = fedprox.run(**DIGITS, **QUICK, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        assert state() == before
    assert capfd.readouterr() == ("", "")
    assert "round 2/2: accuracy" in (run.directory / "main.log").read_text()


def test_runs_in_threads_give_the_numbers_of_runs_one_after_another():
    found = {}

    def compute(mu):
        found[mu] = fedprox.run(**DIGITS, **QUICK, mu=mu, directory=f"thread_{mu}")

    threads = [threading.Thread(target=compute, args=(mu,)) for mu in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mu in (0, 1):
        again = fedprox.run(**DIGITS, **QUICK, mu=mu, directory=f"alone_{mu}")
        assert rows(again.directory) == rows(found[mu].directory)


def test_data_are_freed_and_never_taken_for_those_of_another_run():
    first = labelled()
    gone = weakref.ref(first)
    one = fedprox.run(data=first, **QUICK)
    del first
    gc.collect()
    assert gone() is None
    other = fedprox.run(data=(X, (Y + 1) % 4), **QUICK)
    assert one.record["fingerprint"]["data"] != other.record["fingerprint"]["data"]


def test_runs_of_one_second_have_directories_of_their_own(tmp_path):
    from fedprox.api import _made

    names = []
    for _ in range(3):
        with _made(tmp_path / "12-00-00", is_new=True) as made:
            names.append(made.name)
    assert names == ["12-00-00", "12-00-00_1", "12-00-00_2"]


def test_an_exit_in_the_users_model_is_an_error_and_ends_no_process():
    class Exits(Net):
        def forward(self, x):
            if self.training and len(x) == 10:  # the checks have three examples
                sys.exit(3)
            return super().forward(x)

    with pytest.raises(RunStopped, match=r"sys.exit\(3\)"):
        fedprox.run(data=(X, Y), model=Exits, on_client_error="stop", num_rounds=2)


# Resuming and comparing


def stopped_after(monkeypatch, round_num):
    from fedprox.runs import progress

    def until(rounds, *_):
        for outcome in rounds:
            yield outcome
            if outcome.round_num == round_num:
                raise KeyboardInterrupt

    return monkeypatch.setattr(progress, "with_quiet_progress", until)


def test_an_interrupted_run_of_ones_own_is_resumed_from_python_alone_and_becomes_the_uninterrupted_one(
    fedprox, monkeypatch, tmp_path
):
    run = sys.modules["fedprox"].run
    own = {"data": (X, Y), **of_a_notebook()}
    more = {"num_rounds": 4, "num_epochs": 1, "checkpoint": {"every": 1}}
    whole = run(more, **own, directory="whole")
    with monkeypatch.context() as patched:
        stopped_after(patched, 2)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            run(more, **own, directory="cut")
    assert interrupt.value.__notes__ == [
        f"what was measured is kept; continue with fedprox.run(resume={str(tmp_path / 'cut')!r})"
    ]
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    ended = fedprox("resume=cut")
    assert ended.status == 2
    assert ended.err == (
        "error: resume=cut has my_loss, data, MyNet, which existed only in the Python process that made that run; "
        "continue it from Python: fedprox.run(resume=..., loss=..., data=..., model=...)\n"
    )
    with pytest.raises(UserError, match="had other data: the examples are not the same"):
        run(resume="cut", **{**own, "data": (X, (Y + 1) % 4)})
    cut = run(resume="cut", **own)
    assert rows(cut.directory) == rows(whole.directory)
    assert rows(cut.directory, "clients.csv") == rows(whole.directory, "clients.csv")
    for name in ("model.safetensors", "MODEL.md"):
        assert (cut.directory / name).read_bytes() == (whole.directory / name).read_bytes()


def test_a_comparison_has_the_means_over_paired_repetitions():
    common = {"dataset": "digits", "num_rounds": 12, "num_epochs": 2}
    comparison = fedprox.compare({"FedAvg": {"strategy": "fedavg"}, "FedProx": {"mu": 0.1}}, repetitions=3, **common)
    assert comparison.table.index.tolist() == ["FedAvg", "FedProx"]
    assert comparison.table["runs"].tolist() == [3, 3]
    for label, runs in comparison.runs.items():
        last = [run.metrics["test_accuracy"].tail(10).mean() for run in runs]
        row = comparison.table.loc[label]
        assert row["test_accuracy_mean"] == pytest.approx(np.mean(last))
        assert row["test_accuracy_std"] == pytest.approx(np.std(last, ddof=1))
    for one, other in zip(*comparison.runs.values(), strict=True):
        assert one.clients["client"].tolist() == other.clients["client"].tolist()  # the same cohorts
    cohorts = [run.clients["client"].tolist() for run in comparison.runs["FedProx"]]
    assert cohorts[0] != cohorts[1] != cohorts[2]
    names = [text.get_text() for text in comparison.plot().legends[0].get_texts()]
    assert names == ["FedAvg", "FedProx"]


def test_a_comparison_keeps_what_is_finished_continues_the_rest_and_replaces_nothing(monkeypatch):
    def compared(**more):
        return fedprox.compare({"A": {"mu": 0}, "B": {"mu": 1}}, directory="ours", **DIGITS, **{**QUICK, **more})

    with monkeypatch.context() as patched:
        stopped_after(patched, 2)  # after the last round of A, before its end
        with pytest.raises(KeyboardInterrupt):
            compared()
    assert sorted(path.parent.parent.name for path in Path("ours").rglob("run.json")) == ["A"]
    first = compared()
    written = {path: path.stat().st_mtime_ns for path in Path("ours").rglob("metrics.csv")}
    assert len(written) == 2
    again = compared()
    assert {path: path.stat().st_mtime_ns for path in Path("ours").rglob("metrics.csv")} == written
    assert again.table.equals(first.table)
    with pytest.raises(UserError, match=r"holds a run with other settings: this job has num_rounds=3 \(was 2\); name"):
        compared(num_rounds=3)


BAD_COMPARISONS = {
    "a typo in the second": (({"A": {}, "B": {"num_round": 2}},), {}, "unknown setting 'num_round'"),
    "a strategy that needs more": (({"A": {}, "B": {"strategy": "krum", "mu": -1}},), {}, "mu must be finite"),
    "nothing": (({},), {}, "algorithms must be a mapping from label to settings"),
    "no settings": (({"A": 3},), {}, "got 3 for 'A'; give it a mapping"),
    "no repetition": (({"A": {}},), {"repetitions": 0}, "repetitions must be an integer >= 1, got 0"),
}


@pytest.mark.parametrize(("given", "more", "line"), BAD_COMPARISONS.values(), ids=BAD_COMPARISONS)
def test_a_comparison_is_checked_before_its_first_run(tmp_path, given, more, line):
    with pytest.raises(UserError, match=line):
        fedprox.compare(*given, **more, dataset="digits", num_rounds=1)
    assert list(tmp_path.rglob("run.json")) == []


def test_labels_that_are_no_names_of_folders_get_different_ones():
    from fedprox.api import _folders

    assert _folders(["mu = 0.1", "a/b", "a:b", "..", "a_b"]) == ["mu = 0.1", "a_b", "a_b_1", "_", "a_b_2"]


# Models of earlier runs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the directory of a run."""
    return fedprox.run(**DIGITS, **QUICK, model="mlp", directory=tmp_path_factory.mktemp("made") / "digits").directory


@pytest.fixture
def earlier(made):
    """Return a run of which this process knows nothing but the directory, runs/digits."""
    return Path(shutil.copytree(made, "runs/digits"))


def test_runs_and_models_are_loaded_from_their_directory_or_file(earlier):
    run, model = fedprox.load_run("runs/digits"), fedprox.load_model("runs/digits")
    features = digits().test_features
    assert np.array_equal(run.predict(features), model.predict(features))
    assert np.array_equal(fedprox.load_model(earlier / "model.safetensors").predict(features), run.predict(features))
    with pytest.raises(UserError, match=r"examples must have shape \(n, 8, 8\), got \(8, 8\); give one example as"):
        model.predict(features[0])


def test_a_model_of_an_earlier_version_is_loaded_with_its_data(earlier):
    features = digits().test_features
    expected = fedprox.load_model(earlier).predict(features)
    save_file(load_file(earlier / "model.safetensors"), earlier / "model.safetensors")  # as they were written then
    assert np.array_equal(fedprox.load_model(earlier).predict(features), expected)
    (earlier / "run.json").unlink()
    with pytest.raises(UserError, match=r"does not describe its model, and run.json is not beside it"):
        fedprox.load_model(earlier)


def described(file: Path, **changes: object) -> None:
    """Change what a model file says about its model."""
    from fedprox.runs.model_file import read_facts

    facts = read_facts(file).model_dump(by_alias=True) | changes
    save_file(load_file(file), file, metadata={"fedprox": json.dumps(facts)})


STRANGE = {
    "a function of another package": ({"model": {"_target_": "os.system", "command": "touch x"}}, "names 'os.system'"),
    "a function that no file of conf names": (
        {"model": {"_target_": "fedprox.seeds.generator"}},
        "may not decide what",
    ),
    "a file": ({"model": {"_target_": "fedprox.models.mlp.mlp", "path": "/etc/passwd"}}, "may not decide what is read"),
    "another model": (
        {"model": {"_target_": "fedprox.models.logistic.logistic"}},
        "does not hold this model's",
    ),
    "no number of classes": ({"num_classes": 0}, "num_classes: Input should be greater than or equal to 1"),
    "a std of 0": ({"std": 0.0}, "std above 0"),
    "a mean of another shape": ({"mean": [1.0, 2.0, 3.0]}, "could not be broadcast"),
}


@pytest.mark.parametrize(("changes", "line"), STRANGE.values(), ids=STRANGE)
def test_a_file_decides_neither_what_is_called_nor_what_is_read(earlier, changes, line):
    described(earlier / "model.safetensors", **changes)
    with pytest.raises(UserError, match=line):
        fedprox.load_model(earlier)
    assert not Path("x").exists()


def test_what_is_not_there_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a run directory: run.json is missing"):
        fedprox.load_run("nowhere")
    with pytest.raises(UserError, match="nowhere does not exist; name a finished run's directory"):
        fedprox.load_model("nowhere")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"x.safetensors cannot be used"):
        fedprox.load_model("x.safetensors")


def test_the_page_of_examples_is_right():
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, object] = {"__name__": "__main__"}  # as in a notebook: its classes cannot be imported
    for block in blocks:
        exec(block.replace("num_rounds=20", "num_rounds=2").replace("repetitions=5", "repetitions=1"), names)
    assert names["run"].settings["model"]["_target_"] == "fedprox.held.MyNet"
