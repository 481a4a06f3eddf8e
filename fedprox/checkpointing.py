"""Checkpoints are written while a run goes on; the last ones and the one with the best test accuracy are kept."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from fedprox.checkpoint import FOLDER, Checkpoint, content_of, header_of
from fedprox.federation.results import Round
from fedprox.records import RunRecord
from fedprox.storage import write_whole


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
        write_whole(self._file(checkpoint.round_num), content_of(checkpoint))
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
