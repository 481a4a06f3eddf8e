"""Figure and table of how data are divided among clients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedprox.data.federated import Integers
from fedprox.data.heterogeneity import Distributions, Skew, label_distributions
from fedprox.report.style import PALETTE, WIDTH, blank_figure, finish_plain

DOT_CLIENTS, DOT_CLASSES = 60, 40  # at most so many get a dot per client and class; more become a heat map
NARROW_CLIENTS = 20  # at most so many fit into half the width


@dataclass(frozen=True)
class Division:
    """Data divided among clients.

    Attributes:
        name: Its name above its panel and in the table.
        counts: Training examples of each class at each client, shape (num_clients, num_classes).
        skew: Its measures of skew.
    """

    name: str
    counts: Integers
    skew: Skew

    @property
    def is_dotted(self) -> bool:
        """Whether there are few enough clients and classes for a dot each."""
        num_clients, num_classes = self.counts.shape
        return bool(num_clients <= DOT_CLIENTS and num_classes <= DOT_CLASSES)

    @property
    def is_narrow(self) -> bool:
        """Whether half the figure's width is enough for its dots."""
        return self.is_dotted and len(self.counts) <= NARROW_CLIENTS


def table(divisions: Sequence[Division]) -> pd.DataFrame:
    """Return the formatted measures of skew, a row per division; see `fedprox.data.heterogeneity.Skew`."""
    rows = []
    for division in divisions:
        skew = division.skew
        (fewest, mean, most), (smallest, median, largest) = skew.effective_classes, skew.sizes
        rows.append(
            {
                "partition": division.name,
                "clients": f"{skew.num_clients}",
                "examples": f"{skew.num_examples}",
                "smallest": f"{smallest}",
                "median": f"{median:.10g}",
                "largest": f"{largest}",
                "Gini of sizes": f"{skew.gini:.3f}",
                "effective classes (range)": f"{mean:.2f} ({fewest:.2f} to {most:.2f})",
                "Jensen-Shannon distance": f"{skew.js_distance:.3f}",
            }
        )
    return pd.DataFrame(rows)


def heading(division: Division) -> str:
    """Return a division's name, sizes and measures in three lines that fit into half the figure's width."""
    skew = division.skew
    (fewest, mean, most), (smallest, median, largest) = skew.effective_classes, skew.sizes
    return (
        f"{division.name}\n"
        f"{skew.num_clients} clients with {smallest} to {largest} examples (median {median:.10g})\n"
        f"JS distance {skew.js_distance:.2f}  ·  effective classes {mean:.1f} ({fewest:.1f} to {most:.1f})  ·  "
        f"Gini {skew.gini:.2f}"
    )


def by_class(shares: Distributions) -> Integers:
    """Return the clients sorted by their largest class, then by their second largest, then by the largest one's share.

    Args:
        shares: Share of each class at each client, shape (num_clients, num_classes).
    """
    most_first = np.argsort(-shares, axis=1, kind="stable")
    first, second = most_first[:, 0], most_first[:, min(1, shares.shape[1] - 1)]
    return np.lexsort((-shares[np.arange(len(shares)), first], second, first))


