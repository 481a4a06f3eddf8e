"""Run directories that were damaged, partly written or mixed: one line, status 2, and no further damage.

If there is an earlier checkpoint, it is used with a warning, and the run ends like the uninterrupted one.
"""

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedprox.errors import UserError
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.runs import checkpoint
from tests.faults.compared import differences

ADAM = "strategy._target_=flwr.serverapp.strategy.FedAdam"  # a resumed run must name it again
COMMAND = (
    *("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=4", "num_epochs=2", "num_rounds=8"),
    *(ADAM, "checkpoint.every=100", "checkpoint.keep=null"),
)
BEFORE, LAST, LATER = (f"checkpoint/round_00000{round_num}.safetensors" for round_num in (3, 6, 8))


@pytest.fixture
def until(fedprox, monkeypatch):
    """Return a function that runs a command until it begins a round."""
    configure = PlannedStrategy.configure_train

    def call(round_num: int, *arguments: str) -> None:
        def end(self, server_round, *others):
            if server_round == round_num:
                raise KeyboardInterrupt
            return configure(self, server_round, *others)

        with monkeypatch.context() as patched:
            patched.setattr(PlannedStrategy, "configure_train", end)
            assert fedprox(*arguments).status == 130

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("made")}


@pytest.fixture
def runs(made, fedprox, until) -> Path:
    """Return a folder with runs that all tests share.

    `whole` is uninterrupted; `broken` was interrupted in round 7 and has checkpoints of rounds 3 and 6; `model` and
    `seed` were interrupted in the same round, but have another model or seed.
    """
    folder = made["folder"]
    if not (folder / "seed").exists():
        assert fedprox(*COMMAND, f"hydra.run.dir={folder / 'whole'}").status == 0
        for name, changes in {"broken": (), "model": ("model=cnn",), "seed": ("seed=1",)}.items():
            until(4, *COMMAND, *changes, f"hydra.run.dir={folder / name}")
            until(7, f"resume={folder / name}", ADAM)
            assert sorted(path.name[6:12] for path in (folder / name / "checkpoint").iterdir()) == ["000003", "000006"]
    return folder


