"""Run directories that were damaged, half written, or put together: one line, status 2, and nothing damaged further.

Where an earlier checkpoint is left it is taken, with a warning, and the run ends as the uninterrupted one.
"""

import json
import os
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

ADAM = "strategy._target_=flwr.serverapp.strategy.FedAdam"  # is trusted when it is named again
COMMAND = (
    *("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=4", "num_epochs=2", "num_rounds=8"),
    *(ADAM, "checkpoint.every=100", "checkpoint.keep=null"),
)
LAST, BEFORE = "checkpoint/round_000006.safetensors", "checkpoint/round_000003.safetensors"


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
    """Return a folder with runs, made once for all tests.

    `whole` is uninterrupted; `broken` was interrupted in round 7, with checkpoints of rounds 3 and 6; `model` and
    `seed` differ from it in that, and have come as far.
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
    """Return a copy of `broken` to be damaged."""
    return Path(shutil.copytree(runs / "broken", tmp_path / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return what a run directory holds, without what Hydra writes before anything is looked at."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".hydra" not in path.parts and path.name != "main.log"
    }


def edited(file: str, change):
    """Return damage that changes a file's content."""

    def damage(run_dir: Path, _: Path) -> None:
        (run_dir / file).write_bytes(change((run_dir / file).read_bytes()))

    return damage


def replaced(file: str, other: str):
    """Return damage that puts another run's file in a file's place."""

    def damage(run_dir: Path, runs: Path) -> None:
        shutil.copyfile(runs / other, run_dir / file)

    return damage


def removed(file: str):
    def damage(run_dir: Path, _: Path) -> None:
        (run_dir / file).unlink()

    return damage


def made_a_folder(file: str):
    def damage(run_dir: Path, _: Path) -> None:
        (run_dir / file).unlink()
        (run_dir / file).mkdir()

    return damage


def made_a_file(folder: str):
    def damage(run_dir: Path, _: Path) -> None:
        shutil.rmtree(run_dir / folder)
        (run_dir / folder).write_text("a file")

    return damage


def both(*damages):
    def damage(run_dir: Path, runs: Path) -> None:
        for each in damages:
            each(run_dir, runs)

    return damage


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def with_length(length: int):
    return lambda content: length.to_bytes(8, "little") + content[8:]


def with_header(text: bytes):
    """Return a change into a file whose header is a text, and that holds no array."""
    return lambda _: len(text).to_bytes(8, "little") + text


def metadata(state: str) -> bytes:
    return json.dumps({"__metadata__": {"state": state, "checksum": "0"}}).encode()


