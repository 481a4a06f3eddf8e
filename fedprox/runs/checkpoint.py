"""Checkpoints: everything that later rounds depend on, in one safetensors file per round.

A file holds no code and has a checksum over its content. It can be used only together with the run's tables as they
were when it was written, so it also holds their marks (`fedprox.runs.csv_table`).
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedprox.errors import UserError
from fedprox.federation.results import Round
from fedprox.process import uninterrupted
from fedprox.runs.csv_table import begins_as_marked
from fedprox.runs.serialize import decoded, encoded
from fedprox.runs.writer import RunRecord
from fedprox.storage import CHECKPOINTS, check_regular, checksum, write_atomic

_log = logging.getLogger("fedprox")
_NAME = re.compile(r"round_(\d+)\.safetensors")
# What reading a file with arbitrary content may raise; a JSON text of 10,000 brackets is a RecursionError.
_DAMAGE = (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its rounds.

    Attributes:
        round_num: The round.
        arrays: The global model.
        carried: See `fedprox.federation.results.Round`.
        time_s: Seconds since the first round began, without those in which the run was interrupted.
        record: How far the run directory's tables were; see `fedprox.runs.writer.RunRecord.state`.
        accuracy: On the test set, or minus the loss without one (`Evaluation.score`); None if it was not evaluated.
    """

    round_num: int
    arrays: ArrayRecord
    carried: Mapping[str, Any]
    time_s: float
    record: Mapping[str, Any]
    accuracy: float | None


def latest(run_dir: Path) -> Checkpoint | None:
    """Return a run's latest usable checkpoint; None if it has not written any yet.

    Damaged checkpoints are skipped with a warning each.

    Raises:
        UserError: If there are checkpoints, and all are damaged.
    """
    damaged = []
    for file in reversed(_files(run_dir).values()):
        try:
            found = _read_matching(file)
        except UserError as error:
            damaged.append(str(error))
            continue
        for line in damaged:
            _log.warning("%s; using an earlier checkpoint", line)
        return found
    if damaged:
        raise UserError(f"{damaged[0]}, and there is no earlier checkpoint; restore it or start the run again")
    return None


def of_round(round_num: int, run_dir: Path) -> Checkpoint:
    """Return the checkpoint of one round.

    Raises:
        UserError: If it is missing or damaged.
    """
    files = _files(run_dir)
    if round_num not in files:
        left = f"those of rounds {', '.join(map(str, files))}" if files else "none"
        raise UserError(
            f"branch_round={round_num} has no checkpoint in {run_dir}, which has {left}; name a round that has one; "
            "a run with checkpoint.keep=null keeps them all"
        )
    return _read_matching(files[round_num])


def rounds_of(run_dir: Path) -> list[int]:
    """Return the rounds after which a run has a checkpoint."""
    return list(_files(run_dir))


def forget_after(run_dir: Path, rounds_done: int) -> None:
    """Remove the checkpoints of later rounds, which a resumed run computes again, and partly written files."""
    kept = [file for round_num, file in _files(run_dir).items() if round_num <= rounds_done]
    for file in (run_dir / CHECKPOINTS).glob("round_*"):
        if file not in kept:
            file.unlink()


def _files(run_dir: Path) -> dict[int, Path]:
    """Return round -> checkpoint file in the order of the rounds."""
    files = (run_dir / CHECKPOINTS).glob("*")
    return dict(sorted((int(name[1]), file) for file in files if (name := _NAME.fullmatch(file.name))))


def _read_matching(file: Path) -> Checkpoint:
    """Return a checkpoint whose run directory still has the rows that it continues from.

    Raises:
        UserError: If it is damaged, or the rows have changed, or it is another run's checkpoint.
    """
    checkpoint = read(file)
    for name, mark in checkpoint.record["tables"].items():
        table = file.parents[1] / name
        if not begins_as_marked(table, mark):
            raise UserError(f"{table} has changed since {file} was written")
    return checkpoint


