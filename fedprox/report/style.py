"""Shared look of all figures (size, colours, axes, markers of lines that leave the view) and of means in tables."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.storage import annotate_errors

# Okabe and Ito's colour-blind-safe colours, without the yellow that vanishes on white; the first is FedAvg's.
PALETTE = ("#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#000000")
WIDTH = 9.0  # inches; at 100 px per inch a README shows it 900 px wide with its text in the requested size

_PRINTED = {"column": 3.3, "page": 6.9}  # inches: what the columns and pages of most journals leave
_NARROWEST, _WIDEST = 2.0, 40.0  # inches
_PRINTED_TEXT = 8.0  # points; journals ask for 6 to 8 in a figure's final size

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Paper:
    """Size in which a figure is shown, and that of its text.

    Attributes:
        width: Inches.
        text: Size of names and numbers, in points; titles and explanations are a tenth larger and smaller.
        dpi: Resolution of a PNG.
    """

    width: float = WIDTH
    text: float = 10.0
    dpi: int = 200

    @classmethod
    def of(cls, width: str | None) -> "Paper":
        """Return the paper of `--width`: "column", "page" or inches; None for a screen.

        Raises:
            UserError: If the width is none of these.
        """
        if width is None:
            return cls()
        try:
            inches = _PRINTED[width] if width in _PRINTED else float(width)
        except ValueError:
            inches = math.nan
        if not _NARROWEST <= inches <= _WIDEST:
            raise UserError(
                f"--width must be column ({_PRINTED['column']} inches), page ({_PRINTED['page']} inches) or inches, "
                f"{_NARROWEST:g} to {_WIDEST:g}, got {width}"
            )
        return cls(inches, _PRINTED_TEXT, dpi=300)

    @property
    def title(self) -> float:
        """Text size of titles, in points."""
        return 1.1 * self.text

    @property
    def small(self) -> float:
        """Text size of explanations, in points."""
        return 0.9 * self.text

    @property
    def line(self) -> float:
        """Width of a line, in points."""
        return 0.16 * self.text

    @property
    def marker(self) -> float:
        """Size of a marker, in points."""
        return 0.5 * self.text

    def row_height(self, num_columns: int) -> float:
        """Return the height in inches of a row of panels, which is not much less than a panel's width."""
        return min(2.5, 0.5 * self.width / num_columns + 0.6)


SCREEN = Paper()


def text_width(text: str, size: float) -> float:
    """Return the width in inches of one line of text of a size in points."""
    width, _, _ = TextToPath().get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width) / 72


def save(figure: Figure, file: Path, dpi: int = SCREEN.dpi) -> None:
    """Write a figure in the format of the file's ending, with TrueType fonts, which journals ask for.

    Raises:
        OSError: If the file cannot be written; it names the file.
    """
    with annotate_errors(file), rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
        figure.savefig(file, dpi=dpi)


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


def accuracy_view(accuracies: Iterable[Curve]) -> tuple[float, float]:
    """Return the ends of an accuracy axis, within 0 .. 1, that holds all the curves with a small margin."""
    values = np.concatenate([*accuracies, np.array([], float)])
    values = np.clip(values[np.isfinite(values)], 0.0, 1.0)
    if not len(values):
        return 0.0, 1.0
    margin = max(0.04 * float(np.ptp(values)), 0.005)
    return max(0.0, float(values.min()) - margin), min(1.0, float(values.max()) + margin)


def finish_loss(axes: Axes, name: str, limit: float, paper: Paper = SCREEN) -> None:
    """Set the view to 0 .. limit, with a triangle where a line leaves it for the first time."""
    limit_view(axes, limit, marker_size=0.7 * paper.text)
    finish_by_round(axes, name, paper)


def limit_view(axes: Axes, limit: float, marker_size: float) -> None:
    """Set the view to 0 .. limit, with a triangle where a line leaves it for the first time."""
    for line in list(axes.get_lines()):
        rounds, values = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        outside = ~(values <= limit)  # NaN is outside too
        if outside.any():
            first, colour = rounds[outside.argmax()], line.get_color()
            axes.plot([first], [limit], marker="^", ms=marker_size, color=colour, clip_on=False, zorder=5)
    axes.set_ylim(0.0, limit)


def finish_accuracy(axes: Axes, view: tuple[float, float] = (0.0, 1.0), paper: Paper = SCREEN) -> None:
    """Set the view, with a tick at each fifth if it is the whole range."""
    finish_by_round(axes, "test accuracy", paper)
    axes.set_ylim(view)
    if view == (0.0, 1.0):
        axes.set_yticks(np.linspace(0.0, 1.0, 6))


def finish_by_round(
    axes: Axes, name: str, paper: Paper = SCREEN, num_ticks: int = 6, label_size: float | None = None
) -> None:
    """Style axes of a named metric by round, with about `num_ticks` ticks, labelled in the paper's size or another."""
    axes.set_ylabel(name, fontsize=paper.text)
    axes.grid(color="0.9", lw=0.7)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=num_ticks, integer=True))  # rounds are whole
    finish_plain(axes, label_size or paper.text)


def finish_plain(axes: Axes, label_size: float = SCREEN.text) -> None:
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


def difference_text(mean: float, low: float, high: float) -> str:
    """Return "+0.021 [+0.010, +0.032]", without the interval if it is NaN, and "-" without a difference."""
    if math.isnan(mean):
        return "-"
    return f"{mean:+z.3f}" if math.isnan(low) else f"{mean:+z.3f} [{low:+z.3f}, {high:+z.3f}]"
