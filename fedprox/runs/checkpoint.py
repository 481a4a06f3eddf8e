"""A checkpoint: everything that later rounds depend on, one safetensors file, which holds no code.

It has a checksum over all that it says, and is of use only beside the tables that it goes on from.
"""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedprox.errors import UserError
from fedprox.federation.results import Round
from fedprox.runs.serialize import decoded, encoded
from fedprox.runs.writer import RunRecord, is_kept
from fedprox.storage import CHECKPOINTS, checksum, write_atomic

_log = logging.getLogger("fedprox")
FOLDER = CHECKPOINTS
# What reading a file may raise that holds anything whatever; a depth of 10,000 brackets is a RecursionError.
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
        accuracy: On the test set; None if the round was not evaluated.
    """

    round_num: int
    arrays: ArrayRecord
    carried: Mapping[str, Any]
    time_s: float
    record: Mapping[str, Any]
    accuracy: float | None


def forget_after(run_dir: Path, rounds_done: int) -> None:
    """Remove the checkpoints of later rounds, which are another run's or damaged, and what was half written.

    Raises:
        UserError: If there is something that cannot be removed.
    """
    files = list((run_dir / FOLDER).glob("*"))
    for file in files:
        if file.is_dir():
            raise UserError(f"{file} is a folder where a checkpoint belongs; move it away")
    for file in files:
        header = header_of(file)
        if not header or header.round_num > rounds_done:
            file.unlink()


def latest(run_dir: Path) -> Checkpoint | None:
    """Return the latest checkpoint of a run that is whole; None if it has not come to its first.

    Damaged ones are told of in a warning line each and passed over.

    Raises:
        UserError: If there are checkpoints, and all are damaged.
    """
    headers = _headers(run_dir)
    damaged = [f"{file} is no whole checkpoint" for file, header in headers.items() if header is None]
    found = None
    for _, file in sorted(((header.round_num, file) for file, header in headers.items() if header), reverse=True):
        try:
            found = _fitting(read(file), file)
            break
        except UserError as error:
            damaged.append(str(error))
    if damaged and not found:
        raise UserError(f"{damaged[-1]}, and no other is left; bring it back, or start the run anew")
    for line in damaged:
        _log.warning("%s; an earlier one is taken", line)
    return found


def of_round(round_num: int, run_dir: Path) -> Checkpoint:
    """Return the checkpoint of one round.

    Raises:
        UserError: If it is not left, or damaged.
    """
    files = {header.round_num: file for file, header in _headers(run_dir).items() if header}
    if round_num not in files:
        left = f"those of rounds {', '.join(map(str, sorted(files)))}" if files else "none"
        raise UserError(
            f"branch_round={round_num} has no checkpoint in {run_dir}, which has {left}; name a round that has one; a "
            "run with checkpoint.keep=null keeps them all"
        )
    return _fitting(read(files[round_num]), files[round_num])


def _headers(run_dir: Path) -> dict[Path, "Header | None"]:
    """Return the header of each checkpoint; None for one that is damaged.

    Raises:
        UserError: If something else is in the place of their folder.
    """
    folder = run_dir / FOLDER
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} must be a folder; move that file away")
    return {file: header_of(file) for file in folder.glob("*.safetensors")}


def _fitting(checkpoint: Checkpoint, file: Path) -> Checkpoint:
    """Return a checkpoint whose run directory has the rows that it goes on from.

    Raises:
        UserError: If they were changed, or it is another run's checkpoint.
    """
    for name, mark in checkpoint.record["tables"].items():
        if not is_kept(file.parents[1] / name, mark):
            raise UserError(f"{file.parents[1] / name} is not what it was when {file} was written")
    return checkpoint


def read(file: Path) -> Checkpoint:
    """Return what a file holds.

    Raises:
        UserError: If it cannot be read, or is not what was written.
    """
    try:
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata["checksum"] != checksum(metadata["state"], arrays):
            raise ValueError("its checksum does not fit")
        return _checked(Checkpoint(**decoded(metadata["state"], arrays)))
    except _DAMAGE as error:
        raise UserError(f"{file} is no whole checkpoint: {' '.join(str(error).split())}") from error


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint that is made as ours are: anybody can write a checksum."""
    marks = checkpoint.record["tables"].values()
    is_ours = (
        type(checkpoint.round_num) is int
        and checkpoint.round_num >= 0
        and isinstance(checkpoint.arrays, ArrayRecord)
        and isinstance(checkpoint.time_s, float)
        and {"strategy", "mu"} <= checkpoint.carried.keys()
        and {"layers", "statistics"} <= checkpoint.carried["strategy"].keys()
        and {"tables", "final", "best"} <= checkpoint.record.keys()
        and all(type(mark["num_bytes"]) is int and isinstance(mark["sha256"], str) for mark in marks)
    )
    if not is_ours:
        raise ValueError("it lacks what a checkpoint has")
    return checkpoint


