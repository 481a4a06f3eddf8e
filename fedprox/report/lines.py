"""Colour, dashes and marker of each algorithm's line, so that lines differ in grey and to the colour-blind, too."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from fedprox.report.style import PALETTE
from fedprox.report.summary import algorithm_order

Dashes = str | tuple[float, tuple[float, ...]]

# Dotted is left out, because it means that some runs have ended; so are the circle of a branch and the triangle of a
# loss that leaves the view. Four and seven have no common divisor: 28 lines differ.
_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
_MARKERS = ("s", "D", "v", "X", "P", "<", "*")
_RAMPS = ("Blues", "Greens", "Purples")  # for a family each; from light to dark, which greys and prints keep
_LIGHTEST, _DARKEST = 0.5, 1.0  # of a ramp, which begins with white; names in its colours must be readable, too
_SMALLEST_FAMILY = 3  # two colours of the palette are told apart more easily


@dataclass(frozen=True)
class Line:
    """The look of an algorithm's line.

    Attributes:
        colour: As matplotlib takes it.
        dashes: Matplotlib's line style.
        marker: Matplotlib's marker, drawn at some of the points.
    """

    colour: str
    dashes: Dashes
    marker: str


def lines_of(frame: pd.DataFrame) -> dict[str, Line]:
    """Return algorithm -> look of its line, in `algorithm_order`; the first look is reserved for FedAvg.

    Three or more algorithms that differ in mu alone are a family: their colours go from light to dark as mu rises. The
    other algorithms have the palette's colours, which repeat, whereas dashes and marker together differ for 28 lines.
    """
    algorithms = algorithm_order(frame)
    others = [algorithm for algorithm in algorithms if algorithm != "FedAvg"]
    mu = frame.drop_duplicates("algorithm").set_index("algorithm")["mu"].astype(float).to_dict()
    colours = _colours(others, {str(name): value for name, value in mu.items()})
    looks = {
        algorithm: Line(colours[algorithm], _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)])
        for place, algorithm in enumerate(others, 1)
    }
    return {algorithm: looks.get(algorithm, Line(PALETTE[0], _DASHES[0], _MARKERS[0])) for algorithm in algorithms}


def _colours(algorithms: Sequence[str], mu: Mapping[str, float]) -> dict[str, str]:
    """Return algorithm -> colour; see `lines_of`."""
    families: dict[str, list[str]] = defaultdict(list)
    for algorithm in algorithms:
        families[re.sub(r"\bmu = [^,)]+", "mu", algorithm)].append(algorithm)
    large = [members for members in families.values() if len(members) >= _SMALLEST_FAMILY]
    ramped: dict[str, str] = {}
    for members, ramp in zip(large, _RAMPS, strict=False):
        for place, algorithm in enumerate(sorted(members, key=lambda name: mu[name])):
            share = _LIGHTEST + (_DARKEST - _LIGHTEST) * place / (len(members) - 1)
            ramped[algorithm] = to_hex(colormaps[ramp](share))
    palette = PALETTE[3:] if ramped else PALETTE[1:]  # without the blues, which are the first ramp's
    others = [algorithm for algorithm in algorithms if algorithm not in ramped]
    return ramped | {algorithm: palette[index % len(palette)] for index, algorithm in enumerate(others)}
