"""`python -m fedprox.report partition SETTING=VALUE ...`: who would hold what data, drawn and measured."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedprox.config.checks import check_targets
from fedprox.config.compose import compose, each_value_once
from fedprox.config.schema import Config
from fedprox.data.heterogeneity import class_counts, measure
from fedprox.errors import UserError, one_line
from fedprox.report.outputs import FIGURES, check_writable
from fedprox.report.partition_figure import Division, draw, table
from fedprox.seeds import Stream, generator

MOST_PANELS = 20  # more make a picture too high to look at


def divisions(overrides: Sequence[str], compare: str | None = None) -> list[Division]:
    """Return the data as the settings divide them among clients; settings about training do not matter.

    Args:
        overrides: As for `fedprox.main`, such as dataset=digits, each with one value.
        compare: One more with several values, such as partition.alpha=0.1,1: a division for each.

    Raises:
        UserError: If a setting or a data file is wrong; all settings are checked before data are loaded.
    """
    configs = [(name, _checked(words)) for name, words in _variants(overrides, compare)]
    return [_division(name, config) for name, config in configs]


def _variants(overrides: Sequence[str], compare: str | None) -> list[tuple[str, list[str]]]:
    """Return a name and all overrides of each division; "" where there is only one."""
    for override in overrides:
        if len(list(each_value_once([override]))) > 1:
            raise UserError(f"{override} has several values; to see them side by side say --compare {override}")
    if compare is None:
        return [("", list(overrides))]
    values = [value for (value,) in each_value_once([compare])]
    if not 2 <= len(values) <= MOST_PANELS:
        raise UserError(
            f"--compare must give 2 to {MOST_PANELS} values, such as partition.alpha=0.1,1, got {len(values)} "
            f"in {compare}"
        )
    return [(value.lstrip("+"), [*overrides, value]) for value in values]


def _checked(overrides: list[str]) -> Config:
    """Return the configuration with a cohort of one: nobody trains here.

    Raises:
        UserError: If a setting is wrong. Whether this machine could train like that does not matter.
    """
    config = compose([*overrides, "clients_per_round=1"])
    check_targets(config)
    return config


def _division(name: str, config: Config) -> Division:
    """Load the data, divide them and measure the skew of what the clients train on."""
    from fedprox.experiment.data import data_name, divided_data  # here: they import torch, which --help does not need

    data = divided_data(config)
    counts = class_counts(data.examples.labels, data.train, data.examples.num_classes)
    name = name or f"{data_name(config.dataset)}, {config.partition.name}"
    return Division(name, counts, measure(counts, generator(config.seed, Stream.PAIRS)))


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
