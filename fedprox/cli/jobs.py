"""Jobs of a sweep: what an earlier run of the same command has left of them, and the table of their results.

The table is `jobs.csv` in the sweep's directory, a row per job, rewritten as a whole after each job. Jobs may run in
different processes.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox.errors import UserError, printable
from fedprox.runs.reader import RESUME_MAY_CHANGE, differences, progress_of, read_record
from fedprox.storage import locked, write_atomic

TABLE = "jobs.csv"
_RESULT = ("status", "rounds", "num_rounds", "final_accuracy", "best_accuracy", "time_s", "error")
COLUMNS = ("job", "overrides", *_RESULT, "run")
WAITING = "not begun"
Row = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        number: From 0 on.
        overrides: All overrides of its command.
        swept: Those that differ from job to job, in one line.
        run: Its run directory, relative to the sweep's; None if it is known only when the job begins.
    """

    number: int
    overrides: Sequence[str]
    swept: str
    run: str | None


OTHER_DIRECTORY = "name a new directory with hydra.sweep.dir=<folder>, or give the command that made this one"


def earlier_run(run_dir: Path, settings: Mapping[str, Any], remedy: str = OTHER_DIRECTORY) -> dict[str, Any] | None:
    """Return run.json of the run in a job's directory; None if there is no run.

    Raises:
        UserError: If the run has other settings or cannot be read: it would be lost.
    """
    if not (run_dir / "run.json").exists():
        return None
    record = read_record(run_dir / "run.json")
    if changed := differences(record["settings"], settings):
        raise UserError(f"{run_dir} holds a run with other settings: this job has {', '.join(changed)}; {remedy}")
    return record


def is_same_command(record: Mapping[str, Any], config_name: str | None, overrides: Iterable[str]) -> bool:
    """Return whether a run was made by this command, apart from settings that change no number."""
    earlier = record.get("overrides")
    same_name = record.get("config_name") == config_name
    return same_name and isinstance(earlier, list) and _binding(earlier) == _binding(overrides)


def _binding(overrides: Iterable[str]) -> set[str]:
    return {
        word for word in overrides if word.partition("=")[0].lstrip("+~").partition(".")[0] not in RESUME_MAY_CHANGE
    }


def begin_table(sweep_dir: Path, jobs: Iterable[Job]) -> None:
    """Write the table with the results that earlier runs of the command have left."""
    rows = [
        {
            **{"job": str(job.number), "overrides": job.swept, "status": WAITING, "run": job.run or ""},
            **(_result(sweep_dir / job.run) if job.run else {}),
        }
        for job in jobs
    ]
    _write(sweep_dir, rows)


def note(sweep_dir: Path, lock_dir: Path, job: Job, error: str) -> None:
    """Update a job's row.

    Args:
        sweep_dir: Directory of the table.
        lock_dir: Directory shared by this command's jobs, locked while the table is rewritten.
        job: The job.
        error: Why it failed; "" if it did not.
    """
    result = _result(sweep_dir / (job.run or ""))
    if error and result.get("error") != error:  # it failed before it could begin or continue its record
        result = {"status": "failed", "error": error}
    with suppress(OSError), locked(lock_dir, wait=True):  # a full disk has been reported already
        rows = {row["job"]: row for row in read_table(sweep_dir)}
        known = rows.get(str(job.number), {"job": str(job.number), "overrides": job.swept})
        rows[str(job.number)] = {**known, "run": job.run or "", **result}
        _write(sweep_dir, rows.values())


def read_table(sweep_dir: Path) -> list[Row]:
    """Return the rows of a sweep's table, empty if there is no table."""
    try:
        with (sweep_dir / TABLE).open(newline="", encoding="utf-8") as opened:
            return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(opened)]
    except FileNotFoundError:
        return []


def _write(sweep_dir: Path, rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(sweep_dir / TABLE, text.getvalue().encode())


def final_table(sweep_dir: Path) -> str:
    """Update all rows, also those of jobs that were killed, and return the table as text."""
    rows = [
        row if row["status"] == "failed" or not row["run"] else {**row, **_result(sweep_dir / row["run"])}
        for row in read_table(sweep_dir)
    ]
    with suppress(OSError):
        _write(sweep_dir, rows)
    return readable(rows)


def _result(run_dir: Path) -> dict[str, str]:
    """Return the columns _RESULT of a run, empty if it has no readable run.json."""
    progress = progress_of(run_dir)
    if progress is None:
        return {}
    values = (progress.status, progress.round_num, progress.num_rounds, progress.accuracy, progress.best)
    texts = ["" if value is None else str(value) for value in values]
    time_s = "" if progress.time_s is None else f"{progress.time_s:.3f}"
    return dict(zip(_RESULT, [*texts, time_s, progress.error], strict=True))


def readable(rows: Sequence[Row]) -> str:
    """Return the table as text, with the reasons if any job failed."""
    from tabulate import tabulate  # type: ignore[import-untyped]  # here: a single run does not need it

    columns = {
        "job": [row["job"] for row in rows],
        "overrides": [row["overrides"] for row in rows],
        "status": [row["status"] for row in rows],
        "rounds": [f"{row['rounds']}/{row['num_rounds']}" if row["rounds"] else "" for row in rows],
        "accuracy": [_digits(row["final_accuracy"], 4) for row in rows],
        "best": [_digits(row["best_accuracy"], 4) for row in rows],
        "time": [f"{_digits(row['time_s'], 1)} s" if row["time_s"] else "" for row in rows],
    }
    if any(row["error"] for row in rows):
        columns["reason"] = [row["error"] for row in rows]
    columns = {name: list(map(printable, texts)) for name, texts in columns.items()}
    return str(tabulate(columns, headers="keys", disable_numparse=True))


def _digits(text: str, digits: int) -> str:
    return f"{float(text):.{digits}f}" if text else ""
