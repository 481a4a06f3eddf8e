"""A resumed run is, byte for byte, the uninterrupted one; on another engine: tests/equivalence/test_engines.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.runs.checkpoint import Checkpoints
from fedprox.runs.writer import RunRecord
from tests.faults.compared import differences, untimed

DIGITS = ("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=4", "num_epochs=3", "num_rounds=10")
FLOWERS = "strategy._target_=flwr.serverapp.strategy."
OWN = """
import numpy as np
import torch
from flwr.app import MetricRecord
from fedprox.federation.planned_strategy import FedProx

def normalised(input_shape, num_classes):
    layers = [torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(3 * 6 * 6, num_classes))

class Reporting(FedProx):
    # Draws a metric, and reports nothing in round 1.
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        own = {"drawn": float(np.random.random()), "replies": len(replies)}
        return arrays, MetricRecord(own) if server_round > 1 else None
"""


class Crash(BaseException):
    """Ends the process at once, as SIGKILL does."""


@pytest.fixture
def ended_at(monkeypatch) -> Callable:
    """Return a function that makes the next run end when it begins a round.

    Its second argument is KeyboardInterrupt, after which the run still writes its files, or Crash, after which it
    writes nothing.
    """
    configure = PlannedStrategy.configure_train

    def prepare(round_num: int | None, kind: type[BaseException] = KeyboardInterrupt) -> None:
        def end(self, server_round, *arguments):
            if server_round == round_num:
                raise kind
            return configure(self, server_round, *arguments)

        monkeypatch.undo() if round_num is None else monkeypatch.setattr(PlannedStrategy, "configure_train", end)
        if round_num is not None and kind is Crash:
            monkeypatch.setattr(Checkpoints, "__exit__", lambda self, *_: self._disk.shutdown())
            monkeypatch.setattr(RunRecord, "__exit__", lambda *_: None)

    with monkeypatch.context() as monkeypatch:
        yield prepare


@pytest.fixture
def run(fedprox, tmp_path, ended_at, monkeypatch):
    """Return a function that runs a command to its end, or until it ends at a round, and returns its directory."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments: str, into: str = "run", until: int | None = None, kind=KeyboardInterrupt) -> Path:
        ended_at(until, kind)
        words = arguments if arguments[0].startswith("resume=") else (*arguments, f"hydra.run.dir={into}")
        if until is not None and kind is Crash:
            with pytest.raises(Crash):
                fedprox(*words)
        else:
            ended = fedprox(*words)
            assert ended.status == (0 if until is None else 130), ended.err
        ended_at(None)
        return tmp_path / into

    return call


def facts(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


CHOICES = {
    "fedprox": (),
    "fedavg that drops stragglers": ("strategy=fedavg", "stragglers_fraction=0.5"),
    "feddane": ("strategy=feddane",),
    "scaffold": ("strategy=scaffold", "momentum=0.5"),
    "scaffold, as in FLARE": (
        *(
            "strategy=scaffold",
            "strategy.correct=steps",
            "momentum=0.5",
            "momentum_buffer=kept",
            "stragglers_fraction=0.5",
        ),
        *("schedule.name=cosine", "schedule.step=epoch", "+strategy.weighted_by_key=num-steps"),
    ),
    "feddyn": ("strategy=feddyn", "mu=0.1"),
    "fedyogi": ("strategy=fedyogi", "server_schedule.name=cosine"),
    "FedAdam": (f"{FLOWERS}FedAdam",),
    "FedAvgM": (f"{FLOWERS}FedAvgM", "+strategy.server_momentum=0.9"),
    "FedMedian": (f"{FLOWERS}FedMedian",),
    "adaptive mu": ("evaluation=clients", "adaptive_mu.enabled=true", "adaptive_mu.patience=2"),
    "local batch statistics": ("model._target_=own_parts.normalised", "batch_statistics=local"),
    "averaged batch statistics": ("model._target_=own_parts.normalised",),
    "every third round evaluated": ("evaluation.every=3",),
    "cosine": ("schedule.name=cosine",),
    "metrics of the strategy's own": ("strategy._target_=own_parts.Reporting", "checkpoint.every=1"),
    "authors": ("protocol=authors", "dataset=synthetic_iid", "num_clients=12"),
    "paper with parts of epochs": ("protocol=paper", "num_epochs=1"),
    "personal models": ("personalisation=ditto", "clients_per_round=3"),
    "personal heads": ("personalisation=fedrep", "model=mlp", "clients_per_round=3"),
    "per class and client": ("evaluation.per_class=true", "evaluation.per_client=true"),
    "augmented images of a CNN": ("augmentation=crop_flip", "model=cnn", "num_rounds=7", "clients_per_round=2"),
    "reference solver": ("solver=reference", "momentum=0.5"),
}


@pytest.mark.parametrize("arguments", CHOICES.values(), ids=CHOICES)
def test_a_run_interrupted_twice_equals_the_uninterrupted_one(run, arguments):
    given = {argument.partition("=")[0] for argument in arguments}
    base = [setting for setting in DIGITS if setting.partition("=")[0] not in given]
    command = (*base, *arguments, "checkpoint.every=3")
    whole = run(*command, into="whole")
    broken = run(*command, into="broken", until=5)
    assert (facts(broken)["status"], facts(broken)["result"] is None) == ("interrupted", False)
    own = [word for word in arguments if "_target_=" in word]  # trusted when it is named again
    run("resume=broken", *own, into="broken", until=6, kind=Crash)
    assert facts(broken)["status"] == "running"
    run("resume=broken", *own, into="broken")
    assert differences(broken, whole) == []
    assert [each["after_round"] for each in facts(broken)["resumed"]] == [4, 4]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Crash])
