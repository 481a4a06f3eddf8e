"""No work is lost: a refused command changes no file, and a new run leaves no old file beside its own."""

import csv
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from tests.faults.compared import differences

DIGITS = ("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=4", "num_epochs=2", "num_rounds=3")
OWN = """
import sys
import torch
from fedprox.data.sources.digits import digits
from fedprox.data.partitioners.iid import iid
from fedprox.models.logistic import logistic
from fedprox.federation.planned_strategy import FedProx

def exiting(code=0):
    sys.exit(code)

def parts(labels, num_clients, rng):
    sys.exit(3)

class Net(torch.nn.Module):
    def __init__(self, input_shape, num_classes, when=""):
        super().__init__()
        self.when, self.inner = when, logistic(input_shape, num_classes)
    def forward(self, x):
        if self.when == "training" and self.training and torch.is_grad_enabled():
            sys.exit(0)
        return self.inner(x)

class Strategy(FedProx):
    def __init__(self, when=""):
        super().__init__()
        self.when = when
    def configure_train(self, server_round, *others):
        if (self.when, server_round) == ("configure", 2):
            sys.exit(5)
        return super().configure_train(server_round, *others)

class Tool:
    def __init__(self, fails=True, when=""):
        self.fails, self.when = fails, when
        if when == "made":
            sys.exit(0)
    def begin(self, run_dir, facts, first_round):
        (run_dir / "mlflow_run_id").write_text("new")
        if self.fails:
            raise ConnectionError("no answer")
    def log(self, row):
        pass
    def end(self, status):
        pass
"""


@pytest.fixture
def command(fedprox, tmp_path, monkeypatch):
    """Return `fedprox`, with the module own_parts."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return fedprox


def everything(folder: Path) -> dict[str, bytes]:
    """Return what all files hold, Hydra's and main.log too, but for modules that Python compiled."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


TOOL = ("+logger.own._target_=own_parts.Tool",)
REFUSED = {
    "a value": ("mu=-1",),
    "a name": ("no_such=1",),
    "a choice": ("dataset=no_such",),
    "too many clients for the data": ("num_clients=141",),
    "a weight file": ("model.init=nowhere.safetensors",),
    "a logger that fails": TOOL,
    "a logger after another": ("+logger.first={_target_: own_parts.Tool, fails: false}", *TOOL),
    "a data set that exits": ("dataset._target_=own_parts.exiting",),
    "a model of the same directory": ("model.init=run/model.safetensors",),
    "a run that is itself": ("branch_from=run", "branch_round=2"),
    "a run that is itself by another name": ("branch_from=../{0}/./run", "branch_round=2"),
    "a run that is itself by a link": ("branch_from=link", "branch_round=2"),
    "a link to the run that it leaves": ("branch_from=run", "branch_round=2", "hydra.run.dir=link"),
    "a place within the run that it leaves": ("branch_from=run", "branch_round=2", "hydra.run.dir=run/checkpoint"),
    "a round that was not reached": ("branch_from=run", "branch_round=9", "hydra.run.dir=run2"),
    "rows that are not whole": ("branch_from=damaged", "branch_round=2"),
    "another model": ("branch_from=run", "branch_round=3", "model=cnn", "hydra.run.dir=run2"),
    "a round without a checkpoint": ("branch_from=run3", "branch_round=2", "hydra.run.dir=run2"),
    "a resumed run with another mu": ("resume=run", "mu=0"),
    "a resumed run of fewer rounds": ("resume=run", "num_rounds=2"),
    "a resumed run and a logger": ("resume=run", "num_rounds=5", *TOOL),
}


SAYS = {
    "a run that is itself": ("hydra.run.dir must be outside the directory of branch_from=run",),
    "a round that was not reached": ("branch_round must be at most 3", "got 9"),
    "a round without a checkpoint": ("branch_round=2 has no checkpoint in run3", "checkpoint.keep=null"),
    "another model": ("another model",),
    "a resumed run with another mu": ("would change the past", "mu=0.0 (was 1.0)", "leave that out", "branch_from="),
    "a resumed run of fewer rounds": ("num_rounds must be at least 3", "got 2"),
}


def test_a_refused_command_leaves_every_byte_of_an_existing_run(command, tmp_path):
    for name in ("run", "run2", "damaged"):
        assert command(*DIGITS, "checkpoint.every=1", f"hydra.run.dir={name}").status == 0
        (tmp_path / name / "mlflow_run_id").write_text("old")
    with (tmp_path / "damaged" / "clients.csv").open("a") as file:
        file.write("x\n")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert command(*DIGITS, "hydra.run.dir=run3").status == 0
    before = everything(tmp_path)
    for name, words in REFUSED.items():
        base = () if words[0].startswith(("branch_from", "resume")) else DIGITS
        ended = command(*base, *(word.replace("{0}", tmp_path.name) for word in words))
        assert (ended.status, ended.err.count("\n")) == (2, 1), (name, ended.err)
        assert [said for said in SAYS.get(name, ()) if said not in ended.err] == [], ended.err
        after = everything(tmp_path)
        assert [file for file in before | after if before.get(file) != after.get(file)] == [], name