@pytest.fixture
def broken(runs, tmp_path) -> Path:
    """Return a copy of `broken` that a test may damage."""
    return Path(shutil.copytree(runs / "broken", tmp_path / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files of a run directory without Hydra's and the log."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".hydra" not in path.parts and path.name != "main.log"
    }


def edited(change, *files: str):
    """Return a damage function that changes the content of files."""

    def damage(run_dir: Path, _: Path) -> None:
        for file in files:
            (run_dir / file).write_bytes(change((run_dir / file).read_bytes()))

    return damage


def replaced(run: str, *files: str):
    """Return a damage function that replaces files with another run's."""

    def damage(run_dir: Path, runs: Path) -> None:
        for file in files:
            shutil.copyfile(runs / run / file, run_dir / file)

    return damage


def removed(file: str):
    return lambda run_dir, _: (run_dir / file).unlink()


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def with_header(text: bytes):
    """Return a change to a file that consists of a header only."""
    return lambda _: len(text).to_bytes(8, "little") + text


class Malicious:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


# Damage to the last checkpoint; that of round 3 is intact. Two tests below cover truncation and flipped bits.
DAMAGE = {
    "longer by a byte": edited(lambda content: content + b"x", LAST),
    "a header of 2^64 - 1 bytes": edited(lambda content: b"\xff" * 8 + content[8:], LAST),
    "a header that is not JSON": edited(with_header(b"{" * 64), LAST),
    "a header without metadata": edited(with_header(b"{}"), LAST),
    "a state that is not JSON": edited(with_header(b'{"__metadata__": {"state": "{", "checksum": "0"}}'), LAST),
    "a pickle": edited(lambda _: pickle.dumps({"round_num": 6}), LAST),
    "a model file": lambda run_dir, runs: shutil.copyfile(runs / "whole" / "model.safetensors", run_dir / LAST),
    "another model's": replaced("model", LAST),
    "another run's of the same model": replaced("seed", LAST),
    "another run's, of a later round": lambda run_dir, runs: shutil.copyfile(runs / "seed" / LAST, run_dir / LATER),
    "missing": removed(LAST),
    "lost rows": edited(lambda content: content[: content.index(b"\n5,") + 1], "clients.csv"),
    "a changed row": edited(lambda content: content.replace(b"\n5,", b"\n5,9"), "metrics.csv"),
}
SILENT = {"missing"}  # nothing shows that there was one


@pytest.mark.parametrize("name", DAMAGE)
def test_if_the_last_checkpoint_is_damaged_the_one_before_is_used_with_a_warning(runs, broken, caplog, name):
    DAMAGE[name](broken, runs)
    found = checkpoint.latest(broken)
    assert found.round_num == (6 if name == "another run's, of a later round" else 3)
    assert len(caplog.messages) == (name not in SILENT)
    assert all(message.endswith("using an earlier checkpoint") for message in caplog.messages)


@pytest.mark.parametrize("name", ["longer by a byte", "missing", "another run's, of a later round"])
def test_a_run_resumed_from_an_earlier_checkpoint_ends_like_the_uninterrupted_one(fedprox, runs, broken, name):
    DAMAGE[name](broken, runs)
    ended = fedprox(f"resume={broken}", ADAM)
    assert ended.status == 0, ended.err
    assert differences(broken, runs / "whole") == []
    assert (ended.out + ended.err).count("WARNING") == (name not in SILENT)


def run_json(**changes: object):
    """Return a damage function that changes entries of run.json."""
    return edited(lambda content: json.dumps({**json.loads(content), **changes}).encode(), "run.json")


HARMLESS = {
    "rows after the last checkpoint": edited(lambda content: content + b"7,0.5,0.5\r\n8,0.1", "metrics.csv"),
    "a partly written checkpoint": lambda run_dir, _: (run_dir / (LAST + ".part")).write_bytes(b"half"),
    "a damaged model": lambda run_dir, _: (run_dir / "model.safetensors").write_bytes(b"nonsense"),
    "an earlier checkpoint damaged": edited(lambda content: content[:-1], BEFORE),
    "overrides that contradict the settings": run_json(overrides=["mu=0.5", "no_such=1"]),
    "no files of Hydra": lambda run_dir, _: shutil.rmtree(run_dir / ".hydra"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_files_that_are_not_read_may_be_damaged(fedprox, runs, broken, name):
    HARMLESS[name](broken, runs)
    ended = fedprox(f"resume={broken}", ADAM)
    assert ended.status == 0, ended.err
    assert differences(broken, runs / "whole") == []
    assert json.loads((broken / "run.json").read_text())["resumed"][-1]["after_round"] == 6


def no_folder_of_checkpoints(run_dir: Path, _: Path) -> None:
    shutil.rmtree(run_dir / "checkpoint")
    (run_dir / "checkpoint").write_text("a file")


UNUSABLE = ("run.json cannot be used", "fix it or move this run away")
REFUSED = {
    "both checkpoints empty": (
        edited(lambda _: b"", LAST, BEFORE),
        ["truncated or corrupt", "restore it", "start the run again"],
    ),
    "another model's whole directory": (
        replaced("model", LAST, BEFORE, "metrics.csv", "clients.csv"),
        ["holds a checkpoint of another model"],
    ),
    "a file in place of the checkpoints": (no_folder_of_checkpoints, ["checkpoint must be a folder", "move"]),
    "metrics.csv changed": (
        edited(lambda content: content.replace(b"\n1,", b"\n1,9"), "metrics.csv"),
        ["metrics.csv has changed since", "restore it", "start the run again"],
    ),
    "clients.csv missing": (removed("clients.csv"), ["clients.csv has changed since"]),
    "run.json cut": (edited(lambda content: content[: len(content) // 2], "run.json"), UNUSABLE),
    "run.json with settings of another type": (run_json(settings="mu=1"), UNUSABLE),
    "run.json with settings cut": (run_json(settings={"mu": 1.0}), ["would change the past"]),
    "run.json with overrides of numbers": (run_json(overrides=[1, 2]), ["repeat the command that made it"]),
    "run.json with another configuration": (run_json(config_name="nothing"), ["was not made by this command"]),
    "run.json with invalid settings": (
        run_json(settings={"mu": 0.25, "seed": []}),
        ["seed must be an integer", "got []"],
    ),
    "run.json missing": (removed("run.json"), ["is not a run directory", "run.json is missing"]),
}


@pytest.mark.parametrize(("damage", "words"), REFUSED.values(), ids=REFUSED)
def test_a_run_that_cannot_be_resumed_is_one_line_and_stays_as_it_is(fedprox, runs, broken, damage, words):
    damage(broken, runs)
    before = snapshot(broken)
    ended = fedprox(f"resume={broken}", ADAM)
    lines = [line for line in ended.err.splitlines() if line]
    assert ended.status == 2
    assert (len(lines), lines[0][:7]) == (1, "error: "), ended.err
    assert "Traceback" not in ended.out
    assert [word for word in words if word not in lines[0]] == []
    assert snapshot(broken) == before


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(runs, broken):
    content, rng = (broken / LAST).read_bytes(), random.Random(0)
    whole = checkpoint.read(broken / LAST)
    for at in (*range(16), *rng.sample(range(len(content)), 300)):
        (broken / LAST).write_bytes(flipped(content, at, rng.randrange(8)))
        try:
            found = checkpoint.read(broken / LAST)
        except UserError:
            continue
        assert checkpoint.content_of(found) == checkpoint.content_of(whole)  # such as a space in the header


def test_a_truncated_checkpoint_of_any_length_is_an_error(broken):
    content = (broken / LAST).read_bytes()
    for length in (*range(64), *range(64, len(content), 97), len(content) - 1):
        (broken / LAST).write_bytes(content[:length])
        with pytest.raises(UserError, match="is truncated or corrupt"):
            checkpoint.read(broken / LAST)


def test_a_pickle_in_every_file_of_a_run_directory_is_never_unpickled(fedprox, broken, tmp_path):
    trap = tmp_path / "trapped"
    bomb = pickle.dumps(Malicious(trap))
    pickle.loads(bomb)
    assert trap.exists()  # the trap works
    trap.unlink()
    for file in [path for path in broken.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        file.write_bytes(bomb)
        for words in (
            (f"resume={broken}", ADAM),
            (f"branch_from={broken}", ADAM, "branch_round=6", "hydra.run.dir=branch"),
        ):
            assert fedprox(*words).status in (0, 2)
        assert not trap.exists()
        file.write_bytes(content)


# A limit on the size of a file acts like a full disk, but gives another error.

LIMITED = """
import resource, sys
from fedprox.experiment import run as experiment
from fedprox.main import main
limit = int(sys.argv.pop(1))
record = experiment._record_rounds
def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    record(*arguments)
experiment._record_rounds = limited
sys.exit(main())
"""


def test_a_full_disk_ends_the_run_in_one_line_and_it_can_be_resumed_when_there_is_room(
    fedprox, runs, broken, tmp_path, environment
):
    # The rows of a round take more than 300 bytes, so the limit is reached in the second one.
    limit = 400 + (broken / "clients.csv").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), f"resume={broken}", ADAM],
        **{"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {broken}/")
    assert "cannot be written: File too large" in line or "cannot be written: No space left" in line  # half a write
    assert f"continue from the last checkpoint with resume={broken}" in line
    assert checkpoint.read(broken / LAST).round_num == 6
    assert fedprox(f"resume={broken}", ADAM).status == 0
    assert differences(broken, runs / "whole") == []


def test_a_directory_that_vanishes_during_the_run_ends_it_in_one_line(fedprox, runs, tmp_path, monkeypatch):
    configure = PlannedStrategy.configure_train

    def vanish(self, server_round, *others):
        if server_round == 4:
            shutil.rmtree(tmp_path / "run")
        return configure(self, server_round, *others)

    with monkeypatch.context() as patched:
        patched.setattr(PlannedStrategy, "configure_train", vanish)
        ended = fedprox(*COMMAND)
    lines = [line for line in ended.err.splitlines() if line]
    assert (ended.status, len(lines)) == (2, 1), ended.err
    assert lines[0].startswith("error: ")
    assert "No such file or directory" in lines[0]
    assert fedprox(*COMMAND).status == 0
    assert differences(tmp_path / "run", runs / "whole") == []
