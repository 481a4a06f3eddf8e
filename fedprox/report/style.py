"""Shared look of all figures (size, colours, axes, markers of lines that leave the view) and of means in tables."""

import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Okabe and Ito's colour-blind-safe colours, without the yellow that vanishes on white; the first is FedAvg's.
PALETTE = ("#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#000000")
WIDTH = 9.0  # inches; at 100 px per inch a README shows it 900 px wide with its text in the requested size

Curve = NDArray[np.float64]


def blank_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of some inches that needs no display."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def loss_limit(losses: Iterable[Curve]) -> float:
    """Return the upper end of a loss axis, > 0, so that a diverged curve does not squash the others.

    The axis holds every curve that stays within twice the highest initial loss (a model twice as bad as an untrained
    one has diverged), and in any case the whole curve with the lowest peak.

    Args:
        losses: Curves of any length from the first round on; NaN and infinite values are ignored.
    """
    finite = [curve[np.isfinite(curve)] for curve in losses]
    finite = [curve for curve in finite if len(curve)]
    if not finite:
        return 1.0
    peaks = [float(curve.max()) for curve in finite]
    room = max(2 * max(float(curve[0]) for curve in finite), min(peaks))
    return 1.05 * min(room, max(peaks)) or 1.0


def finish_loss(axes: Axes, name: str, limit: float) -> None:
    """Set the view to 0 .. limit, with a triangle where a line leaves it for the first time."""
    limit_view(axes, limit, marker_size=7)
    finish_by_round(axes, name)


def limit_view(axes: Axes, limit: float, marker_size: int) -> None:
    """Set the view to 0 .. limit, with a triangle where a line leaves it for the first time."""
    for line in list(axes.get_lines()):
        rounds, values = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        outside = ~(values <= limit)  # NaN is outside too
        if outside.any():
            first, colour = rounds[outside.argmax()], line.get_color()
            axes.plot([first], [limit], marker="^", ms=marker_size, color=colour, clip_on=False, zorder=5)
    axes.set_ylim(0.0, limit)


def finish_accuracy(axes: Axes) -> None:
    """Set the view to 0 .. 1."""
    finish_by_round(axes, "test accuracy")
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks(np.linspace(0.0, 1.0, 6))


def finish_by_round(axes: Axes, name: str, num_ticks: int = 6, label_size: float | str = "medium") -> None:
    """Style axes of a named metric by round, with about `num_ticks` ticks."""
    axes.set_ylabel(name)
    axes.grid(color="0.9", lw=0.7)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=num_ticks, integer=True))  # rounds are whole
    finish_plain(axes, label_size)


def finish_plain(axes: Axes, label_size: float | str = "medium") -> None:
    """Keep only the two spines that have ticks, in grey."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("0.6")
    axes.tick_params(color="0.6", labelsize=label_size)


def plus_minus(mean: float, std: float, digits: str) -> str:
    """Return "0.712 ± 0.031", or "0.712" if `std` is NaN; "diverged" if the mean is NaN or infinite."""
    if math.isnan(mean) or mean == float("inf"):
        return "diverged"
    return f"{mean:{digits}}" if math.isnan(std) else f"{mean:{digits}} ± {std:{digits}}"
