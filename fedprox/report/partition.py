"""`python -m fedprox.report partition SETTING=VALUE ...`: how data would be divided, drawn and measured."""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fedprox.cli.options import Parser
from fedprox.config.checks import check_targets
from fedprox.config.compose import compose, each_value_once
from fedprox.config.schema import Config
from fedprox.data.federated import Integers
from fedprox.data.heterogeneity import class_counts, measure
from fedprox.data.sources.site_facts import FEWEST, agree, shared_counts
from fedprox.errors import UserError, printable
from fedprox.report.outputs import FIGURES, check_writable
from fedprox.report.partition_figure import DOT_CLIENTS, Division, draw, table
from fedprox.report.style import save
from fedprox.seeds import Stream, generator

MAX_PANELS = 20  # more make a figure too tall to look at


def divisions(overrides: Sequence[str], compare: str | None = None) -> list[Division]:
    """Return how the settings divide the data among clients; settings of the training are ignored.

    Args:
        overrides: As for `fedprox.main`, such as dataset=digits, each with one value.
        compare: One more override with several values, such as partition.alpha=0.1,1, for a division each.

    Raises:
        UserError: If a setting or a data file is invalid; all settings are checked before data are loaded.
    """
    configs = [(name, _checked(words)) for name, words in _variants(overrides, compare)]
    return [_division(name, config) for name, config in configs]


def _variants(overrides: Sequence[str], compare: str | None) -> list[tuple[str, list[str]]]:
    """Return the name and all overrides of each division; the name is "" if there is only one."""
    for override in overrides:
        if len(list(each_value_once([override]))) > 1:
            raise UserError(f"{override} has several values; to compare them use --compare {override}")
    if compare is None:
        return [("", list(overrides))]
    values = [value for variant in each_value_once([compare]) for value in variant]
    if not 2 <= len(values) <= MAX_PANELS:
        raise UserError(
            f"--compare must give 2 to {MAX_PANELS} values, such as partition.alpha=0.1,1, got {len(values)} "
            f"in {compare}"
        )
    return [(value.lstrip("+"), [*overrides, value]) for value in values]


def _checked(overrides: list[str]) -> Config:
    """Return the configuration with a cohort of one, because nothing is trained here.

    Raises:
        UserError: If a setting is invalid; whether this machine could train like that is not checked.
    """
    config = compose([*overrides, "clients_per_round=1"])
    check_targets(config)
    return config


def _division(name: str, config: Config) -> Division:
    """Load and divide the data, and measure the skew of the clients' training examples."""
    from fedprox.experiment.data import data_name, divided_data  # imports torch, which --help does not need

    if config.is_deployment and config.has_sites:
        counts = _counts_of_sites(config)
    else:
        data = divided_data(config)
        counts = class_counts(data.examples.classes, data.train, data.examples.num_classes)
    name = name or f"{data_name(config.dataset)}, {config.partition.name}"
    return Division(name, counts, measure(counts, generator(config.seed, Stream.PAIRS)))


def _counts_of_sites(config: Config) -> Integers:
    """Return what the sites of a federation tell: training examples of each class at each, numbers below ten as 0.

    Raises:
        UserError: If they cannot be asked, do not fit together, or do not share these numbers.
    """
    from fedprox.deployment.submit import ask_sites

    with TemporaryDirectory(prefix="fedprox-") as folder:
        told = ask_sites(config, Path(folder))
    if told is None:
        raise UserError(
            "engine.connection names another server, on which facts.json is, so no figure is drawn here; the lines "
            "above have its numbers"
        )
    counts = shared_counts(told, agree(told, config.dataset.arguments.get("classes")).classes)
    untold = {site.name: site.num_examples - int(row.sum()) for site, row in zip(told, counts, strict=True)}
    if any(untold.values()):
        each = ", ".join(f"{printable(name)}: {num}" for name, num in untold.items() if num)
        line = f"classes with fewer than {FEWEST} examples at a site count as 0, so figure and table lack examples"
        print(f"warning: {line} ({each})", file=sys.stderr)
    return counts


def main(argv: Sequence[str]) -> None:
    """Draw the figure and print the measures, given the arguments after "partition".

    Raises:
        UserError: If an argument or a data file is invalid.
        OSError: If a file cannot be read or written.
    """
    arguments = _parser().parse_intermixed_args(argv)
    check_writable(arguments.out, FIGURES, "--out")
    shown = divisions(arguments.overrides, arguments.compare)
    save(draw(shown), arguments.out)
    print(table(shown).to_markdown(index=False, disable_numparse=True))
    print(f"\nfigure: {arguments.out}")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fedprox.report partition",
        description="Draw how data would be divided among clients, without training: a dot per client and class for up "
        f"to {DOT_CLIENTS} clients, a heat map and a histogram of sizes for more. "
        "Measures of skew go to standard output.",
        epilog="example: python -m fedprox.report partition dataset=digits num_clients=40 partition=shards "
        "--compare partition.shards_per_client=1,2,5 --out shards.png",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="SETTING=VALUE",
        help="as for python -m fedprox.main; settings of the training are ignored",
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
