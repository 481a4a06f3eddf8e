"""`python -m fedprox.report partition SETTING=VALUE ...`: who would hold what data, drawn and measured."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedprox.errors import UserError, one_line
from fedprox.report.divisions import divisions
from fedprox.report.holdings import table
from fedprox.report.holdings_figure import draw
from fedprox.report.outputs import FIGURES, check_writable


def main(argv: Sequence[str]) -> int:
    """Draw the figure, print the measures, and return the exit status: 0, or 2 for a user's mistake.

    Args:
        argv: The arguments after "partition".
    """
    arguments = _parser().parse_intermixed_args(argv)
    try:
        _report(arguments.overrides, arguments.compare, arguments.out)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot read or write {error.filename or arguments.out}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedprox.report partition",
        description="Draw who would hold what data, without training: a dot per client and class for tens of clients, "
        "a heat map and a histogram of sizes for more. Measures of skew go to standard output.",
        epilog="example: python -m fedprox.report partition dataset=digits num_clients=40 partition=shards "
        "--compare partition.shards_per_client=1,2,5 --out shards.png",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="SETTING=VALUE",
        help="as for python -m fedprox.main; those about training do not matter",
    )
    parser.add_argument(
        "--compare",
        metavar="SETTING=VALUE,VALUE",
        help="a panel for each value of one more setting, such as partition=iid,shards",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("partition.png"),
        metavar="FILE",
        help="the figure: FILE ends in .png, .pdf or .svg (default: %(default)s)",
    )
    return parser


def _report(overrides: list[str], compare: str | None, out: Path) -> None:
    check_writable(out, FIGURES, "--out")
    shown = divisions(overrides, compare)
    draw(shown).savefig(out, dpi=200)
    print(table(shown).to_markdown(index=False, disable_numparse=True))
    print(f"\nfigure: {out}")