@pytest.mark.parametrize("every", [1, 10, "null"])  # the test above has 3
def test_it_does_with_every_interval_of_checkpoints_and_however_it_ended(run, every, kind):
    command = (*DIGITS, f"{FLOWERS}FedAvgM", "+strategy.server_momentum=0.9", f"checkpoint.every={every}")
    whole = run(*command, into="whole")
    broken = run(*command, into="broken", until=9, kind=kind)
    if kind is Crash:
        with (broken / "metrics.csv").open("ab") as file:
            file.write(b"9,0.12")  # a row that was cut
    for until in (10, None):
        run("resume=broken", f"{FLOWERS}FedAvgM", into="broken", until=until, kind=kind)
    assert differences(broken, whole) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Crash])
def test_a_run_that_ended_in_its_first_round_has_round_0_once(run, kind):
    whole = run(*DIGITS, *CHOICES["adaptive mu"], into="whole")
    broken = run(*DIGITS, *CHOICES["adaptive mu"], into="broken", until=1, kind=kind)
    run("resume=broken", into="broken")
    assert differences(broken, whole) == []


def test_a_run_that_ended_between_its_last_checkpoint_and_its_end_is_finished(run, monkeypatch):
    whole = run(*DIGITS, into="whole")
    with monkeypatch.context() as patched:
        patched.setattr(RunRecord, "finish", lambda *_: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            run(*DIGITS, into="broken")
    run("resume=broken", into="broken")
    assert differences(Path("broken"), whole) == []


def test_a_run_resumed_with_more_rounds_equals_one_of_that_length(run):
    longer = run(*DIGITS, f"{FLOWERS}FedAdam", "num_rounds=14", into="longer")
    run(*DIGITS, f"{FLOWERS}FedAdam", into="run")
    assert differences(run("resume=run", "num_rounds=14", f"{FLOWERS}FedAdam"), longer) == []


def test_place_threads_and_checkpoints_may_change_and_a_finished_run_stays_as_it_is(run, fedprox, tmp_path):
    whole = run(*DIGITS, into="whole")
    run(*DIGITS, into="broken", until=5)
    moved = tmp_path / "with spaces, and commas"
    (tmp_path / "broken").rename(moved)
    changes = ("engine.num_threads=1", "checkpoint.every=2", "checkpoint.keep=null")
    run(f"resume='{moved}'", *changes, into=moved.name)
    assert differences(moved, whole) == []
    names = {path.name for path in (moved / "checkpoint").iterdir()}
    # Rounds 4 and 10 were the last of a process; those in between are skipped while the disk is busy.
    assert {4, 10} <= {int(name[6:12]) for name in names} <= {4, 6, 8, 10}
    before = snapshot(moved)
    assert "is finished already" in fedprox(f"resume='{moved}'").out
    changed = {name for name, content in snapshot(moved).items() if before.get(name) != content}
    assert {name for name in changed if not name.startswith(".hydra")} <= {"main.log"}


@pytest.mark.parametrize(
    ("earlier", "present", "refused"),
    [
        (["on_client_error=stop"], ["on_client_error=drop"], []),
        (["on_client_error=drop"], ["on_client_error=stop"], ["on_client_error"]),
        (["on_divergence=continue"], ["on_divergence=stop"], []),
        (["round_timeout=90", "on_timeout=drop"], ["round_timeout=80"], ["round_timeout"]),
    ],
)
def test_the_failure_policy_may_change_unless_replies_may_have_been_dropped(run, fedprox, earlier, present, refused):
    run(*DIGITS, *earlier, until=5)
    ended = fedprox("resume=run", *present)
    assert ended.status == (2 if refused else 0), ended.err
    assert [name for name in refused if f"{name}=" not in ended.err] == []


# Branches.


@pytest.fixture
def trunk(run):
    """Return a function that makes a run of ten rounds with checkpoints of rounds 4 and 10."""

    def call(*arguments: str) -> Path:
        run(*DIGITS, *arguments, "checkpoint.every=100", "checkpoint.keep=null", into="trunk", until=5)
        return run("resume=trunk", *(word for word in arguments if "_target_=" in word), into="trunk")

    return call


@pytest.mark.parametrize("round_num", [4, 10])
def test_a_branch_without_changes_is_its_trunk(run, trunk, round_num):
    trunk = trunk(f"{FLOWERS}FedAdam")
    before = snapshot(trunk)
    branch = run("branch_from=trunk", f"branch_round={round_num}", f"{FLOWERS}FedAdam", into="branch")
    # After the last round there is nothing to do, and no checkpoint to write.
    assert differences(branch, trunk) == (["checkpoint"] if round_num == 10 else [])
    assert facts(branch)["branched_from"] == {
        "run": str(trunk.resolve()),
        "round": round_num,
        "changed": [],
        "before": None,
    }
    assert snapshot(trunk) == before


def test_a_branch_with_another_mu_is_a_run_whose_mu_changes_at_that_round(run, trunk, monkeypatch):
    configure = PlannedStrategy.configure_train

    def switching(self, server_round, arrays, config, grid):
        if server_round > 4:
            config["proximal-mu"] = 0.1
        return configure(self, server_round, arrays, config, grid)

    with monkeypatch.context() as patched:
        patched.setattr(PlannedStrategy, "configure_train", switching)
        switched = run(*DIGITS, "mu=1", into="switched")
    trunk = trunk("mu=1")
    branch = run("branch_from=trunk", "branch_round=4", "mu=0.1", into="branch")
    for name in ("metrics.csv", "clients.csv"):
        assert untimed(branch / name) == untimed(switched / name)
        assert untimed(branch / name) != untimed(trunk / name)
    assert (branch / "model.safetensors").read_bytes() == (switched / "model.safetensors").read_bytes()
    assert facts(branch)["branched_from"]["changed"] == ["mu=0.1 (was 1.0)"]
    assert facts(branch)["settings"]["mu"] == 0.1


def test_an_interrupted_branch_is_resumed_and_keeps_its_lineage(run, trunk):
    trunk()
    whole = run("branch_from=trunk", "branch_round=4", "mu=0.1", into="whole")
    for kind in (KeyboardInterrupt, Crash):
        into = kind.__name__
        run("branch_from=trunk", "branch_round=4", "mu=0.1", "checkpoint.every=3", into=into, until=8, kind=kind)
        again = ["branch_from=trunk"] if kind is Crash else []  # read if there is no checkpoint yet
        resumed = run(f"resume={into}", *again, into=into)
        assert differences(resumed, whole) == []
        assert facts(resumed)["branched_from"] == facts(whole)["branched_from"]
        # An interrupt writes a checkpoint of round 7; a crash may come before the first, and the run branches again.
        assert kind is Crash or facts(resumed)["resumed"][0]["after_round"] == 7


def test_a_branch_of_a_branch_begins_with_the_rows_of_both(run):
    trunk = run(*DIGITS, "num_rounds=3", into="trunk")
    branch = run("branch_from=trunk", "branch_round=3", "mu=0.1", "num_rounds=6", into="branch")
    run("resume=trunk", "num_rounds=10", into="trunk")
    twig = run("branch_from=branch", "branch_round=6", "mu=0.5", "num_rounds=10", into="twig")
    run("resume=branch", "num_rounds=10", into="branch")
    rows = {folder.name: untimed(folder / "metrics.csv").splitlines() for folder in (trunk, branch, twig)}
    assert rows["twig"][:5] == rows["branch"][:5] == rows["trunk"][:5]  # a header and rounds 0 to 3
    assert rows["twig"][:8] == rows["branch"][:8] != rows["trunk"][:8]
    assert rows["twig"][8] != rows["branch"][8]


def test_a_branch_may_have_another_strategy_and_other_columns(run, trunk):
    trunk(f"{FLOWERS}FedAdam")
    branch = run(
        *("branch_from=trunk", "branch_round=4", "strategy._target_=fedprox.strategies.fedprox.FedProx"),
        *("evaluation=clients", "adaptive_mu.enabled=true"),
        into="branch",
    )
    rows = untimed(branch / "metrics.csv").decode().splitlines()
    assert len(rows) == 12
    assert rows[1].endswith(",,,,,,,,")  # what the trunk did not measure
    assert not rows[6].endswith(",")