class Malicious:
    """What writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


# Of the last checkpoint; that of round 3 is left, and the run is resumed from there.
DAMAGE = {
    "cut to nothing": edited(LAST, lambda content: b""),
    "cut in the header's length": edited(LAST, lambda content: content[:5]),
    "cut after the header's length": edited(LAST, lambda content: content[:8]),
    "cut in the header": edited(LAST, lambda content: content[: header_end(content) // 2]),
    "cut after the header": edited(LAST, lambda content: content[: header_end(content)]),
    "cut in the arrays": edited(LAST, lambda content: content[: (header_end(content) + len(content)) // 2]),
    "cut by a byte": edited(LAST, lambda content: content[:-1]),
    "longer by a byte": edited(LAST, lambda content: content + b"x"),
    "a bit of the last number": edited(LAST, lambda content: flipped(content, len(content) - 1)),
    "a bit of the first number": edited(LAST, lambda content: flipped(content, header_end(content), 7)),
    "a bit of the header's length": edited(LAST, lambda content: flipped(content, 0)),
    "a header of length 0": edited(LAST, with_length(0)),
    "a header of 2^63 bytes": edited(LAST, with_length(2**63)),
    "a header of 2^64 - 1 bytes": edited(LAST, with_length(2**64 - 1)),
    "a header longer than the file": edited(LAST, lambda content: with_length(len(content))(content)),
    "a header that is no JSON": edited(LAST, with_header(b"{" * 64)),
    "a header without metadata": edited(LAST, with_header(b"{}")),
    "a state that is no JSON": edited(LAST, with_header(metadata("{"))),
    "a state that is a list": edited(LAST, with_header(metadata("[1, 2]"))),
    "a state of 100,000 brackets": edited(LAST, with_header(metadata("[" * 100_000))),
    "a state with round nan": edited(LAST, with_header(metadata('{"dict": [["round_num", NaN], ["accuracy", 0]]}'))),
    "a state with round infinity": edited(
        LAST, with_header(metadata('{"dict": [["round_num", Infinity], ["accuracy", "x"]]}'))
    ),
    "text": edited(LAST, lambda content: b"round 6"),
    "zeros": edited(LAST, lambda content: bytes(len(content))),
    "a pickle": edited(LAST, lambda content: pickle.dumps({"round_num": 6})),
    "the model alone": replaced(LAST, "whole/model.safetensors"),
    "another model's": replaced(LAST, "model/" + LAST),
    "another run's of the same model": replaced(LAST, "seed/" + LAST),
    "another run's, of a later round": replaced("checkpoint/round_000008.safetensors", "seed/" + LAST),
    "not there": removed(LAST),
    "rows lost that it goes on from": edited("clients.csv", lambda content: content[: content.index(b"\n5,") + 1]),
    "a row changed that it goes on from": edited("metrics.csv", lambda content: content.replace(b"\n5,", b"\n5,9")),
}
SILENT = {"not there"}  # nobody can know that there was one


@pytest.mark.parametrize("name", DAMAGE)
def test_where_the_last_checkpoint_is_of_no_use_the_one_before_is_taken(runs, broken, caplog, name):
    DAMAGE[name](broken, runs)
    found = checkpoint.latest(broken)
    assert found.round_num == (6 if name == "another run's, of a later round" else 3)
    assert len(caplog.messages) == (name not in SILENT)
    assert all(message.endswith("an earlier one is taken") for message in caplog.messages)


@pytest.mark.parametrize("name", ["cut in the arrays", "not there", "another run's, of a later round"])
def test_a_run_that_goes_on_from_the_one_before_ends_as_the_uninterrupted_one(fedprox, runs, broken, name):
    DAMAGE[name](broken, runs)
    ended = fedprox(f"resume={broken}", ADAM)
    assert ended.status == 0, ended.err
    assert differences(broken, runs / "whole") == []
    assert (ended.out + ended.err).count("WARNING") == (name not in SILENT)


def run_json(**changes: object):
    """Return damage that changes entries of run.json; None takes one away."""

    def change(content: bytes) -> bytes:
        record = {**json.loads(content), **changes}
        return json.dumps({key: value for key, value in record.items() if value is not None}).encode()

    return edited("run.json", change)


HARMLESS = {
    "rows after the last checkpoint": edited("metrics.csv", lambda content: content + b"7,0.5,0.5\r\n8,0.1"),
    "a checkpoint half written": lambda run_dir, _: (run_dir / (LAST + ".part")).write_bytes(b"half"),
    "a model half written": lambda run_dir, _: (run_dir / "model.safetensors.part").write_bytes(b"half"),
    "a model of nonsense": lambda run_dir, _: (run_dir / "model.safetensors").write_bytes(b"nonsense"),
    "an earlier checkpoint damaged": edited(BEFORE, lambda content: content[:-1]),
    "overrides that the settings do not bear out": run_json(overrides=["mu=0.5", "no_such=1"]),
    "Hydra's files gone": lambda run_dir, _: shutil.rmtree(run_dir / ".hydra"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_read_does_no_harm(fedprox, runs, broken, name):
    HARMLESS[name](broken, runs)
    ended = fedprox(f"resume={broken}", ADAM)
    assert ended.status == 0, ended.err
    assert differences(broken, runs / "whole") == []
    assert json.loads((broken / "run.json").read_text())["resumed"][-1]["after_round"] == 6


def empty(content: bytes) -> bytes:
    return b""


ANEW = ("start the run anew",)
UNUSABLE = ("run.json cannot be used", "mend it or move this run away")
REFUSED = {
    "both checkpoints empty": (both(edited(LAST, empty), edited(BEFORE, empty)), ["no whole checkpoint", *ANEW]),
    "both another model's": (
        both(replaced(LAST, "model/" + LAST), replaced(BEFORE, "model/" + BEFORE)),
        ["metrics.csv is not what it was when", *ANEW],
    ),
    "another model's whole directory": (
        both(*(replaced(name, "model/" + name) for name in (LAST, BEFORE, "metrics.csv", "clients.csv"))),
        ["holds a checkpoint of another model", *ANEW],
    ),
    "a folder in place of a checkpoint": (made_a_folder(LAST), ["round_000006", "is a folder", "move it away"]),
    "a file in place of the checkpoints": (made_a_file("checkpoint"), ["checkpoint must be a folder", "move"]),
    "metrics.csv changed": (
        edited("metrics.csv", lambda content: content.replace(b"\n1,", b"\n1,9")),
        ["metrics.csv is not what it was", "bring it back", *ANEW],
    ),
    "metrics.csv empty": (edited("metrics.csv", empty), ["metrics.csv is not what it was", *ANEW]),
    "metrics.csv with other line ends": (
        edited("metrics.csv", lambda content: content.replace(b"\r\n", b"\n")),
        ["metrics.csv is not what it was", *ANEW],
    ),
    "metrics.csv gone": (removed("metrics.csv"), ["metrics.csv is not what it was", *ANEW]),
    "metrics.csv a folder": (made_a_folder("metrics.csv"), ["metrics.csv is not what it was", *ANEW]),
    "clients.csv gone": (removed("clients.csv"), ["clients.csv is not what it was", *ANEW]),
    "run.json empty": (edited("run.json", empty), UNUSABLE),
    "run.json cut": (edited("run.json", lambda content: content[: len(content) // 2]), UNUSABLE),
    "run.json binary": (edited("run.json", lambda content: bytes(range(256))), UNUSABLE),
    "run.json a list": (edited("run.json", lambda content: b"[]"), UNUSABLE),
    "run.json a number": (edited("run.json", lambda content: b"3"), UNUSABLE),
    "run.json of brackets": (edited("run.json", lambda content: b"[" * 100_000), UNUSABLE),
    "run.json without settings": (run_json(settings=None), [*UNUSABLE, "lacks settings"]),
    "run.json without a status": (run_json(status=None), [*UNUSABLE, "lacks status"]),
    "run.json with settings that are none": (run_json(settings="mu=1"), UNUSABLE),
    "run.json with settings cut": (run_json(settings={"mu": 1.0}), ["would change the past"]),
    "run.json with a status that is none": (run_json(status=5), UNUSABLE),
    "run.json of a version without checkpoints": (
        run_json(overrides=None, config_name=None),
        ["by a version that kept no checkpoints", "give the command that made it again"],
    ),
    "run.json with overrides that are none": (run_json(overrides={"mu": 1}), ["give the command that made it again"]),
    "run.json with overrides of numbers": (run_json(overrides=[1, 2]), ["give the command that made it again"]),
    "run.json with another configuration": (run_json(config_name="nothing"), ["was not made by this command"]),
    "run.json with settings of other types": (
        run_json(settings={"mu": 0.25, "seed": []}),
        ["seed must be an integer", "got []"],
    ),
    "run.json a folder": (made_a_folder("run.json"), ["is no run directory"]),
    "run.json gone": (removed("run.json"), ["is no run directory", "there is no run.json"]),
}


@pytest.mark.parametrize(("damage", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_resumed_is_told_in_one_line_and_nothing_is_damaged(fedprox, runs, broken, damage, words):
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
        assert checkpoint.content_of(found) == checkpoint.content_of(whole)  # e.g. a space of the header


def test_no_length_of_a_checkpoint_but_its_own_is_taken(broken):
    content = (broken / LAST).read_bytes()
    for length in (*range(64), *range(64, len(content), 97), len(content) - 1):
        (broken / LAST).write_bytes(content[:length])
        with pytest.raises(UserError, match="is no whole checkpoint"):
            checkpoint.read(broken / LAST)


def test_a_pickle_in_every_file_of_a_run_directory_is_never_unpickled(fedprox, broken, tmp_path):
    trap = tmp_path / "trapped"
    bomb = pickle.dumps(Malicious(trap))
    pickle.loads(bomb)
    assert trap.exists()  # it does go off
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


# Disks. A limit on the size of a file is a disk that is full for those who write more; the error is another.

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


@pytest.mark.parametrize("limit", [400, 1500])
def test_a_disk_that_is_full_ends_the_run_in_one_line_and_it_is_resumed_when_there_is_room(
    fedprox, runs, broken, tmp_path, environment, limit
):
    # Rows of one round take 300 bytes and more, a checkpoint of this model with its momenta some 10,000.
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit + (broken / "clients.csv").stat().st_size), f"resume={broken}", ADAM],
        **{"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {broken}/")
    assert "cannot be written: File too large" in line or "cannot be written: No space left" in line  # half a write
    assert f"once it can, resume={broken} goes on from the last checkpoint" in line
    assert checkpoint.read(broken / LAST).round_num == 6
    assert fedprox(f"resume={broken}", ADAM).status == 0
    assert differences(broken, runs / "whole") == []


def test_a_directory_that_vanishes_while_the_run_goes_on_is_told_in_one_line(fedprox, runs, tmp_path, monkeypatch):
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
    assert fedprox(*COMMAND).status == 0  # and the same command makes it anew
    assert differences(tmp_path / "run", runs / "whole") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("file", ["metrics.csv", "run.json", LAST, "checkpoint"])
def test_what_may_not_be_read_or_written_is_told_in_one_line(fedprox, broken, file):
    (broken / file).chmod(0)
    ended = fedprox(f"resume={broken}", ADAM)
    (broken / file).chmod(0o700)
    lines = [line for line in ended.err.splitlines() if line and "WARNING" not in line]
    assert (ended.status, len(lines)) in ((2, 1), (0, 0))
    assert not lines or Path(file).name in lines[0]


def test_a_directory_that_another_process_writes_is_left_alone(fedprox, broken, environment, tmp_path):
    code = (
        "import sys; from pathlib import Path; from fedprox.storage import locked\n"
        "with locked(Path(sys.argv[1])): print('has it', flush=True); sys.stdin.read()"
    )
    before = snapshot(broken)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(broken)],
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()},
    ) as other:
        assert other.stdout.readline() == "has it\n"
        ended = fedprox(f"resume={broken}", ADAM)
        other.stdin.close()
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "is being written by another process" in ended.err
    assert snapshot(broken) == before
