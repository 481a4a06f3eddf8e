"""`python -m fedprox.report DIR [DIR ...] --out figure.png`: figure and table of any set of runs.

`python -m fedprox.report partition ...` is `fedprox.report.partition`, which draws how data are divided;
`python -m fedprox.report watch ...` is `fedprox.report.watch`, which shows the progress of runs.
"""

import argparse
import signal
import sys
from pathlib import Path

from fedprox.cli.options import Parser
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.errors import UserError, one_line
from fedprox.process import exit_status
from fedprox.report.outputs import FIGURES, TABLES, check_writable
from fedprox.storage import annotate_errors


def main(argv: list[str] | None = None) -> int:
    """Draw the figure, print and write the table.

    Returns:
        The exit status: 0; 2 after a user error; 130 after Ctrl-C.
    """
    given = sys.argv[1:] if argv is None else argv
    try:
        if given[:1] == ["partition"]:
            from fedprox.report import partition  # imports Hydra, which a report on runs does not need

            partition.main(given[1:])
        elif given[:1] == ["watch"]:
            from fedprox.report import watch

            watch.main(given[1:])
        else:
            _report(_parser().parse_args(given))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename} cannot be read or written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        return exit_status(interrupt)
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


def _parser() -> Parser:
    parser = Parser(
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
        help="also write the table: .md as printed, .csv with all digits; may be repeated",
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
        help="also distinguish runs by this setting, such as partition.alpha; may be repeated",
    )
    axis = parser.add_mutually_exclusive_group()
    axis.add_argument(
        "--by-time",
        choices=["virtual", "wall"],
        help="draw over seconds instead of rounds, and with --level count those: of the virtual clock, for which runs "
        "need devices=, or of this machine",
    )
    axis.add_argument(
        "--by-bytes",
        action="store_true",
        help="draw over the bytes that clients have sent instead of rounds, and with --level count those; runs need "
        "update=float32 or a compression",
    )
    figure = parser.add_mutually_exclusive_group()
    figure.add_argument("--drift", action="store_true", help="also draw the mean drift of the clients' models")
    figure.add_argument(
        "--personal", action="store_true", help="draw each client's own model against the global one, at the runs' end"
    )
    figure.add_argument(
        "--metric", choices=["accuracy"], help="draw test accuracy only, with the names of the lines beside their ends"
    )
    return parser


def _report(arguments: argparse.Namespace) -> None:
    out, tables, last = arguments.out, arguments.table, arguments.last
    check_writable(out, FIGURES, "--out")
    for table in tables:
        check_writable(table, TABLES, "--table")
    from fedprox.report.figures import accuracy, comparison  # imports pandas and matplotlib, which --help does not need
    from fedprox.report.summary import BYTES, ROUND, VIRTUAL, WALL, check_rounds, read_runs, readable, summarise

    check_rounds(last, arguments.level)
    frame = read_runs(arguments.directories, arguments.by)
    x = {"virtual": VIRTUAL, "wall": WALL}.get(arguments.by_time, BYTES if arguments.by_bytes else ROUND)
    summary = summarise(frame, last, arguments.level, x)
    text = readable(summary, last).to_markdown(index=False)
    if arguments.personal:
        from fedprox.report.personal import personal

        figure = personal(frame)
    else:
        figure = accuracy(frame, x) if arguments.metric else comparison(frame, x, drift=arguments.drift)
    with annotate_errors(out):
        figure.savefig(out, dpi=200)
    for table in tables:
        content = summary.to_csv(index=False) if table.suffix.lower() == ".csv" else f"{text}\n"
        with annotate_errors(table):
            table.write_text(content, encoding="utf-8")
    print(text)
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `| head` may leave early; nothing is lost
    sys.exit(ends_quietly(main))
