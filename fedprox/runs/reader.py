"""Reading a run directory: its record (run.json), its tables, and its progress while it is being written."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from fedprox.config.schema import DEFAULTS, present_form
from fedprox.errors import UserError
from fedprox.storage import is_locked, read_regular

COMPLETE = ("finished", "budget")  # statuses of runs that have nothing left to do
RECORD = ("status", "algorithm", "settings", "seed", "name")
# Settings that change no number of a run: where and how it computes, and where it is logged.
PLACEMENT_SETTINGS = ("engine", "client_resources", "server_device", "data_dir", "checkpoint", "resume", "logger")
# A run that can be resumed had no failures yet, unless it drops them: see `differences`.
_FAILURE_SETTINGS = ("on_client_error", "on_divergence", "round_timeout", "on_timeout")
_PROCESSES = ("at_once", "preload", "output")  # of client=script
RESUME_MAY_CHANGE = (*PLACEMENT_SETTINGS, *_FAILURE_SETTINGS, *_PROCESSES)

MAX_BYTES = 2**25  # of run.json; one with a thousand resumptions has two million
MAX_DEPTH = 8  # of settings, far more than any run has

Settings = Mapping[str, Any]
Row = Mapping[str, int | float | None]


def walk(roots: Iterable[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield the given folders and all folders below them, each with the names of its entries.

    Raises:
        UserError: If one of them is not a directory.
    """
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a directory; give a run directory or a folder of runs")
        for folder, folders, files in os.walk(root):
            yield Path(folder), [*folders, *files]


def no_run(roots: Iterable[Path]) -> UserError:
    """Return the error for folders in which no run was found."""
    names = ", ".join(map(str, roots)) or "an empty list of paths"
    return UserError(f"no run.json in {names} or below; give the output folder of a run or of a sweep")


def read_record(file: Path) -> dict[str, Any]:
    """Return run.json.

    Raises:
        UserError: If it cannot be read, lacks a key of RECORD, or has an entry of another form than ours.
    """
    try:
        record = json.loads(read_regular(file, MAX_BYTES).decode())
        lacking = [key for key in RECORD if key not in record]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        if not isinstance(record["settings"], dict) or not isinstance(record["status"], str):
            raise ValueError("its settings must be an object and its status a string")
        flattened(record["settings"])
        _check_forms(record)
        return dict(record)
    except KeyError as error:
        raise broken(file, f"its result lacks {error.args[0]}") from error
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise broken(file, error) from error


