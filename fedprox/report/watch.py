"""`python -m fedprox.report watch DIR [DIR ...]`: how far runs are, while they run."""

import argparse
import math
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from fedprox.cli.jobs import TABLE, WAITING, read_table
from fedprox.errors import UserError, printable
from fedprox.runs.reader import SILENT, FollowedRun, Progress, as_texts
from fedprox.storage import is_taken

# What is worth seeing first, where a terminal is too small for all runs.
_FIRST = ("running", SILENT, "failed", "diverged", "interrupted", WAITING)
_NOT_LINES_OF_RUNS = 5  # heading, rule, an empty line, the count, the cursor

Row = Mapping[str, str]


class Watched:
    """Runs among and below some folders, and the jobs of sweeps there that have no run yet."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Watch folders.

        Raises:
            UserError: If one is no directory, or there is no run and no sweep.
        """
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is not a directory; give a run directory or a folder of runs")
        self._folders = folders
        self._runs: dict[Path, FollowedRun] = {}
        self._flat: dict[Path, tuple[object, dict[str, str]]] = {}
        if not any(_found(folders)):
            names = ", ".join(map(str, folders))
            raise UserError(f"no run.json in or below {names}; give the output folder of a run or of a sweep")

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
        is_over = not any(each.status == "running" for each in seen.values()) and not any(map(is_taken, sweeps))
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
    """Yield each run directory with True, and each sweep with False; a run has no other below it."""
    for root in folders:
        for folder, below, files in os.walk(root):
            if "run.json" in files:
                below.clear()
                yield Path(folder), True
            elif TABLE in files:
                yield Path(folder), False


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
        "left": _duration(progress.left_s),
        "reason": progress.error,
    }


def _number(value: float | None, digits: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, digits)


def _duration(time_s: float | None) -> str:
    """Return a time in the unit that suits it: 12 s, 12 min, 12.3 h."""
    if time_s is None:
        return ""
    if time_s < 90:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"


def table(rows: Sequence[Row], num_rows: int | None = None) -> list[str]:
    """Return the lines of a table of runs, and how many there are of each status.

    Args:
        rows: From `Watched.look`.
        num_rows: How many are shown at most, those still running before others; None for all.
    """
    from tabulate import tabulate  # type: ignore[import-untyped]

    counts = Counter(row["status"] for row in rows)
    count = f"{len(rows)} runs: " + ", ".join(f"{number} {status}" for status, number in counts.most_common())
    shown = list(rows)
    if num_rows is not None and len(rows) > num_rows:
        rank = {status: place for place, status in enumerate(_FIRST)}
        order = sorted(range(len(rows)), key=lambda index: rank.get(rows[index]["status"], len(rank)))
        shown = [rows[index] for index in sorted(order[: max(num_rows, 1)])]
        count += f"; {len(shown)} shown"
    empty = {name for name in ("settings", "reason") if not any(row[name] for row in shown)}
    values = [{name: value for name, value in row.items() if name not in empty} for row in shown]
    return [*str(tabulate(values, headers="keys", disable_numparse=True)).splitlines(), "", count]


class Screen:
    """Shows a table, in the place of the one before it where that is possible."""

    def __init__(self, out: TextIO) -> None:
        """Show on a stream; on a terminal in place."""
        self._out, self._num_lines = out, 0

    def show(self, rows: Sequence[Row]) -> None:
        """Show rows of `Watched.look`."""
        if not self._out.isatty():
            print("\n".join(table(rows)), end="\n\n", file=self._out, flush=True)
            return
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in table(rows, height - _NOT_LINES_OF_RUNS)]
        up = f"\x1b[{self._num_lines}F\x1b[J" if self._num_lines else ""
        print(up + "\n".join(lines), file=self._out, flush=True)
        self._num_lines = len(lines)


def main(argv: Sequence[str]) -> int:
    """Show how far runs are until all have ended, or Ctrl-C, and return the exit status.

    Args:
        argv: The arguments after "watch".
    """
    arguments = _parser().parse_args(argv)
    try:
        if not arguments.every > 0:
            raise UserError(f"--every must be above 0, in seconds, got {arguments.every:g}")
        watched, screen = Watched(arguments.directories), Screen(sys.stdout)
        is_over = False
        while not is_over:
            rows, is_over = watched.look()
            screen.show(rows)
            if arguments.once:
                break
            if not is_over:
                time.sleep(arguments.every)
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
