"""How far a run is, read from its directory again and again while it is being written: run.json and metrics.csv."""

import csv
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox.errors import UserError
from fedprox.storage import is_taken

RECORD = ("status", "algorithm", "settings", "seed", "name")
# Settings that change no number of a run: where and how it computes, and who is told; and what is done about faults, of
# which a run that goes on had none, unless it drops them.
WHERE = ("engine", "client_resources", "server_device", "data_dir", "checkpoint", "resume", "logger")
_FAULTS = ("on_client_error", "on_divergence", "round_timeout", "on_timeout")
FREE = (*WHERE, *_FAULTS)

MAX_BYTES = 2**25  # of run.json; one with a thousand resumptions has two million

Settings = Mapping[str, Any]


def read_record(file: Path) -> dict[str, Any]:
    """Return run.json.

    Raises:
        UserError: If it cannot be read or lacks a key of RECORD.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        record = json.loads(file.read_text(encoding="utf-8"))
        lacking = [key for key in RECORD if key not in record]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        if not isinstance(record["settings"], dict) or not isinstance(record["status"], str):
            raise ValueError("its settings or its status are none")
        return dict(record)
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise broken(file, error) from error


def broken(file: Path, reason: object) -> UserError:
    """Return the error for a file of a run directory that is of no use."""
    return UserError(f"{file} cannot be used: {reason}; mend it or move this run away")


def flattened(settings: Settings, without: Sequence[str] = (), prefix: str = "") -> dict[str, str]:
    """Return settings as dotted name -> JSON text, on every level without some names."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if key in without:
            continue
        if isinstance(value, Mapping):
            flat |= flattened(value, without, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat


def differences(earlier: Settings, present: Settings, free: Sequence[str] = FREE) -> list[str]:
    """Return in words where two runs' settings differ in what changes numbers."""
    kept = {name for name in _FAULTS if earlier.get(name) == "drop"}  # what was dropped is part of its numbers
    if "on_timeout" in kept:
        kept.add("round_timeout")
    was, now = (flattened(settings, [*set(free) - kept]) for settings in (earlier, present))
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


def rows_before(first_round: int, file: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.csv before a round; a last line that was cut off is none of them."""
    rows: list[dict[str, Any]] = []
    last = -1
    with file.open(newline="") as lines:
        for cells in csv.DictReader(lines):
            round_num = int(cells["round"])
            if not last < round_num < first_round:
                break
            values = {name: float(value) if value else None for name, value in cells.items()}
            rows.append(values | {"round": round_num})
            last = round_num
    return rows


SILENT = "stopped without a word"  # the status of a run on record as running that no process has any more
_RATE_OVER = 20  # rows of metrics.csv over which the rate is taken


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
    """A run directory whose files are read as far as they are new.

    Attributes:
        path: The run directory.
        record: Its run.json as it was last readable; None before.
    """

    def __init__(self, path: Path) -> None:
        """Follow a run directory, which need not be there yet."""
        self.path = path
        self.record: Mapping[str, Any] | None = None
        self._version: tuple[int, ...] = ()
        self._rows = _Rows(path / "metrics.csv")

    def look(self) -> Progress | None:
        """Return how far the run is now; None while it has no run.json that can be read."""
        self._look_at_record()
        if self.record is None:
            return None
        status, settings = str(self.record["status"]), self.record["settings"]
        num_rounds, error = int(settings.get("num_rounds", 0)), str(self.record.get("error", ""))
        if status != "running":
            return Progress(status, num_rounds, **_result(self.record), error=error)
        rows = self._rows
        rows.look()
        return Progress(
            "running" if is_taken(self.path) else SILENT,
            num_rounds,
            round_num=None if rows.last is None else int(rows.last["round"]),
            accuracy=None if rows.last is None else rows.last["test_accuracy"],
            best=rows.best,
            time_s=None if rows.last is None else rows.last["time_s"],
            rate=rows.rate(),
        )

    def _look_at_record(self) -> None:
        file = self.path / "run.json"
        try:
            facts = file.stat()
            version = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
            if version != self._version:
                self.record, self._version = read_record(file), version
                self._rows = _Rows(self.path / "metrics.csv")  # another run's, it may be
        except (OSError, UserError):
            pass


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


class _Rows:
    """The rows of a metrics.csv, each read once.

    Attributes:
        last: The last whole one, by column; None before the first.
        best: The best test accuracy.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._restart()

    def _restart(self) -> None:
        self._num_bytes = 0
        self._columns: list[str] = []
        self.last: dict[str, float] | None = None
        self.best: float | None = None
        self._lately: deque[dict[str, float]] = deque(maxlen=_RATE_OVER)

    def look(self) -> None:
        """Read what has come since; what stands after the last line end is still being written."""
        try:
            with self._file.open("rb") as opened:
                if opened.seek(0, 2) < self._num_bytes:  # a resumed run has taken rows back
                    self._restart()
                opened.seek(self._num_bytes)
                text = opened.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._num_bytes += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            self._take(line.split(","))

    def _take(self, values: list[str]) -> None:
        if not self._columns:
            self._columns = values
            return
        try:
            row = {name: float(value) for name, value in zip(self._columns, values, strict=True) if value}
            seen = {name: row[name] for name in ("round", "test_accuracy", "time_s")}
        except (KeyError, ValueError):  # damaged; the report tells of it
            return
        self.last = seen
        self._lately.append(seen)
        self.best = seen["test_accuracy"] if self.best is None else max(self.best, seen["test_accuracy"])

    def rate(self) -> float | None:
        """Return the rounds per second over the last rows."""
        if len(self._lately) < 2:
            return None
        first, last = self._lately[0], self._lately[-1]
        time_s = last["time_s"] - first["time_s"]
        return (last["round"] - first["round"]) / time_s if time_s > 0 else None