def _check_forms(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless what other functions take from a run.json, which may be a stranger's, has its form."""
    result, timings, resumed = (record.get(name) for name in ("result", "timings", "resumed"))
    if result is not None:
        rows: list[Any] = [result.get(name) for name in ("final", "best")] if isinstance(result, Mapping) else [None]
        needed = [(row["round"], row["test_accuracy"]) for row in rows if isinstance(row, Mapping)]  # or KeyError
        if len(needed) < len(rows) or not all(map(_are_numbers, rows)) or not all(_is_number(num) for num, _ in needed):
            raise ValueError("its result must have the rows final and best, of numbers")
    if timings is not None and not _are_numbers(timings):
        raise ValueError("its timings must be numbers by name")
    if not isinstance(resumed, (list, NoneType)):
        raise ValueError("its list of processes that resumed it must be a list")
    num_rounds = record["settings"].get("num_rounds")
    if num_rounds is not None and type(num_rounds) is not int:
        raise ValueError("num_rounds in its settings must be an integer")


def _are_numbers(values: Any) -> bool:
    return isinstance(values, Mapping) and all(value is None or _is_number(value) for value in values.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def broken(file: Path, reason: object) -> UserError:
    """Return the error for a file of a run directory that cannot be used."""
    return UserError(f"{file} cannot be used: {reason}; fix it or move this run away")


def flattened(settings: Settings) -> dict[str, Any]:
    """Return nested settings as dotted name -> value; lists are values.

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
    """Return settings as dotted name -> JSON text, leaving out some names on every level."""
    left_out = set(without)
    return {
        name: json.dumps(value) for name, value in flattened(settings).items() if left_out.isdisjoint(name.split("."))
    }


def differences(earlier: Settings, present: Settings, free: Sequence[str] = RESUME_MAY_CHANGE) -> list[str]:
    """Return the differences between two runs' settings that change numbers, such as "mu=1.0 (was 0.0)".

    What a run of an earlier version lacks had its default.
    """
    kept = {name for name in _FAILURE_SETTINGS if earlier.get(name) == "drop"}  # dropping has changed its numbers
    if "on_timeout" in kept:
        kept.add("round_timeout")
    was, now = (as_texts(completed(settings), [*set(free) - kept]) for settings in (earlier, present))
    names = sorted({name for name in was | now if was.get(name) != now.get(name)})
    return [f"{name}={now.get(name, 'left out')} (was {was.get(name, 'left out')})" for name in names]


def completed(settings: Settings) -> Settings:
    """Return settings with the defaults of groups, and of keys in them, that earlier versions did not have."""
    groups = {name: default for name, default in DEFAULTS.items() if isinstance(default, dict)}
    settings = present_form(settings)
    return {**DEFAULTS, **settings, **{name: {**default, **settings.get(name, {})} for name, default in groups.items()}}


def status_of(run_dir: Path, settings: Settings) -> str | None:
    """Return the status of the run in a directory, such as "finished".

    Returns:
        None if there is no run, it has other settings, or it cannot be read.
    """
    try:
        record = read_record(run_dir / "run.json")
        return None if differences(record["settings"], settings) else str(record["status"])
    except (UserError, AttributeError, TypeError):
        return None


def read_rows(file: Path, num_bytes: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the header and the complete rows of a table; a last line without its end is still being written.

    Args:
        file: Such as metrics.csv.
        num_bytes: Read only so many bytes; None for all.

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


LOST = "lost"  # the status of a run whose record says "running" although its process is gone
_RATE_OVER = 20  # rows from which the rate is computed


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        settings: Of the run.
        status: As in run.json, or LOST.
        num_rounds: Rounds that it is to have.
        round_num: The last evaluated round; None before the first.
        accuracy: On the test set after that round.
        best: The best accuracy so far.
        time_s: Seconds until then; of a finished run, its total.
        rate: Rounds per second; None if unknown.
        error: Why it failed; "" if it did not.
    """

    settings: Settings
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
        """Seconds left; None if the run is not running or its rate is unknown."""
        if self.status != "running" or not self.rate or self.round_num is None:
            return None
        return (self.num_rounds - self.round_num) / self.rate


def progress_of(run_dir: Path) -> Progress | None:
    """Return how far the run in a directory is; None if it has no readable run.json."""
    try:
        record = read_record(run_dir / "run.json")
    except UserError:
        return None
    settings, status = record["settings"], record["status"]
    num_rounds = int(settings.get("num_rounds", 0))
    if status == "running":
        rows = _evaluated(run_dir / "metrics.csv")
        return Progress(settings, "running" if is_locked(run_dir) else LOST, num_rounds, **_latest(rows))
    return Progress(settings, status, num_rounds, **_result(record), error=str(record.get("error", "")))


def _result(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result that run.json has of an ended run."""
    result = record.get("result") or {"final": {}, "best": {}}
    final, timings = result["final"], record.get("timings") or {}
    return {
        "round_num": final.get("round"),
        "accuracy": final.get("test_accuracy"),
        "best": result["best"].get("test_accuracy"),
        "time_s": timings.get("total_s", final.get("time_s")),
    }


def duration(time_s: float) -> str:
    """Return a time in a suitable unit: 12 s, 12 min, 12.3 h."""
    if time_s < 90:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"


def _evaluated(file: Path) -> list[Row]:
    """Return the evaluated rows of metrics.csv; none if it is missing or damaged, which `fedprox.report` reports."""
    try:
        rows = read_metrics(file)
    except UserError:
        return []
    return [row for row in rows if all(row.get(name) is not None for name in ("round", "test_accuracy", "time_s"))]


def _latest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the progress that the rows of a running run show."""
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
