"""`python -m fedprox.report watch DIR [DIR ...]`: progress of runs while they run."""

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from fedprox.cli.jobs import TABLE as JOBS
from fedprox.cli.jobs import WAITING, read_table
from fedprox.cli.options import Parser
from fedprox.errors import UserError, printable
from fedprox.runs.reader import LOST, Progress, Settings, as_texts, duration, no_run, progress_of, walk
from fedprox.storage import is_locked

# What to show first if a terminal is too small for all runs.
_FIRST = ("running", LOST, "failed", "diverged", "interrupted", WAITING)
_OTHER_LINES = 5  # heading, rule, an empty line, the count, the cursor
_MAX_EVERY_S = 86_400.0
_NO_TERMINAL_WIDTH = 100_000  # no line is broken that a program may read

Row = Mapping[str, str]


def look(folders: Sequence[Path]) -> tuple[list[Row], bool]:
    """Return a row per run and per waiting job of a sweep, and whether all of them have ended.

    Args:
        folders: Folders that are or hold, at any depth, runs and sweeps.

    Raises:
        UserError: If one is not a directory, or there is no run and no sweep.
    """
    found = list(_found(folders))
    if not found:
        raise no_run(folders)
    sweeps = [folder for folder, is_run in found if not is_run]
    progress = {folder: each for folder, is_run in found if is_run and (each := progress_of(folder))}
    settings = _differing({folder: each.settings for folder, each in progress.items()})
    rows = {folder: {"settings": settings[folder], **_cells(each)} for folder, each in progress.items()}
    for sweep in sweeps:
        for job in read_table(sweep):
            cells = {"settings": job["overrides"], "status": job["status"], "reason": job["error"]}
            rows.setdefault(sweep / (job["run"] or job["job"]), {**_cells(None), **cells})
    is_over = not any(each.status == "running" for each in progress.values()) and not any(map(is_locked, sweeps))
    ordered = [{"run": str(folder), **rows[folder]} for folder in sorted(rows, key=_natural)]
    return [{name: printable(text) for name, text in row.items()} for row in ordered], is_over


def _found(folders: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield each run directory with True and each sweep with False."""
    for folder, files in walk(folders):
        if "run.json" in files:
            yield folder, True
        elif JOBS in files:
            yield folder, False


def _differing(settings: Mapping[Path, Settings]) -> dict[Path, str]:
    """Return, by folder, the settings that have different values in different runs."""
    flat = {folder: as_texts({"repeat_num": 0, **each}, ("resume",)) for folder, each in settings.items()}
    values: dict[str, set[str]] = {}
    for each in flat.values():
        for name, value in each.items():
            values.setdefault(name, set()).add(value)
    names = [name for name, several in values.items() if len(several) > 1]
    return {
        folder: " ".join(_assignment(name, each[name]) for name in names if name in each)
        for folder, each in flat.items()
    }


def _assignment(name: str, value: str) -> str:
    """Return a setting as it would be given: partition=iid instead of partition._target_=a.b.iid."""
    if not name.endswith("._target_"):
        return f"{name}={value}"
    function = value.strip('"').rpartition(".")[2]
    return f"{name.removesuffix('._target_')}={function}"


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sorting key by which 9 comes before 10."""
    words = re.split(r"(\d+)", str(path))
    return [(word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words]


def _cells(progress: Progress | None) -> dict[str, str]:
    if progress is None:
        return dict.fromkeys(("status", "round", "accuracy", "best", "rounds/s", "left", "reason"), "")
    return {
        "status": progress.status,
        "round": "" if progress.round_num is None else f"{progress.round_num}/{progress.num_rounds}",
        "accuracy": _number(progress.accuracy, ".4f"),
        "best": _number(progress.best, ".4f"),
        "rounds/s": _number(progress.rate if progress.status == "running" else None, ".3g"),
        "left": "" if progress.left_s is None else duration(progress.left_s),
        "reason": progress.error,
    }


def _number(value: float | None, digits: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, digits)


def table(rows: Sequence[Row], num_rows: int | None = None) -> tuple[Table, str]:
    """Return a table of runs, and a line that counts them by status.

    At most `num_rows` of them are shown, running ones first.
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


def show(folders: Sequence[Path], every_s: float, once: bool) -> None:
    """Show the progress of runs until all have ended: on a terminal in place, elsewhere table after table."""
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else _NO_TERMINAL_WIDTH
    # A record may hold any text, which must not be read as markup.
    console = Console(force_terminal=is_terminal, width=width, markup=False, highlight=False, emoji=False)
    in_place = is_terminal and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
        while True:
            rows, is_over = look(folders)
            drawn, count = table(rows, console.height - _OTHER_LINES if in_place else None)
            if live:
                live.update(Group(drawn, "", count), refresh=True)
            else:
                console.print(drawn, "", count, "", sep="\n")
            if once or is_over:
                return
            time.sleep(every_s)


def main(argv: Sequence[str]) -> None:
    """Show the progress of runs until all have ended or Ctrl-C, given the arguments after "watch".

    Raises:
        UserError: If an argument is invalid; see `look`.
    """
    arguments = _parser().parse_args(argv)
    if not 0 < arguments.every <= _MAX_EVERY_S:
        raise UserError(f"--every must be above 0 and at most {_MAX_EVERY_S:g}, in seconds, got {arguments.every:g}")
    with suppress(KeyboardInterrupt):  # the usual way to end it
        show(arguments.directories, arguments.every, arguments.once)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fedprox.report watch",
        description="Show the progress of runs: status, round, test accuracy, rounds per second and time left, until "
        "all have ended or you press Ctrl-C.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a run, a sweep or a folder of them")
    parser.add_argument(
        "--every", type=float, default=3.0, metavar="S", help="seconds between two tables (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="show one table and exit")
    return parser
