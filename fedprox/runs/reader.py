"""A run directory as it is read: its record, its tables, and how far it is while it is being written."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox.errors import UserError
from fedprox.storage import is_locked, read_regular

RECORD = ("status", "algorithm", "settings", "seed", "name")
# Settings that change no number of a run: where and how it computes, and who is told; and what is done about faults, of
# which a run that goes on had none, unless it drops them.
WHERE = ("engine", "client_resources", "server_device", "data_dir", "checkpoint", "resume", "logger")
_FAULTS = ("on_client_error", "on_divergence", "round_timeout", "on_timeout")
RESUME_MAY_CHANGE = (*WHERE, *_FAULTS)

MAX_BYTES = 2**25  # of run.json; one with a thousand resumptions has two million
MAX_DEPTH = 8  # of settings; far more than any run has

Settings = Mapping[str, Any]
Row = Mapping[str, int | float | None]


def walk(roots: Iterable[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders among and below some, each with the names of what is in it.

    Raises:
        UserError: If one of them is no directory.
    """
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a directory; give a run directory or a folder of runs")
        for folder, folders, files in os.walk(root):
            yield Path(folder), [*folders, *files]


def no_run(roots: Iterable[Path]) -> UserError:
    """Return the error for folders in which no run was found."""
    names = ", ".join(map(str, roots)) or "an empty list of paths"
    return UserError(f"no run.json in or below {names}; give the output folder of a run or of a sweep")


def read_record(file: Path) -> dict[str, Any]:
    """Return run.json.

    Raises:
        UserError: If it cannot be read or lacks a key of RECORD.
    """
    try:
        record = json.loads(read_regular(file, MAX_BYTES).decode())
        lacking = [key for key in RECORD if key not in record]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        if not isinstance(record["settings"], dict) or not isinstance(record["status"], str):
            raise ValueError("its settings must be an object and its status a string")
        flattened(record["settings"])
        return dict(record)
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise broken(file, error) from error


def broken(file: Path, reason: object) -> UserError:
    """Return the error for a file of a run directory that is of no use."""
    return UserError(f"{file} cannot be used: {reason}; mend it or move this run away")


def flattened(settings: Settings) -> dict[str, Any]:
    """Return settings as dotted name -> value; lists are values, mappings are taken apart.

    Raises:
        ValueError: If they are nested deeper than MAX_DEPTH.
    """
    return dict(_leaves(settings, "", 0))


