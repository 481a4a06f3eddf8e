"""`python -m fedprox.report watch DIR [DIR ...]`: how far runs are, while they run."""

import argparse
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from fedprox.cli.jobs import TABLE as JOBS
from fedprox.cli.jobs import WAITING, read_table
from fedprox.errors import UserError, printable
from fedprox.runs.reader import SILENT, FollowedRun, Progress, as_texts, duration, no_run, walk
from fedprox.storage import is_locked

# What is worth seeing first, where a terminal is too small for all runs.
_FIRST = ("running", SILENT, "failed", "diverged", "interrupted", WAITING)
_NOT_LINES_OF_RUNS = 5  # heading, rule, an empty line, the count, the cursor
_NO_TERMINAL_WIDTH = 100_000  # no line is broken that a program may read

Row = Mapping[str, str]


class RunTable:
    """Runs among and below some folders, and the jobs of sweeps there that have no run yet."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Watch folders.

        Raises:
            UserError: If one is no directory, or there is no run and no sweep.
        """
        self._folders = folders
        self._runs: dict[Path, FollowedRun] = {}
        self._flat: dict[Path, tuple[object, dict[str, str]]] = {}
        if not any(_found(folders)):
            raise no_run(folders)

    def look(self) -> tuple[list[Row], bool]:
        """Return a row per run, and whether all of them have ended."""
        found = list(_found(self._folders))
        sweeps = [folder for folder, is_run in found if not is_run]
        progress = {folder: self._follow(folder).look() for folder, is_run in found if is_run}
        seen = {folder: each for folder, each in progress.items() if each is not None}
        settings = self._differing(list(seen))
        rows = {folder: {"settings": settings[folder], **_shown(each)} for folder, each in seen.items()}
        for sweep in sweeps:
            for job in read_table(sweep):
                folder = sweep / (job["run"] or job["job"])
                told = {"settings": job["overrides"], "status": job["status"], "reason": job["error"]}
                rows.setdefault(folder, {**_shown(None), **told})
        is_over = not any(each.status == "running" for each in seen.values()) and not any(map(is_locked, sweeps))
        table = [{"run": str(folder), **rows[folder]} for folder in sorted(rows, key=_natural)]
        return [{name: printable(text) for name, text in row.items()} for row in table], is_over

    def _follow(self, folder: Path) -> FollowedRun:
        return self._runs.setdefault(folder, FollowedRun(folder))

    def _differing(self, folders: Sequence[Path]) -> dict[Path, str]:
        """Return by folder the settings that not all runs which have them have the same."""
        flat = {folder: self._settings(folder) for folder in folders}
        values: dict[str, set[str]] = {}
        for settings in flat.values():
            for name, value in settings.items():
                values.setdefault(name, set()).add(value)
        names = [name for name, each in values.items() if len(each) > 1]
        return {
            folder: " ".join(f"{_short(name)}={settings[name]}" for name in names if name in settings)
            for folder, settings in flat.items()
        }

    def _settings(self, folder: Path) -> dict[str, str]:
        record: Any = self._runs[folder].record
        known = self._flat.get(folder)
        if known is None or known[0] is not record:
            flat = as_texts({"repeat_num": 0, **record["settings"]}, ("resume",))
            flat = {name: _target(value) if name.endswith("_target_") else value for name, value in flat.items()}
            known = self._flat[folder] = (record, flat)
        return known[1]


def _found(folders: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield each run directory with True, and each sweep with False."""
    for folder, files in walk(folders):
        if "run.json" in files:
            yield folder, True
        elif JOBS in files:
            yield folder, False


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a key by which 9 comes before 10."""
    words = re.split(r"(\d+)", str(path))
    return [(word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words]


def _short(name: str) -> str:
    return name.removesuffix("._target_")


def _target(value: str) -> str:
    return value.strip('"').rpartition(".")[2]


def _shown(progress: Progress | None) -> dict[str, str]:
    if progress is None:
        return dict.fromkeys(("status", "round", "accuracy", "best", "rounds/s", "left", "reason"), "")
    is_running = progress.status == "running"
    return {
        "status": progress.status,
        "round": "" if progress.round_num is None else f"{progress.round_num}/{progress.num_rounds}",
        "accuracy": _number(progress.accuracy, ".4f"),
        "best": _number(progress.best, ".4f"),
        "rounds/s": _number(progress.rate if is_running else None, ".3g"),
        "left": "" if progress.left_s is None else duration(progress.left_s),
        "reason": progress.error,
    }


def _number(value: float | None, digits: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, digits)


def table(rows: Sequence[Row], num_rows: int | None = None) -> tuple[Table, str]:
    """Return a table of runs, and how many there are of each status.

    Args:
        rows: From `RunTable.look`.
        num_rows: How many are shown at most, those still running before others; None for all.
    """
    counts = Counter(row["status"] for row in rows)
    count = f"{len(rows)} runs: " + ", ".join(f"{number} {status}" for status, number in counts.most_common())
    shown = list(rows)
    if num_rows is not None and len(rows) > num_rows:
        rank = {status: place for place, status in enumerate(_FIRST)}
        order = sorted(range(len(rows)), key=lambda index: rank.get(rows[index]["status"], len(rank)))
        shown = [rows[index] for index in sorted(order[: max(num_rows, 1)])]
        count += f"; {len(shown)} shown"
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
    for name in rows[0] if rows else ():
        if name not in ("settings", "reason") or any(row[name] for row in shown):
            drawn.add_column(name, no_wrap=True)
    for row in shown:
        drawn.add_row(*(row[str(column.header)] for column in drawn.columns))
    return drawn, count


def show(runs: RunTable, every_s: float, once: bool) -> None:
    """Show how far runs are until all have ended: on a terminal in place, elsewhere one table after the other.

    Args:
        runs: Which.
        every_s: Seconds from one look to the next.
        once: Look once.
    """
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else _NO_TERMINAL_WIDTH
    # A record may hold anything: its text is no markup.
    console = Console(force_terminal=is_terminal, width=width, markup=False, highlight=False, emoji=False)
    in_place = is_terminal and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
        while True:
            rows, is_over = runs.look()
            drawn, count = table(rows, console.height - _NOT_LINES_OF_RUNS if in_place else None)
            if live:
                live.update(Group(drawn, "", count), refresh=True)
            else:
                console.print(drawn, "", count, "", sep="\n")
            if once or is_over:
                return
            time.sleep(every_s)


def main(argv: Sequence[str]) -> int:
    """Show how far runs are until all have ended, or Ctrl-C, and return the exit status.

    Args:
        argv: The arguments after "watch".
    """
    arguments = _parser().parse_args(argv)
    try:
        if not arguments.every > 0:
            raise UserError(f"--every must be above 0, in seconds, got {arguments.every:g}")
        show(RunTable(arguments.directories), arguments.every, arguments.once)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the way to end it
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedprox.report watch",
        description="Show how far runs are: status, round, test accuracy, rounds per second and time left, until "
        "all have ended or Ctrl-C.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a run, a sweep or a folder of them")
    parser.add_argument(
        "--every", type=float, default=3.0, metavar="S", help="seconds from one look to the next (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="look once")
    return parser
