"""Checkpoints: their content, which are kept, and when they are written."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedprox.errors import UserError
from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.results import Round
from fedprox.runs import checkpoint as checkpointing
from fedprox.runs.checkpoint import Checkpoints, content_of, forget_after, latest, of_round
from fedprox.runs.writer import RunRecord
from fedprox.strategies.arrays import to_record

CARRIED = {"strategy": {"layers": [{"m_t": {"w": np.arange(3.0)}, "count": 2}], "statistics": None}, "mu": None}


def outcome(round_num: int, accuracy: float | None = 0.5) -> Round:
    test = Evaluation(1.5, accuracy) if accuracy is not None else None
    arrays = to_record({"w": np.full((2, 2), round_num, np.float32), "n": np.array(round_num)})
    return Round(round_num, arrays, test, (), 0.5 * round_num, 1.0, CARRIED)


def written(folder: Path, accuracies, *, every: int | None = 1, keep: int | None = 2, record=None) -> RunRecord:
    """Write the checkpoints of rounds with these accuracies, each before the next round begins."""
    record = record or RunRecord(folder, {"settings": {}})
    with Checkpoints(record, every=every, keep=keep) as checkpoints:
        for round_num, accuracy in enumerate(accuracies):
            record.add(outcome(round_num, accuracy))
            checkpoints.after(outcome(round_num, accuracy))
            checkpoints._wait()
    return record


def rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("round_")) for path in (folder / "checkpoint").glob("*.safetensors"))


def test_a_checkpoint_holds_the_state_after_its_round(tmp_path):
    record = written(tmp_path, [0.1, 0.2, 0.4, 0.3])
    last = latest(tmp_path)
    assert (last.round_num, last.time_s, last.accuracy) == (3, 1.5, 0.3)
    assert {name: array.numpy().tolist() for name, array in last.arrays.items()} == {"w": [[3, 3], [3, 3]], "n": 3}
    assert last.carried["strategy"]["layers"][0]["m_t"]["w"].tolist() == [0, 1, 2]
    assert last.record == record.state
    assert (last.record["final"]["round"], last.record["best"]["round"]) == (3, 2)


@pytest.mark.parametrize(
    ("every", "keep", "accuracies", "kept"),
    [
        (1, 2, [0.1, 0.2, 0.3, 0.4], [2, 3]),
        (1, 2, [0.1, 0.9, 0.3, 0.4, 0.5], [1, 3, 4]),  # and the best
        (1, 2, [0.1, 0.9, 0.9, 0.4, 0.5], [1, 3, 4]),  # the first of two equally good ones
        (1, 2, [0.9, 0.1, 0.2, 0.3], [2, 3]),  # round 0 has no checkpoint
        (1, 1, [0.1, 0.9, None, None, None], [1, 4]),  # rounds without evaluation
        (1, 1, [0.1, None, None], [2]),
        (1, None, [0.1] * 5, [1, 2, 3, 4]),
        (2, 9, [0.1] * 6, [2, 4, 5]),  # the last round always has one
        (3, 9, [0.1] * 7, [3, 6]),
        (10, 2, [0.1] * 4, [3]),
        (10, 2, [0.1], [0]),  # ended before round 1
        (None, 2, [0.1] * 4, []),
    ],
)
def test_the_last_ones_and_the_best_are_kept(tmp_path, every, keep, accuracies, kept):
    written(tmp_path, accuracies, every=every, keep=keep)
    assert rounds(tmp_path) == kept


def test_a_resumed_run_keeps_the_best_checkpoint_of_the_earlier_process(tmp_path):
    record = written(tmp_path, [0.1, 0.9, 0.3])
    assert rounds(tmp_path) == [1, 2]
    with Checkpoints(record, every=1, keep=2) as checkpoints:
        for round_num in (3, 4):
            checkpoints.after(outcome(round_num, 0.5))
            checkpoints._wait()
    assert rounds(tmp_path) == [1, 3, 4]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_the_last_rounds_checkpoint_is_written_whatever_ends_the_run(tmp_path, kind):
    record = RunRecord(tmp_path, {"settings": {}})

    def play() -> None:
        with Checkpoints(record, every=100, keep=2) as checkpoints:
            for round_num in range(4):
                checkpoints.after(outcome(round_num))
            raise kind

    with pytest.raises(kind):
        play()
    assert rounds(tmp_path) == [3]


def test_a_checkpoint_that_is_due_while_the_disk_is_busy_is_skipped(tmp_path, monkeypatch):
    go, write = threading.Event(), checkpointing.write_atomic

    def slow(file: Path, content: bytes) -> None:
        assert go.wait(60)
        write(file, content)

    monkeypatch.setattr(checkpointing, "write_atomic", slow)
    with Checkpoints(RunRecord(tmp_path, {"settings": {}}), every=1, keep=None) as checkpoints:
        for round_num in range(6):
            checkpoints.after(outcome(round_num))
        go.set()
    assert rounds(tmp_path) == [1, 5]


def test_a_disk_that_fails_during_the_rounds_ends_the_run_and_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    write = checkpointing.write_atomic

    def full(file: Path, content: bytes) -> None:
        if int(file.stem[-6:]) > 2:
            raise OSError(28, "No space left on device", str(file))
        write(file, content)

    monkeypatch.setattr(checkpointing, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, [0.1] * 6)
    assert rounds(tmp_path) == [1, 2]
    assert latest(tmp_path).round_num == 2


def test_the_checkpoint_of_a_round_is_found_or_the_error_lists_the_existing_ones(tmp_path):
    with pytest.raises(UserError, match=r"branch_round=3 has no checkpoint in .*, which has none; "):
        of_round(3, tmp_path)
    written(tmp_path, [0.1] * 8, every=2, keep=None)
    assert rounds(tmp_path) == [2, 4, 6, 7]
    assert [of_round(round_num, tmp_path).round_num for round_num in (2, 6, 7)] == [2, 6, 7]
    with pytest.raises(UserError, match=r"which has those of rounds 2, 4, 6, 7; .*checkpoint\.keep=null"):
        of_round(3, tmp_path)


def test_a_damaged_checkpoint_of_a_round_is_not_replaced_by_another_one(tmp_path):
    written(tmp_path, [0.1] * 3, keep=None)
    (tmp_path / "checkpoint" / "round_000002.safetensors").write_bytes(content_of(of_round(2, tmp_path))[:-1])
    with pytest.raises(UserError, match=r"round_000002\.safetensors is truncated or corrupt"):
        of_round(2, tmp_path)


def test_damaged_checkpoints_are_skipped_with_a_warning_each(tmp_path, caplog):
    written(tmp_path, [0.1] * 5, keep=None)
    for round_num in (3, 4):
        file = tmp_path / "checkpoint" / f"round_{round_num:06d}.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    assert latest(tmp_path).round_num == 2
    assert [line.partition("round_")[2][:6] for line in sorted(caplog.messages)] == ["000003", "000004"]


@pytest.mark.parametrize(
    "forged",
    [
        {"round_num": -1},
        {"round_num": 2.0},
        {"arrays": {}},
        {"time_s": "long"},
        {"carried": {}},
        {"record": {"tables": {}}},
    ],
    ids=lambda forged: next(iter(forged)),
)
def test_a_checkpoint_of_another_form_is_refused_though_its_checksum_matches(tmp_path, forged):
    written(tmp_path, [0.1] * 3, keep=None)
    file = tmp_path / "checkpoint" / "round_000002.safetensors"
    file.write_bytes(content_of(replace(of_round(2, tmp_path), **forged)))
    with pytest.raises(UserError, match=r"truncated or corrupt: a part is missing or of another type"):
        of_round(2, tmp_path)


def test_if_all_are_damaged_the_error_names_the_remedy(tmp_path):
    assert latest(tmp_path) is None
    written(tmp_path, [0.1] * 3)
    for file in (tmp_path / "checkpoint").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"truncated or corrupt.*no earlier checkpoint; .*start the run again"):
        latest(tmp_path)


def test_a_checkpoint_whose_rows_are_missing_or_changed_is_skipped(tmp_path, caplog):
    written(tmp_path, [0.1, 0.2, 0.3, 0.4], keep=None)
    table = tmp_path / "metrics.csv"
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join(lines[:4]))  # a header and rounds 0 to 2
    assert latest(tmp_path).round_num == 2
    assert "metrics.csv has changed since" in caplog.messages[0]
    table.write_bytes(b"".join(lines).replace(b"0.2", b"0.9"))  # in round 1
    with pytest.raises(UserError, match=r"metrics\.csv has changed since"):
        latest(tmp_path)


def test_later_rounds_and_partly_written_files_are_removed(tmp_path):
    written(tmp_path, [0.1] * 6, keep=None)
    (tmp_path / "checkpoint" / "round_000002.safetensors.part").write_bytes(b"half")
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    forget_after(tmp_path, 3)
    names = [f"round_00000{round_num}.safetensors" for round_num in (1, 2, 3)]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["notes.txt", *names]


def test_a_checkpoint_of_the_last_round_replaces_those_of_a_table_that_is_widened(tmp_path):
    record = RunRecord(tmp_path, {"settings": {}})
    with Checkpoints(record, every=1, keep=None) as checkpoints:
        for round_num in range(4):
            if round_num == 3:
                checkpoints.widen(["more"])
                assert rounds(tmp_path) == [2]
                assert latest(tmp_path).round_num == 2  # a run that is killed now loses nothing
            record.add(outcome(round_num))
            checkpoints.after(outcome(round_num))
            checkpoints._wait()
    assert rounds(tmp_path) == [2, 3]
    assert latest(tmp_path).round_num == 3


def test_a_resumed_run_whose_table_is_widened_at_once_keeps_its_checkpoint(tmp_path):
    written(tmp_path, [0.1, 0.2, 0.3], keep=None)
    start = latest(tmp_path)
    record = RunRecord(tmp_path, {"settings": {}}, state=start.record)
    with Checkpoints(record, every=1, keep=None, start=start) as checkpoints:
        checkpoints.widen(["more"])
    again = latest(tmp_path)
    assert (again.round_num, again.time_s, again.record["final"]["more"]) == (start.round_num, start.time_s, None)


def test_without_checkpoints_a_widened_table_gets_none(tmp_path):
    record = RunRecord(tmp_path, {"settings": {}})
    with Checkpoints(record, every=None, keep=None) as checkpoints:
        record.add(outcome(0))
        checkpoints.after(outcome(0))
        checkpoints.widen(["more"])
    assert rounds(tmp_path) == []
