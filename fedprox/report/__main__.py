"""`python -m fedprox.report DIR [DIR ...] --out figure.png`: figure and table of any set of runs.

`python -m fedprox.report partition ...` is `fedprox.report.partition`, which draws how data are divided;
`python -m fedprox.report watch ...` is `fedprox.report.watch`, which shows the progress of runs.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedprox.cli.options import Parser
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.errors import UserError, one_line
from fedprox.process import exit_status
from fedprox.report.outputs import FIGURES, TABLES, check_writable
from fedprox.storage import annotate_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from fedprox.report.style import Paper
    from fedprox.report.summary import Axis


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


_PAGE_HEIGHT = 9.5  # inches
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
        "--out",
        action="append",
        required=True,
        type=Path,
        metavar="FILE",
        help="the figure: FILE ends in .png, .pdf or .svg; may be repeated",
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="also write the table: .md as printed, .csv with all digits, .tex for LaTeX; may be repeated",
    )
    parser.add_argument(
        "--width",
        metavar="WIDTH",
        help="size the figure and its text for print: column (3.3 inches), page (6.9 inches), or inches",
    )
    parser.add_argument(
        "--ylim",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="ends of the accuracy axis, such as 0 1 (default: all curves of a data set fit)",
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
        "--baseline",
        metavar="ALGORITHM",
        help='add to the table how much more accurate the others are than this one, such as "FedProx (mu = 0)", in the '
        "same repetitions, with 95%% confidence intervals (.tex always has them, without this option to FedAvg)",
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
    for out in arguments.out:
        check_writable(out, FIGURES, "--out")
    for table in arguments.table:
        check_writable(table, TABLES, "--table")
    from fedprox.report.style import Paper, save  # these import pandas and matplotlib, which --help does not need
    from fedprox.report.summary import BYTES, ROUND, VIRTUAL, WALL, check_rounds, read_runs

    check_rounds(arguments.last, arguments.level)
    paper, view = Paper.of(arguments.width), _view(arguments.ylim)
    frame = read_runs(arguments.directories, arguments.by)
    x = {"virtual": VIRTUAL, "wall": WALL}.get(arguments.by_time, BYTES if arguments.by_bytes else ROUND)
    printed, texts = _tables(arguments, frame, x)
    figure = _figure(arguments, frame, x, paper, view)
    if arguments.width and (height := figure.get_figheight()) > _PAGE_HEIGHT:
        print(
            f"warning: the figure is {height:.0f} inches high, more than a page; draw fewer data sets or straggler "
            "levels in it, or --metric accuracy",
            file=sys.stderr,
        )
    for out in arguments.out:
        save(figure, out, paper.dpi)
    for table in arguments.table:
        with annotate_errors(table):
            table.write_text(texts[table.suffix.lower()](), encoding="utf-8")
    print(printed)
    print(f"\nfigure: {', '.join(map(str, arguments.out))}")


def _tables(
    arguments: argparse.Namespace, frame: "DataFrame", x: "Axis"
) -> tuple[str, Mapping[str, Callable[[], str]]]:
    """Return the table as printed, and ending -> a function that makes it for a file with this ending."""
    from fedprox.report.latex import latex_table
    from fedprox.report.paired import choose_baseline, with_differences
    from fedprox.report.summary import readable, summarise

    last, named = arguments.last, arguments.baseline
    baseline = choose_baseline(frame, named)
    alone = summarise(frame, last, arguments.level, x)
    compared = with_differences(alone, frame, baseline, last) if baseline else alone
    summary = compared if named else alone
    printed = readable(summary, last).to_markdown(index=False)
    return printed, {
        ".md": lambda: f"{printed}\n",
        ".csv": lambda: summary.to_csv(index=False),
        ".tex": lambda: latex_table(compared, last),
    }


def _view(ends: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the ends of the accuracy axis; None: they follow from the data.

    Raises:
        UserError: If they are not in order, or not accuracies.
    """
    if ends is None:
        return None
    low, high = ends
    if not 0 <= low < high <= 1:
        raise UserError(f"--ylim must be two accuracies in order, within 0 and 1, got {low:g} {high:g}; such as 0 1")
    return low, high


def _figure(
    arguments: argparse.Namespace, frame: "DataFrame", x: "Axis", paper: "Paper", view: tuple[float, float] | None
) -> "Figure":
    """Draw the figure that the options ask for."""
    if arguments.personal:
        from fedprox.report.personal import personal

        return personal(frame, paper if arguments.width else None)
    from fedprox.report.figures import accuracy, comparison

    if arguments.metric:
        return accuracy(frame, x, paper=paper if arguments.width else None, view=view)
    return comparison(frame, x, drift=arguments.drift, paper=paper, view=view)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `| head` may leave early; nothing is lost
    sys.exit(ends_quietly(main))
