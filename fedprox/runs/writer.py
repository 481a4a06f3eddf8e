"""The run directory: what a run leaves behind, written as it goes.

metrics.csv         one row per round, round 0 (the initial model) included
clients.csv         one row per client of each cohort, one per draw of a client that was drawn several times
classes.csv         with evaluation.per_class, one row per class of each evaluated round
run.json            settings, seed, versions, git commit, hardware, timings, memory, result, status
model.safetensors   the last global model
checkpoint/         what a resumed run goes on from; see `fedprox.runs.checkpoint`

`fedprox.experiment.run` adds curves.png, and Hydra its .hydra/ and main.log.
"""

import csv
import errno
import hashlib
import io
import json
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import torch
from safetensors.torch import save

from fedprox.errors import RunStopped, UserError, on_record, printable
from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.results import Round
from fedprox.runs.reader import number
from fedprox.storage import annotate_errors, write_atomic

Mark = Mapping[str, Any]


def is_kept(file: Path, mark: Mark) -> bool:
    """Return whether a file begins with all that it had when it was marked."""
    try:
        with file.open("rb") as opened:
            return bool(hashlib.sha256(opened.read(mark["num_bytes"])).hexdigest() == mark["sha256"])
    except OSError:
        return False


class CsvTable:
    """Appends rows; what stands after the last mark can be taken back.

    Attributes:
        columns: The header.
        mark: How far the file is kept.
    """

    def __init__(self, file: Path, columns: Sequence[str], mark: Mark | None = None) -> None:
        """Begin a file with its header, or go on where it was marked: what stands after that goes.

        Raises:
            UserError: If what stands before the mark is not what stood there.
        """
        self.columns = tuple(columns)
        self._name = file
        self._digest = hashlib.sha256()
        if mark is None:
            self._file = file.open("w+b", buffering=0)
            self._num_bytes = 0
            self.add([columns])
        else:
            self._file = file.open("r+b", buffering=0)
            kept = self._file.read(mark["num_bytes"])
            self._digest.update(kept)
            if self._digest.hexdigest() != mark["sha256"]:
                self._file.close()
                raise UserError(f"{file} was changed since the last checkpoint; bring it back, or start the run anew")
            self._num_bytes = len(kept)
        self.set_mark()
        self.back_to_mark()

    def add(self, rows: Iterable[Iterable[object]]) -> None:
        """Append rows."""
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        content = text.getvalue().encode()
        with annotate_errors(self._name):
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._digest.update(content)
        self._num_bytes += len(content)

    def widen(self, columns: Sequence[str]) -> None:
        """Add columns, which are empty in the rows that there are; earlier marks do not fit any longer."""
        self._file.seek(0)
        _, *rows = csv.reader(io.StringIO(self._file.read().decode(), newline=""))
        self._file.seek(0)
        self._file.truncate()
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self.columns = (*self.columns, *columns)
        self.add([self.columns, *([*row, *[""] * len(columns)] for row in rows)])
        self.set_mark()

    def set_mark(self) -> None:
        """Keep the file as far as it has come now."""
        self.mark: Mark = {"num_bytes": self._num_bytes, "sha256": self._digest.hexdigest()}

    def back_to_mark(self) -> None:
        """Take away what came after the last mark."""
        self._file.seek(self.mark["num_bytes"])
        self._file.truncate()

    def sync(self) -> None:
        """Return once the rows are on the disk."""
        with annotate_errors(self._name):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


METRICS = ("round", "test_loss", "test_accuracy", "train_loss_cohort", "num_clients_counted", "time_s", "drift")
FEDERATION = (  # more columns with evaluation=clients
    "train_loss",
    "train_accuracy",
    "gradient_variance",
    "gradient_variance_unweighted",
    "dissimilarity_b",
    "gamma_mean",
    "gamma_max",
)
SPREAD = ("client_accuracy_std", "client_accuracy_worst", "client_accuracy_best")  # with evaluation.per_client
_OURS = {*METRICS, *FEDERATION, *SPREAD, "mu"}
CLASSES = ("round", "class", "num_examples", "accuracy", "name")
CLIENTS = (
    "round",
    "client",
    "num_examples",
    "is_straggler",
    "num_epochs",
    "num_steps",
    "counted",
    "train_loss",
    "drift",
)