@pytest.mark.parametrize("words", [("mu=-1",), TOOL, ("dataset._target_=own_parts.exiting",)])
def test_a_command_refused_in_a_new_directory_leaves_nothing(command, tmp_path, words):
    assert command(*DIGITS, *words, "hydra.run.dir=new/place").status == 2
    assert not (tmp_path / "new" / "place").exists()
    (tmp_path / "there").mkdir()
    assert command(*DIGITS, *words, "hydra.run.dir=there").status == 2
    assert (tmp_path / "there").exists()


def test_a_new_run_removes_the_files_of_the_old_one_and_no_others(command, tmp_path):
    kept = {"notes.txt", "checkpoint/mine", ".hydra/mine"}
    assert command(*DIGITS, "evaluation.per_class=true", "checkpoint.every=1").status == 0
    for name in kept:
        (tmp_path / "run" / name).write_text("mine")
    for name in ("mlflow_run_id", "metrics.csv.part"):
        (tmp_path / "run" / name).write_text("old")
    assert command(*DIGITS, "num_rounds=1", "checkpoint.every=null").status == 0
    ours = {"metrics.csv", "clients.csv", "run.json", "model.safetensors", "MODEL.md", "curves.png", "main.log"}
    hydras = {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
    assert set(everything(tmp_path / "run")) == kept | ours | hydras
    assert (tmp_path / "run" / "main.log").read_text().count("results:") == 1


def test_a_link_in_place_of_a_table_is_removed_and_not_followed(command, tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("metrics.csv", "run.json", "main.log", "model.safetensors.part", "checkpoint"):
        (tmp_path / "run" / name).symlink_to(precious if name != "checkpoint" else tmp_path)
    (tmp_path / "round_000001.safetensors").write_text("mine")
    assert command(*DIGITS).status == 0
    assert precious.read_text() == "mine"
    assert (tmp_path / "round_000001.safetensors").read_text() == "mine"
    assert not (tmp_path / "run" / "checkpoint").is_symlink()


def test_hydras_files_and_the_log_belong_to_the_run_and_a_resumed_run_appends(command, tmp_path):
    assert command(*DIGITS, "mu=0.5").status == 0
    assert "- mu=0.5" in (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    assert "mu: 0.5" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    first = (tmp_path / "run" / "main.log").read_text()
    assert command("resume=run", "num_rounds=4").status == 0
    assert (tmp_path / "run" / "main.log").read_text().startswith(first)
    assert (tmp_path / "run" / "main.log").read_text().count("results:") == 2


def test_a_branch_in_the_directory_of_an_old_run_replaces_it(command, tmp_path):
    assert command(*DIGITS, "hydra.run.dir=trunk").status == 0
    branch = ("branch_from=trunk", "branch_round=3", "mu=0", "num_rounds=4")
    assert command(*branch, "hydra.run.dir=whole").status == 0
    assert command(*DIGITS, "seed=3").status == 0
    assert command(*branch).status == 0
    assert differences(tmp_path / "run", tmp_path / "whole") == []


# Drawing.


def broken_drawing(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)  # as matplotlibrc may say, without LaTeX


@pytest.mark.draws_curves
def test_a_run_whose_curves_cannot_be_drawn_is_finished_with_one_warning(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        broken_drawing(patched)
        ended = command(*DIGITS)
    assert (ended.status, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if "WARNING" in line]
    assert "cannot draw curves.png; the other files are complete" in line
    assert record(tmp_path / "run")["status"] == "finished"
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "curves.png").exists()
    assert command("resume=run").status == 0  # finished already; the missing file is drawn
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_title_with_dollars_is_drawn_as_it_is(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from fedprox.report.curves import draw

    columns = ("round", "test_loss", "test_accuracy", "train_loss_cohort", "num_clients_counted")
    values = {name: np.array([0.0, 1.0]) for name in columns}
    FigureCanvasAgg(draw(values, r"image_folder:a$\frac{b$c")).print_png(tmp_path / "curves.png")


# sys.exit() in the user's code.

EXITS = {
    "a data set": (["dataset._target_=own_parts.exiting"], 2, "own_parts.py:10"),
    "a partition": (["partition=custom", "partition._target_=own_parts.parts"], 2, "sys.exit(3) (own_parts.py:13)"),
    "a strategy before a round": (
        ["strategy._target_=own_parts.Strategy", "+strategy.when=configure"],
        1,
        "sys.exit(5)",
    ),
    "a logger as it is made": (["+logger.own={_target_: own_parts.Tool, when: made}"], 2, "sys.exit(0)"),
    "a module as it is imported": (["dataset._target_=own_exit.rings"], 2, "own_exit.py:1"),
}


@pytest.mark.parametrize(("words", "status", "place"), EXITS.values(), ids=EXITS)
def test_an_exit_in_the_users_code_ends_the_run_like_an_error(command, tmp_path, words, status, place):
    (tmp_path / "own_exit.py").write_text("raise SystemExit(0)\n")
    ended = command(*DIGITS, *words)
    assert (ended.status, ended.err.count("\n")) == (status, 1), ended.err
    assert place in ended.err
    if status == 1:  # in round 2: what was measured is kept
        assert (record(tmp_path / "run")["status"], place in record(tmp_path / "run")["error"]) == ("failed", True)
        with (tmp_path / "run" / "metrics.csv").open() as lines:
            assert [row["round"] for row in csv.DictReader(lines)] == ["0", "1"]


def test_a_client_whose_model_exits_is_one_that_failed(command, tmp_path):
    ended = command(*DIGITS, "model._target_=own_parts.Net", "+model.when=training", "solver=reference")
    assert (ended.status in (1, 2), ended.err.count("\n")) == (True, 1), ended.err
    assert "sys.exit(0) (own_parts.py:" in ended.err


# Other data.

CHANGING = """
import json
from dataclasses import replace
from pathlib import Path
import numpy as np
from fedprox.data.sources.digits import digits
from fedprox.data.federated import ClientIndex, FederatedData

def changing(path="state.json"):
    state = json.loads(Path(path).read_text())
    data = digits()
    if state["data"]:
        data = replace(data, features=data.features[::-1].copy(), labels=data.labels[::-1].copy())
    own = [np.arange(k * 60, k * 60 + 60) for k in range(20)]
    if state["partition"]:
        own = own[::-1]
    return FederatedData(data, ClientIndex.from_lists(own), ClientIndex.from_lists([np.arange(0)] * 20))
"""


@pytest.fixture
def changing(command, tmp_path):
    """Return a function that changes the data."""
    from fedprox.experiment import data as data_assembly

    (tmp_path / "changing_data.py").write_text(CHANGING)

    def change(**state: bool) -> None:
        (tmp_path / "state.json").write_text(json.dumps({"data": False, "partition": False} | state))
        data_assembly._load.cache_clear()
        data_assembly._loaded.cache_clear()

    change()
    return change


NATURAL = ("dataset=custom", "dataset._target_=changing_data.changing", "partition=natural")


def test_a_run_is_resumed_or_branched_only_on_its_own_data(command, tmp_path, changing):
    again = "dataset._target_=changing_data.changing"
    assert command(*DIGITS[1:], *NATURAL).status == 0
    facts = record(tmp_path / "run")["fingerprint"]
    assert sorted(facts) == ["data", "partition"]
    before = everything(tmp_path / "run")
    for change, words in (({"data": True}, "the examples are not"), ({"partition": True}, "among clients is not")):
        changing(**change)
        for command_line in (("resume=run", "num_rounds=4"), ("branch_from=run", "branch_round=2", "hydra.run.dir=b")):
            ended = command(*command_line, again)
            assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
            assert "run had other data" in ended.err
            assert words in ended.err
    assert everything(tmp_path / "run") == before
    changing()
    assert command("branch_from=run", "branch_round=3", "hydra.run.dir=b", again).status == 0
    assert command("resume=run", "num_rounds=4", again).status == 0
    assert record(tmp_path / "run")["fingerprint"] == facts


def test_a_branch_may_be_given_other_data_by_its_settings(command, tmp_path):
    assert command(*DIGITS).status == 0
    assert command("branch_from=run", "branch_round=3", "num_rounds=4", "partition=iid", "hydra.run.dir=b").status == 0
    was, now = (record(tmp_path / name)["fingerprint"] for name in ("run", "b"))
    assert (was["data"] == now["data"], was["partition"] == now["partition"]) == (True, False)


def test_a_run_without_fingerprints_is_refused(command, tmp_path):
    assert command(*DIGITS).status == 0
    facts = record(tmp_path / "run")
    facts.pop("fingerprint")
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    ended = command("resume=run", "num_rounds=4")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "has no fingerprint of its data" in ended.err