def read(file: Path) -> Checkpoint:
    """Return the content of a file.

    Raises:
        UserError: If it cannot be read, or is not what was written.
    """
    try:
        check_regular(file)  # a stranger's pipe would never end
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata["checksum"] != checksum(metadata["state"], arrays):
            raise ValueError("its checksum does not match")
        return _checked(Checkpoint(**decoded(metadata["state"], arrays)))
    except _DAMAGE as error:
        raise UserError(f"{file} is truncated or corrupt: {' '.join(str(error).split())}") from error


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint that has the parts of ours: anyone can write a checksum that matches."""
    marks = checkpoint.record["tables"].values()
    is_complete = (
        type(checkpoint.round_num) is int
        and checkpoint.round_num >= 0
        and isinstance(checkpoint.arrays, ArrayRecord)
        and isinstance(checkpoint.time_s, float)
        and {"strategy", "mu"} <= checkpoint.carried.keys()
        and {"layers", "statistics"} <= checkpoint.carried["strategy"].keys()
        and {"tables", "final", "best"} <= checkpoint.record.keys()
        and all(type(mark["num_bytes"]) is int and isinstance(mark["sha256"], str) for mark in marks)
    )
    if not is_complete:
        raise ValueError("a part is missing or of another type")
    return checkpoint


def content_of(checkpoint: Checkpoint) -> bytes:
    """Return the content of a checkpoint's file."""
    text, arrays = encoded({name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__})
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return save(arrays, {"state": text, "checksum": checksum(text, arrays)})


def _accuracy_in(file: Path) -> float | None:
    """Return a checkpoint's accuracy without reading its arrays; None if it has none or is damaged."""
    try:
        check_regular(file)
        with safe_open(file, "np") as opened:
            state = json.loads((opened.metadata() or {})["state"])
        accuracy = dict(state["dict"])["accuracy"]
        return None if accuracy is None else float(accuracy)
    except _DAMAGE:
        return None


class Checkpoints:
    """Writes a run's checkpoints in the background, and that of its last round when the run ends for any reason.

    A checkpoint that is due while an earlier one is still being written is skipped.
    """

    def __init__(
        self, record: RunRecord, *, every: int | None, keep: int | None, start: Checkpoint | None = None
    ) -> None:
        """Continue with the checkpoints that the run directory has.

        Args:
            record: The run's tables.
            every: Rounds from one checkpoint to the next; None for no checkpoints.
            keep: How many of the last ones are kept, besides the best; None for all.
            start: The one that the run is resumed from.
        """
        self._record, self._folder, self._every, self._keep = record, record.path / CHECKPOINTS, every, keep
        self._written = {round_num: _accuracy_in(file) for round_num, file in _files(record.path).items()}
        self._latest = start
        self._disk = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def after(self, outcome: Round) -> None:
        """Take note of a round whose rows are written, and write its checkpoint if one is due."""
        score = outcome.test.score if outcome.test else None
        self._latest = Checkpoint(
            outcome.round_num, outcome.arrays, outcome.carried, outcome.time_s, self._record.state, score
        )
        is_due = self._every and outcome.round_num and outcome.round_num % self._every == 0
        if is_due and (self._writing is None or self._writing.done()):
            self._wait()
            self._writing = self._disk.submit(self._write, self._latest)

    def widen(self, names: Sequence[str]) -> None:
        """Add columns to metrics.csv; a checkpoint of the last round replaces all, which fit only the narrow table."""
        self._wait()
        with uninterrupted():
            self._record.widen(names)
            narrow = list(self._written)
            if self._latest and self._every:
                self._latest = replace(self._latest, record=self._record.state)
                self._write(self._latest)
                narrow = [round_num for round_num in self._written if round_num != self._latest.round_num]
            for round_num in narrow:
                self._remove(round_num)

    def _wait(self) -> None:
        """Return once nothing is being written; raise what went wrong."""
        if self._writing:
            self._writing.result()

    def _write(self, checkpoint: Checkpoint) -> None:
        self._record.sync()  # the rows first: a checkpoint is useless without those that it continues from
        self._folder.mkdir(exist_ok=True)
        write_atomic(self._file(checkpoint.round_num), content_of(checkpoint))
        self._written[checkpoint.round_num] = checkpoint.accuracy
        for round_num in self._superfluous():
            self._remove(round_num)

    def _write_last(self) -> None:
        if self._every and self._latest and self._latest.round_num not in self._written:
            self._write(self._latest)

    def _superfluous(self) -> list[int]:
        if self._keep is None:
            return []
        measured = {num: accuracy for num, accuracy in sorted(self._written.items()) if accuracy is not None}
        best = max(measured, key=measured.__getitem__, default=None)  # the first of several equally good ones
        return [round_num for round_num in sorted(self._written)[: -self._keep] if round_num != best]

    def _remove(self, round_num: int) -> None:
        self._file(round_num).unlink(missing_ok=True)
        del self._written[round_num]

    def _file(self, round_num: int) -> Path:
        return self._folder / f"round_{round_num:06d}.safetensors"

    def __enter__(self) -> Self:
        """Return the checkpoints, whose last one is written at the end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last round's checkpoint; if the disk has failed, the earlier ones stay."""
        try:
            self._disk.submit(self._write_last).result()  # after a write in progress, never beside it
            self._wait()
        except OSError:
            if kind is None:
                raise
        finally:
            self._disk.shutdown()