@dataclass(frozen=True)
class Header:
    """What can be told of a checkpoint without its arrays; see Checkpoint."""

    round_num: int
    accuracy: float | None


def header_of(file: Path) -> Header | None:
    """Return what the beginning of a file says, without its arrays and not checked; None if it cannot be read."""
    try:
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
        state = dict(json.loads(metadata["state"])["dict"])
        accuracy = state["accuracy"]
        return Header(int(state["round_num"]), None if accuracy is None else float(accuracy))
    except _DAMAGE:
        return None


def content_of(checkpoint: Checkpoint) -> bytes:
    """Return what is written into its file."""
    text, arrays = encoded({name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__})
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return save(arrays, {"state": text, "checksum": checksum(text, arrays)})


class Checkpoints:
    """Writes the checkpoints of one run, beside its rounds; that of its last one also when it ends or is interrupted.

    Where a round is due while the disk is still busy with an earlier one, it is passed over.
    """

    def __init__(self, record: RunRecord, *, every: int | None, keep: int | None) -> None:
        """Go on with those that the run directory has.

        Args:
            record: The run's tables.
            every: Rounds from one checkpoint to the next; None for none at all.
            keep: How many of the last ones are kept, besides the best; None for all.
        """
        self._record, self._folder, self._every, self._keep = record, record.path / FOLDER, every, keep
        headers = filter(None, map(header_of, self._folder.glob("*")))
        self._written = {header.round_num: header.accuracy for header in headers}
        self._latest: Checkpoint | None = None
        self._disk = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def after(self, outcome: Round) -> None:
        """Take note of a round whose rows are written, and write its checkpoint if one is due."""
        accuracy = outcome.test.accuracy if outcome.test else None
        self._latest = Checkpoint(
            *(outcome.round_num, outcome.arrays, outcome.carried, outcome.time_s),
            *(self._record.state(), accuracy),
        )
        is_due = self._every and outcome.round_num and outcome.round_num % self._every == 0
        if is_due and (self._writing is None or self._writing.done()):
            self._wait()
            self._writing = self._disk.submit(self._write, self._latest)

    def forget(self) -> None:
        """Remove all checkpoints: the tables beside which they are of use have changed."""
        self._wait()
        for round_num in self._written:
            self._file(round_num).unlink(missing_ok=True)
        self._written.clear()

    def _wait(self) -> None:
        """Return once nothing is being written; raise what went wrong."""
        if self._writing:
            self._writing.result()

    def _write(self, checkpoint: Checkpoint) -> None:
        self._record.sync()
        self._folder.mkdir(exist_ok=True)
        write_atomic(self._file(checkpoint.round_num), content_of(checkpoint))
        self._written[checkpoint.round_num] = checkpoint.accuracy
        for round_num in self._superfluous():
            self._file(round_num).unlink(missing_ok=True)
            del self._written[round_num]

    def _write_last(self) -> None:
        if self._every and self._latest and self._latest.round_num not in self._written:
            self._write(self._latest)

    def _superfluous(self) -> list[int]:
        if self._keep is None:
            return []
        measured = {num: accuracy for num, accuracy in sorted(self._written.items()) if accuracy is not None}
        best = max(measured, key=measured.__getitem__, default=None)
        return [round_num for round_num in sorted(self._written)[: -self._keep] if round_num != best]

    def _file(self, round_num: int) -> Path:
        return self._folder / f"round_{round_num:06d}.safetensors"

    def __enter__(self) -> Self:
        """Return the checkpoints, whose last one is written at the end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the last round's checkpoint; where the disk is what failed, those before it stay."""
        try:
            self._disk.submit(self._write_last).result()  # after what is being written: never two at once
            self._wait()
        except OSError:
            if kind is None:
                raise
        finally:
            self._disk.shutdown()
