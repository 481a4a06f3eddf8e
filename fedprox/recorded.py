"""What run.json says of an earlier run, and whether its settings are those of another one."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprox.config.earlier import completed
from fedprox.errors import UserError

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
    """Return in words where two runs' settings differ in what changes numbers; runs may be of earlier versions."""
    past = completed(earlier)
    kept = {name for name in _FAULTS if past.get(name) == "drop"}  # what was dropped is part of its numbers
    if "on_timeout" in kept:
        kept.add("round_timeout")
    was, now = (flattened(settings, [*set(free) - kept]) for settings in (past, completed(present)))
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