class RunRecord:
    """Writes one run directory; every row is in its file as soon as it is added.

    Attributes:
        path: The run directory.
        final: The last row of metrics.csv, by column.
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Any],
        columns: Sequence[str] = METRICS,
        *,
        per_class: bool = False,
        class_names: Sequence[str] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a run, or go on with one: status "running" and what is known beforehand.

        Args:
            path: The run directory, which exists.
            facts: Entries of run.json, such as settings and seed.
            columns: Of metrics.csv: METRICS, also FEDERATION, SPREAD, "mu"; those of the strategy come with its first
                metrics.
            per_class: Whether there is a classes.csv.
            class_names: What the classes are called in it; empty where they are only numbers.
            state: How far an earlier process had come with this directory; what it wrote after that goes.

        Raises:
            UserError: If its tables are not what they were then.
        """
        self._own = tuple(columns)
        self._reported: tuple[str, ...] = tuple(state.get("reported", ())) if state else ()
        self._columns = (*self._own, *(name for name in (state or {}).get("final") or () if name not in self._own))
        self.path = path
        self.final: Mapping[str, Any] | None = state["final"] if state else None
        self._best: Mapping[str, Any] | None = state["best"] if state else None
        self._facts = dict(facts)
        headers = {"metrics.csv": self._columns, "clients.csv": CLIENTS}
        self._class_names = tuple(map(printable, class_names))
        if per_class:
            headers["classes.csv"] = CLASSES
        marks = state["tables"] if state else {}
        self._tables = {name: CsvTable(path / name, header, marks.get(name)) for name, header in headers.items()}
        self._is_finished = False
        self._save("running")

    def add(self, outcome: Round) -> Mapping[str, Any] | None:
        """Append a round to metrics.csv and classes.csv, if it was evaluated, and its cohort to clients.csv.

        Returns:
            The row of metrics.csv, if it has one.
        """
        row = None
        if outcome.test is not None:
            values = {**dict.fromkeys(self._columns), **outcome.metrics, **_values(outcome, outcome.test)}
            row = {column: values[column] for column in self._columns}
            self._tables["metrics.csv"].add([row.values()])
            if "classes.csv" in self._tables:
                self._tables["classes.csv"].add(self._class_rows(outcome.round_num, outcome.test))
            self._note(row)
        self._tables["clients.csv"].add(_client_rows(outcome))
        for table in self._tables.values():
            table.set_mark()
        return row

    def _class_rows(self, round_num: int, test: Evaluation) -> Iterator[tuple[object, ...]]:
        """Yield a row per class, as CLASSES has it."""
        for each in test.classes:
            yield round_num, *astuple(each), self._class_names[each.label] if self._class_names else ""

    def lacks(self, outcome: Round) -> list[str]:
        """Return the names of the strategy's metrics that metrics.csv has no column for yet; see `widen`.

        Raises:
            RunStopped: If one is the name of a column of ours, or was not among the strategy's first metrics.
        """
        for name in outcome.metrics:
            metric = f"round {outcome.round_num}: the strategy's metric {name!r}"
            if name in _OURS:
                raise RunStopped(f"{metric} is called like a column of metrics.csv; rename it")
            if self._reported and name not in self._reported:
                first = ", ".join(self._reported)
                raise RunStopped(f"{metric} is new; return it in the first round, too, beside {first}")
        self._reported = self._reported or tuple(outcome.metrics)
        return [name for name in outcome.metrics if name not in self._columns]

    def widen(self, names: Sequence[str]) -> None:
        """Give metrics.csv more columns, which are empty in the rows that there are."""
        self._columns = (*self._columns, *names)
        self._tables["metrics.csv"].widen(names)
        self.final, self._best = (row and {**dict.fromkeys(self._columns), **row} for row in (self.final, self._best))
        self._save("running")  # who follows the run begins again with a file that has changed

    def adopt(self, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Begin with rows of an earlier run, by table and column; what that had no column for stays empty."""
        more = [name for name in (rows["metrics.csv"] or [{}])[0] if name not in _OURS]
        if more:
            self.widen(more)
        for name, table in self._tables.items():
            table.add([row.get(column, "") for column in table.columns] for row in rows[name])
            table.set_mark()
        for row in rows["metrics.csv"]:
            self._note({column: number(row.get(column, "")) for column in self._columns})

    def _note(self, row: Mapping[str, Any]) -> None:
        """Remember a row of metrics.csv for the result."""
        self.final = row
        if self._best is None or row["test_accuracy"] > self._best["test_accuracy"]:
            self._best = row

    def state(self) -> dict[str, Any]:
        """Return how far the tables have come, for a process that goes on from here."""
        marks = {name: table.mark for name, table in self._tables.items()}
        return {"tables": marks, "final": self.final, "best": self._best, "reported": self._reported}

    def sync(self) -> None:
        """Return once all rows are on the disk, and not only with the operating system."""
        for table in self._tables.values():
            table.sync()

    def finish(
        self,
        params: Mapping[str, torch.Tensor],
        timings: Mapping[str, float],
        peak_memory_bytes: int,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Complete the run: its last global model, what it took, and status "finished".

        Args:
            params: The state dict, written as safetensors, which holds tensors only and cannot run code.
            timings: Seconds for setup_s, rounds_s and total_s.
            peak_memory_bytes: Of processes other than this one; this one's is added.
            more: Further entries of run.json.
        """
        write_atomic(self.path / "model.safetensors", save({name: _plain(tensor) for name, tensor in params.items()}))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._facts |= {"timings": dict(timings), "peak_memory_bytes": own + peak_memory_bytes, **(more or {})}
        self._save("finished")
        self._is_finished = True

    def __enter__(self) -> Self:
        """Return the record, whose status stays "running" until `finish`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Keep what was measured, whatever happened; half of a round is not."""
        try:
            for table in self._tables.values():
                table.back_to_mark()
                table.close()
            if self._is_finished:
                return
            if isinstance(error, KeyboardInterrupt):
                self._save("interrupted")
            elif error is not None:
                self._facts["error"] = on_record(error)
                self._save(error.status if isinstance(error, RunStopped) else "failed")
        except OSError:
            if kind is None or not issubclass(kind, OSError):  # else the disk is what failed
                raise

    def _save(self, status: str) -> None:
        """Rewrite run.json, whole or not at all."""
        result = {"final": _valid(self.final), "best": _valid(self._best)} if self.final and self._best else None
        facts = {"status": status, **self._facts, "result": result}
        write_atomic(self.path / "run.json", (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())


def _client_rows(outcome: Round) -> Iterator[tuple[object, ...]]:
    """Yield a row per client of the cohort, as CLIENTS has it."""
    for client in outcome.clients:
        task = client.task
        yield (
            *(outcome.round_num, task.client, client.num_examples, task.is_straggler, task.num_epochs),
            *(client.num_steps, client.counted, client.train_loss, client.drift),
        )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _values(outcome: Round, test: Evaluation) -> dict[str, Any]:
    """Return a round's values by column; None where there is nothing to tell."""
    gammas = outcome.gammas
    return {
        **(asdict(test.federation) if test.federation else {}),
        "round": outcome.round_num,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "train_loss_cohort": outcome.train_loss_cohort,
        "num_clients_counted": outcome.num_clients_counted,
        "time_s": round(outcome.time_s, 6),
        "gamma_mean": fmean(gammas) if gammas else None,
        "gamma_max": max(gammas) if gammas else None,
        "drift": outcome.drift,
        "mu": outcome.mu,
        **dict(zip(SPREAD, astuple(test.spread) if test.spread else [None] * len(SPREAD), strict=True)),
    }


def _valid(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for JSON, which has no nan and no infinity: null for them."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