def size_bins(sizes: Integers) -> NDArray[np.float64]:
    """Return the edges of at most 20 bins of sizes: of equal width, or of equal ratio if the sizes span a wide range.

    A wide range is more than a factor of ten and reaches beyond 200: below, rounding to whole sizes spoils the ratios.

    Args:
        sizes: Examples of each client, all >= 1, shape (num_clients,).
    """
    smallest, largest = int(sizes.min()), int(sizes.max())
    if largest > max(200, 10 * smallest):
        edges = np.unique(np.geomspace(smallest, largest + 1, 21).round())
    else:
        width = -(-(largest - smallest + 1) // 20)
        edges = np.arange(smallest, largest + 1 + width, width, dtype=np.float64)
    return edges - 0.5  # sizes are whole: none lies on an edge


CELL = 0.22  # inches per class in a panel of dots; the labels of the axis take a tenth of it
LABELS = 0.55  # inches left of the dots
SHARES = LinearSegmentedColormap.from_list("shares", ["white", PALETTE[1], PALETTE[2], "#00263F"])


def draw(divisions: Sequence[Division]) -> Figure:
    """Draw a panel for each division, all at one scale, with its measures of skew above it.

    Up to DOT_CLIENTS clients get a dot per class, with an area proportional to the examples, and above it a bar for all
    their examples. More clients become the columns of a heat map in the order of `by_class`, next to a histogram of
    their sizes.
    """
    columns = 2 if len(divisions) > 1 and all(division.is_narrow for division in divisions) else 1
    heights = [max(map(_height, divisions[place : place + columns])) for place in range(0, len(divisions), columns)]
    figure = blank_figure(height=sum(heights))
    figure.set_figwidth(WIDTH / 2 if len(divisions) == 1 and divisions[0].is_narrow else WIDTH)
    figure.set_layout_engine("constrained")
    panels = figure.subfigures(len(heights), columns, squeeze=False, height_ratios=heights)
    for panel, division in zip(panels.flat, divisions, strict=False):  # the last panel may stay empty
        panel.suptitle(heading(division), fontsize=8, x=0.02, ha="left", linespacing=1.4)
        same_kind = [each.counts for each in divisions if each.is_dotted == division.is_dotted]
        (_draw_dots if division.is_dotted else _draw_map)(panel, division.counts, same_kind)
    return figure


def _height(division: Division) -> float:
    """Return the height of a division's panel in inches."""
    return 1.65 + CELL * division.counts.shape[1] if division.is_dotted else 3.0


def _draw_dots(panel: SubFigure, counts: Integers, same_scale: Sequence[Integers]) -> None:
    """Draw a dot per client and class, and above them a bar per client, at one scale for several divisions."""
    num_clients, num_classes = counts.shape
    most = max(int(each.max()) for each in same_scale)
    bars, dots = panel.subplots(2, 1, sharex=True, height_ratios=[0.6, CELL * num_classes])
    bars.bar(np.arange(num_clients), counts.sum(axis=1), color=PALETTE[1], width=0.8)
    bars.set_ylim(0, 1.05 * max(int(each.sum(axis=1).max()) for each in same_scale))
    bars.set_ylabel("examples", fontsize=8)
    bars.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    cell = 72 * min(0.9 * CELL, (panel.bbox.width / panel.dpi - LABELS) / num_clients)  # points, on the shorter side
    clients, classes = np.nonzero(counts)
    areas = (0.95 * cell) ** 2 * counts[clients, classes] / most
    dots.scatter(clients, classes, areas, color=PALETTE[2], lw=0)
    dots.set_xlim(-0.6, num_clients - 0.4)
    dots.set_ylim(-0.6, num_classes - 0.4)
    dots.set_xlabel(f"client  (largest dot: {most} examples)", fontsize=8)
    dots.grid(color="0.93", lw=0.7)
    finish_plain(bars, label_size=8)
    _finish_classes(dots)
    dots.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))


def _draw_map(panel: SubFigure, counts: Integers, same_scale: Sequence[Integers]) -> None:
    """Draw a heat map of the sorted clients and a histogram of their sizes, at one scale for several divisions."""
    heat, histogram = panel.subplots(1, 2, width_ratios=[3.2, 1])
    shares = label_distributions(counts)
    image = heat.imshow(
        shares[by_class(shares)].T,  # matplotlib averages clients that share a pixel
        aspect="auto",
        origin="lower",
        extent=(0, len(counts), -0.5, counts.shape[1] - 0.5),
        cmap=SHARES,
        vmin=0,
        vmax=max(float(label_distributions(each).max()) for each in same_scale),
    )
    bar = panel.colorbar(image, ax=heat, pad=0.01, fraction=0.04)
    bar.set_label("share of the client's examples", fontsize=8)
    bar.ax.tick_params(labelsize=8, color="0.6")
    bar.outline.set_visible(False)
    heat.set_xlabel("clients, sorted by their largest class", fontsize=8)
    bins = size_bins(np.concatenate([each.sum(axis=1) for each in same_scale]))
    histogram.hist(counts.sum(axis=1), bins=bins.tolist(), color=PALETTE[1])
    histogram.set_xscale("log" if np.ptp(np.diff(bins)) else "linear")
    histogram.set_xlabel("examples", fontsize=8)
    histogram.set_ylabel("clients", fontsize=8)
    histogram.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    finish_plain(histogram, label_size=8)
    _finish_classes(heat)


def _finish_classes(axes: Axes) -> None:
    axes.set_ylabel("class", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=11, integer=True))
    finish_plain(axes, label_size=8)