def _leaves(settings: Settings, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        raise ValueError(f"settings is nested deeper than {MAX_DEPTH} levels")
    for key, value in settings.items():
        if isinstance(value, Mapping) and (value or depth == 0):
            yield from _leaves(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def as_texts(settings: Settings, without: Sequence[str] = ()) -> dict[str, str]:
    """Return settings as dotted name -> JSON text, on every level without some names."""
    left_out = set(without)
    return {
        name: json.dumps(value) for name, value in flattened(settings).items() if left_out.isdisjoint(name.split("."))
    }


def differences(earlier: Settings, present: Settings, free: Sequence[str] = RESUME_MAY_CHANGE) -> list[str]:
    """Return in words where two runs' settings differ in what changes numbers."""
    kept = {name for name in _FAULTS if earlier.get(name) == "drop"}  # what was dropped is part of its numbers
    if "on_timeout" in kept:
        kept.add("round_timeout")
    was, now = (as_texts(settings, [*set(free) - kept]) for settings in (earlier, present))
    names = sorted({name for name in was | now if was.get(name) != now.get(name)})
    return [f"{name}={now.get(name, 'left out')} (was {was.get(name, 'left out')})" for name in names]


def status_of(run_dir: Path, settings: Settings) -> str | None:
    """Return how far a run directory is with these settings.

    Returns:
        "finished", "interrupted" and the like; None if there is no run, one with other settings, or none that can be
        read.
    """
    try:
        record = read_record(run_dir / "run.json")
        return None if differences(record["settings"], settings) else str(record["status"])
    except (UserError, AttributeError, TypeError):
        return None


def read_rows(file: Path, num_bytes: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table of a run and its rows; text after the last line end was still being written.

    Args:
        file: Such as metrics.csv.
        num_bytes: As far as it is read; None for all.

    Raises:
        UserError: If it cannot be read, or a row has too few or too many values.
    """
    try:
        content = read_regular(file)[:num_bytes]
        text = content[: content.rfind(b"\n") + 1].decode()
        header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
        if len(set(header)) < len(header):
            raise ValueError(f"its header {header} has a column twice")
        for line, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise ValueError(f"line {line} has {len(row)} values for {len(header)} columns")
        return header, rows
    except (OSError, ValueError, csv.Error) as error:
        raise broken(file, error) from error


def read_metrics(file: Path, num_bytes: int | None = None) -> list[Row]:
    """Return the rows of metrics.csv, None for empty cells; see `read_rows`."""
    header, rows = read_rows(file, num_bytes)
    try:
        return [dict(zip(header, map(number, row), strict=True)) for row in rows]
    except ValueError as error:
        raise broken(file, error) from error


def number(text: str) -> int | float | None:
    """Return the number in a cell of a table; None if it is empty."""
    if not text:
        return None
    return int(text) if text.isdigit() else float(text)


SILENT = "stopped without a word"  # the status of a run on record as running that no process has any more
_RATE_OVER = 20  # rows over which the rate is taken


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        status: As in run.json, or SILENT.
        num_rounds: How many it is to do.
        round_num: The last that was evaluated; None before the first.
        accuracy: Test accuracy after it, 0 .. 1.
        best: The best test accuracy so far.
        time_s: Seconds that its rounds took so far; if it has finished, the whole run.
        rate: Rounds per second lately, > 0; None while nothing can be told.
        error: Why it failed; "" if it did not.
    """

    status: str
    num_rounds: int
    round_num: int | None = None
    accuracy: float | None = None
    best: float | None = None
    time_s: float | None = None
    rate: float | None = None
    error: str = ""

    @property
    def left_s(self) -> float | None:
        """The seconds that a running run has left, as far as that can be told."""
        if self.status != "running" or not self.rate or self.round_num is None:
            return None
        return (self.num_rounds - self.round_num) / self.rate


class FollowedRun:
    """A run directory whose files are read again when they have changed.

    Attributes:
        path: The run directory.
        record: Its run.json as it was last readable; None before.
    """

    def __init__(self, path: Path) -> None:
        """Follow a run directory, which need not be there yet."""
        self.path = path
        self.record: Mapping[str, Any] | None = None
        self._rows: list[Row] = []
        self._versions: dict[str, tuple[int, ...]] = {}

    def look(self) -> Progress | None:
        """Return how far the run is now; None while it has no run.json that can be read."""
        if self._is_new("run.json"):
            with suppress(UserError):
                self.record = read_record(self.path / "run.json")
        if self.record is None:
            return None
        status, settings = str(self.record["status"]), self.record["settings"]
        num_rounds, error = int(settings.get("num_rounds", 0)), str(self.record.get("error", ""))
        if status != "running":
            return Progress(status, num_rounds, **_result(self.record), error=error)
        if self._is_new("metrics.csv"):
            self._rows = _evaluated(self.path / "metrics.csv")
        return Progress("running" if is_locked(self.path) else SILENT, num_rounds, **_latest(self._rows))

    def _is_new(self, name: str) -> bool:
        """Return whether a file is another one than at the last look."""
        try:
            facts = (self.path / name).stat()
            version: tuple[int, ...] = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
        except OSError:
            version = ()
        known, self._versions[name] = self._versions.get(name), version
        return version != known


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json says of a run that nobody is writing; it is complete then."""
    result = record.get("result") or {"final": {}, "best": {}}
    final, timings = result["final"], record.get("timings") or {}
    return {
        "round_num": final.get("round"),
        "accuracy": final.get("test_accuracy"),
        "best": result["best"].get("test_accuracy"),
        "time_s": timings.get("total_s", final.get("time_s"))
        if record["status"] == "finished"
        else final.get("time_s"),
    }


def duration(time_s: float) -> str:
    """Return a time in the unit that suits it: 12 s, 12 min, 12.3 h."""
    if time_s < 90:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"


def _evaluated(file: Path) -> list[Row]:
    """Return the rows of metrics.csv; none if it is not there or damaged, of which the report tells."""
    try:
        rows = read_metrics(file)
    except UserError:
        return []
    return [row for row in rows if all(row.get(name) is not None for name in ("round", "test_accuracy", "time_s"))]


def _latest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the rows so far say of a run."""
    if not rows:
        return {}
    first, last = rows[-_RATE_OVER:][0], rows[-1]
    time_s = last["time_s"] - first["time_s"]
    return {
        "round_num": last["round"],
        "accuracy": last["test_accuracy"],
        "best": max(row["test_accuracy"] for row in rows),
        "time_s": last["time_s"],
        "rate": (last["round"] - first["round"]) / time_s if time_s > 0 else None,
    }
