"""`python -m fedprox.report DIR [DIR ...] --out figure.png`: the figure and the table of any set of runs.

`python -m fedprox.report partition ...` is `fedprox.report.partition`: who holds what data; and
`python -m fedprox.report watch ...` is `fedprox.report.watch`: how far runs are.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.errors import UserError, one_line
from fedprox.report.outputs import FIGURES, TABLES, check_writable

if TYPE_CHECKING:
    import pandas as pd


def main(argv: list[str] | None = None) -> int:
    """Draw the figure, print and write the table, and return the exit status: 0, or 2 for a user's mistake.

    Args:
        argv: The arguments without the program's name; None for those of the process.
    """
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["partition"]:
        from fedprox.report import partition  # here: it imports Hydra, which runs do not need

        return partition.main(given[1:])
    if given[:1] == ["watch"]:
        from fedprox.report import watch

        return watch.main(given[1:])
    arguments = _parser().parse_args(given)
    try:
        _report(arguments)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


_DESCRIPTION = """\
Compare runs: test loss and accuracy by round, a row per straggler level, a line per algorithm, mean and
standard deviation over repetitions. The table goes to standard output."""
_EPILOG = f"""\
examples:
  python -m fedprox.report multirun --out figure.png
  python -m fedprox.report multirun --out figure.pdf --table results.csv --by partition.alpha

other commands (write ./partition or ./watch for a folder of runs with that name):
  python -m fedprox.report partition --help    show how data would be divided among clients
  python -m fedprox.report watch --help        show the progress of running runs

documentation: {HOME}"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedprox.report",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run directory, or a folder of runs at any depth",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the figure: FILE ends in .png, .pdf or .svg"
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="also write the table: .md as printed, .csv with all digits; may be given several times",
    )
    parser.add_argument(
        "--last",
        type=int,
        default=10,
        metavar="N",
        help="average each run's last N rounds (default: %(default)s)",
    )
    parser.add_argument(
        "--level", type=float, metavar="A", help="also count the rounds to a test accuracy of A, such as 0.6"
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="SETTING",
        help="also distinguish runs by this setting, such as partition.alpha; may be given several times",
    )
    parser.add_argument("--drift", action="store_true", help="also draw how far the clients' models drift")
    return parser


def _report(arguments: argparse.Namespace) -> None:
    out, tables, last, level = arguments.out, arguments.table, arguments.last, arguments.level
    check_writable(out, FIGURES, "--out")
    for table in tables:
        check_writable(table, TABLES, "--table")
    if last < 1:
        raise UserError(f"--last must be >= 1, got {last}")
    if level is not None and not 0 < level <= 1:
        raise UserError(f"--level must be above 0 and at most 1, got {level:g}; it is a share of the test examples")
    from fedprox.report.figures import comparison  # here: pandas and matplotlib, which neither watch nor --help need
    from fedprox.report.summary import read_runs, readable, summarise

    frame = read_runs(arguments.directories, arguments.by)
    summary = summarise(frame, last, level)
    text = readable(summary, last).to_markdown(index=False)
    try:
        comparison(frame, drift=arguments.drift).savefig(out, dpi=200)
        for table in tables:
            _write_table(table, summary, text)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}") from error
    print(text)
    print(f"\nfigure: {out}")


def _write_table(file: Path, summary: "pd.DataFrame", text: str) -> None:
    content = summary.to_csv(index=False) if file.suffix.lower() == ".csv" else f"{text}\n"
    file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads it may leave (`... | head`); nothing is lost then
    sys.exit(ends_quietly(main))
