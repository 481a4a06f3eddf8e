"""Who holds what: data divided among clients, its measures in words, and how it is put in order to be drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedprox.data.federated import Integers
from fedprox.data.heterogeneity import Distributions, Skew

DOT_CLIENTS, DOT_CLASSES = 60, 40  # up to so many there is a dot per client and class, beyond a heat map
NARROW_CLIENTS = 20  # up to so many half the width is enough


@dataclass(frozen=True)
class Division:
    """Data divided among clients.

    Attributes:
        name: Stands above its panel and in its row of the table.
        counts: Training examples of each class at each client, shape (num_clients, num_classes).
        skew: Its measures.
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
        """Whether half the figure's width is enough."""
        return self.is_dotted and len(self.counts) <= NARROW_CLIENTS


def table(divisions: Sequence[Division]) -> pd.DataFrame:
    """Return the measures of skew for people, a row per division; see `fedprox.data.heterogeneity.Skew`."""
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
    """Return a division's name, its sizes and its measures in three lines that fit half the figure's width."""
    skew = division.skew
    (fewest, mean, most), (smallest, median, largest) = skew.effective_classes, skew.sizes
    return (
        f"{division.name}\n"
        f"{skew.num_clients} clients with {smallest} to {largest} examples (median {median:.10g})\n"
        f"JS distance {skew.js_distance:.2f}  ·  effective classes {mean:.1f} ({fewest:.1f} to {most:.1f})  ·  "
        f"Gini {skew.gini:.2f}"
    )


def by_class(shares: Distributions) -> Integers:
    """Return the clients sorted by the class they hold most of, then by the second, then by the first's share.

    Args:
        shares: Share of each class at each client, shape (num_clients, num_classes).
    """
    most_first = np.argsort(-shares, axis=1, kind="stable")
    first, second = most_first[:, 0], most_first[:, min(1, shares.shape[1] - 1)]
    return np.lexsort((-shares[np.arange(len(shares)), first], second, first))


def merged(rows: NDArray[np.float64], at_most: int) -> NDArray[np.float64]:
    """Return the means of groups of neighbouring rows whose sizes differ by at most one, in their order.

    Args:
        rows: Shape (num_rows, num_values), num_rows >= 1.
        at_most: How many groups there may be, >= 1; where there are no more rows, each is its own group.
    """
    num_groups = min(len(rows), at_most)
    edges = np.arange(num_groups + 1) * len(rows) // num_groups
    means: NDArray[np.float64] = np.add.reduceat(rows, edges[:-1]) / np.diff(edges)[:, None]
    return means


def size_bins(sizes: Integers) -> NDArray[np.float64]:
    """Return the edges of at most 20 bins of sizes: of equal width, or of equal ratio where these span far.

    That is more than a factor of ten, up to more than 200; below, rounding to whole sizes would spoil the ratios.

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
