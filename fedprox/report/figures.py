"""Figures of the table of `fedprox.report.summary`, drawn with matplotlib's object API."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedprox.errors import UserError
from fedprox.report.curves import draw
from fedprox.report.lines import Line, lines_of
from fedprox.report.runs import TITLES, label, percent
from fedprox.report.style import (
    SCREEN,
    Curve,
    Paper,
    accuracy_view,
    blank_figure,
    finish_accuracy,
    finish_by_round,
    finish_loss,
    loss_limit,
    text_width,
)
from fedprox.report.summary import ROUND, Axis, has_accuracy, mean_by_round

_NARROWEST = 2.2  # inches of a panel; narrower ones are stacked
_NUM_MARKERS = 7  # on a line, about
_LARGER = {"X": 1.25, "P": 1.25, "*": 1.8}  # factor of a marker's size
_LEGEND_SAMPLE = 3.6  # width of a line's sample with its gaps, in sizes of the text
_PER_ROW = 4  # names in a row of the legend, at most
View = tuple[float, float]


def comparison(
    frame: pd.DataFrame, x: Axis = ROUND, *, drift: bool = False, paper: Paper = SCREEN, view: View | None = None
) -> Figure:
    """Draw test loss and test accuracy by round: a row per data set and straggler level, a line per algorithm.

    A line is the mean over an experiment's runs; its band is one sample standard deviation to each side. The line is
    dotted in rounds that some of the runs lack. A diverging loss leaves the view at a triangle on the upper edge
    (see `loss_limit`). A branch begins at a dot on the line of the run that it leaves, if that run is drawn too.
    Loss and accuracy are drawn one above the other where they would be too narrow side by side; regression has a loss
    alone.

    Args:
        frame: From `fedprox.report.summary.read_runs`.
        x: The horizontal axis; other than ROUND it is the mean over an experiment's runs, such as the mean bytes that
            clients have sent until a round.
        drift: Whether to draw the cohorts' mean drift in a third column.
        paper: Size of the figure and its text.
        view: Ends of the accuracy axes; None: all curves of a data set fit.

    Raises:
        UserError: If drift is to be drawn and no run has recorded it.
    """
    means = mean_by_round(frame)
    if drift and "drift_mean" not in means:
        raise UserError("no run has recorded its drift; remove --drift")
    panels, looks = _panels(means), lines_of(frame)
    drawn = ["test_loss", *["test_accuracy"] * has_accuracy(frame), *["drift"] * drift]
    figure, grid = _grid(len(panels), len(drawn), paper)
    for row, (title, panel) in zip(grid, panels, strict=True):
        of_data = means[means["dataset"] == panel["dataset"].iloc[0]]
        row[0].set_title(title, fontsize=paper.title, loc="left", parse_math=False)  # for the whole row
        for axes, column in zip(row, drawn, strict=True):
            _draw_lines(axes, panel, column, looks, x, paper)
            if column == "test_loss":
                finish_loss(axes, "test loss", loss_limit(_edges(of_data, "test_loss")[1]), paper)
            elif column == "test_accuracy":
                finish_accuracy(axes, view or _accuracy_view(of_data), paper)
            else:
                finish_by_round(axes, "drift", paper)
                axes.set_ylim(bottom=0.0)
    _finish_x(figure, x, paper)
    _add_legend(figure, looks, _explanation(figure, means), paper)
    return figure


def accuracy(frame: pd.DataFrame, x: Axis = ROUND, *, paper: Paper | None = None, view: View | None = None) -> Figure:
    """Draw test accuracy by round, a row per data set and straggler level, each line with its name beside its end.

    Lines and bands are those of `comparison`. If the names would take more than a third of the width, or more than the
    height, they are in a legend.

    Args:
        frame: From `fedprox.report.summary.read_runs`.
        x: As in `comparison`.
        paper: Size of the figure and its text; None: 7 inches for a screen.
        view: Ends of the accuracy axes; None: all curves of a data set fit.
    """
    if not has_accuracy(frame):
        raise UserError(
            "no run has an accuracy, since their labels are numbers; draw the losses, without --metric accuracy"
        )
    means, paper = mean_by_round(frame), paper or Paper(width=7.0)
    panels, looks = _panels(means), lines_of(frame)
    figure, grid = _grid(len(panels), 1, paper)
    gap = 1.35 * paper.text / 72 / (paper.row_height(1) - 0.5)  # between two names, as a share of the axis
    is_named = gap * len(looks) < 1 and max(text_width(name, paper.text) for name in looks) < paper.width / 3
    for (axes,), (title, panel) in zip(grid, panels, strict=True):
        _draw_lines(axes, panel, "test_accuracy", looks, x, paper)
        axes.set_title(title, fontsize=paper.title, loc="left", parse_math=False)
        finish_accuracy(axes, view or _accuracy_view(means[means["dataset"] == panel["dataset"].iloc[0]]), paper)
        if is_named:
            _label_ends(axes, panel, looks, gap, paper)
    explanation = _explanation(figure, means)
    _finish_x(figure, x, paper, f"  ({explanation})" if is_named else "")
    if not is_named:
        _add_legend(figure, looks, explanation, paper)
    return figure


def _grid(num_rows: int, num_columns: int, paper: Paper) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes row by row; the axes of a row are one above the other if they would be narrow."""
    is_stacked = paper.width / num_columns < _NARROWEST
    shape = (num_rows * num_columns, 1) if is_stacked else (num_rows, num_columns)
    figure = blank_figure(0.8 * paper.text / SCREEN.text + paper.row_height(shape[1]) * shape[0], paper.width)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(*shape, sharex=True, squeeze=False).reshape(num_rows, num_columns).tolist()


def _finish_x(figure: Figure, x: Axis, paper: Paper, explanation: str = "") -> None:
    """Name the horizontal axis below the lowest panels; all but rounds have ticks that are not whole numbers."""
    for axes in figure.axes:
        if axes.get_subplotspec().is_last_row():  # type: ignore[union-attr]  # all are in a grid
            axes.set_xlabel(x.label + explanation, fontsize=paper.text)
        if x is not ROUND:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _add_legend(figure: Figure, looks: Mapping[str, Line], explanation: str, paper: Paper) -> None:
    """Add a legend above the panels: the explanation, and the lines in as many columns as have room."""
    characters = int(len(explanation) * 0.95 * paper.width / text_width(explanation, paper.small))
    widest = max((text_width(name, paper.text) + _LEGEND_SAMPLE * paper.text / 72 for name in looks), default=1.0)
    figure.legend(
        handles=[
            Line2D([], [], color=look.colour, ls=look.dashes, lw=1.3 * paper.line, label=name, **_marker(look, paper))
            for name, look in looks.items()
        ],
        loc="outside upper center",
        ncols=max(1, min(len(looks), _PER_ROW, int(0.97 * paper.width / widest))),
        title=textwrap.fill(explanation, characters),
        title_fontsize=paper.small,
        fontsize=paper.text,
        columnspacing=1.0,
        handletextpad=0.5,
        frameon=False,
    )


def curves(frame: pd.DataFrame) -> Figure:
    """Draw one run by round as in its curves.png: loss on the left, test accuracy on the right.

    Args:
        frame: The rows of one run, from `fedprox.report.summary.read_runs`.

    Raises:
        ValueError: If the rows belong to several runs, or there are none.
    """
    if frame["run"].nunique() != 1:
        count = frame["run"].nunique()
        raise ValueError(f'curves draws one run, got {count}; select one with frame[frame["run"] == ...]')
    columns = {str(name): column.to_numpy(float) for name, column in frame.select_dtypes("number").items()}
    return draw(columns, label(frame.iloc[0].to_dict()))


def _panels(means: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return each data set and straggler level, in words, with its rows."""
    levels = means[["dataset", "stragglers_fraction"]].drop_duplicates().itertuples(index=False)
    return [
        (
            f"{titled(str(dataset))}, {percent(float(fraction))} stragglers",
            means[(means["dataset"] == dataset) & (means["stragglers_fraction"] == fraction)],
        )
        for dataset, fraction in levels
    ]


def titled(dataset: str) -> str:
    """Return a data set's name as papers write it: "MNIST, alpha = 1" for "mnist, alpha = 1"."""
    name, comma, settings = dataset.partition(", ")
    return TITLES.get(name, name) + comma + settings


def _edges(means: pd.DataFrame, column: str) -> tuple[list[Curve], list[Curve]]:
    """Return the lower and upper edges of the bands of a data set's experiments."""
    std = means[f"{column}_std"].fillna(0.0)
    experiments = [means["stragglers_fraction"], means["algorithm"]]
    lower, upper = (
        [curve.to_numpy(float) for _, curve in (means[f"{column}_mean"] + sign * std).groupby(experiments)]
        for sign in (-1, 1)
    )
    return lower, upper


def _accuracy_view(means: pd.DataFrame) -> View:
    lower, upper = _edges(means, "test_accuracy")
    return accuracy_view([*lower, *upper])


def _draw_lines(axes: Axes, panel: pd.DataFrame, column: str, looks: Mapping[str, Line], x: Axis, paper: Paper) -> None:
    for place, (algorithm, look) in enumerate(looks.items()):
        experiment = panel[panel["algorithm"] == algorithm]
        if len(experiment):
            curve = _begun(axes, experiment, column, look, x)
            _draw_line(axes, curve, column, look, x, paper, label=algorithm, place=place / len(looks))


def _begun(axes: Axes, means: pd.DataFrame, column: str, look: Line, x: Axis) -> pd.DataFrame:
    """Return a branch's own rounds, after a dot where it leaves another run's line; all rounds of any other run."""
    begins = means["begins"].iloc[0]
    if not begins:
        return means
    last_shared = means.loc[means["round"] <= begins, "round"].max()  # the last one that was evaluated
    own: pd.DataFrame = means[means["round"] >= last_shared]
    start = own.iloc[0]
    at = start[x.column] / x.scale
    axes.plot([at], [start[f"{column}_mean"]], marker="o", ms=5, mec="white", color=look.colour, zorder=4)
    return own


def _draw_line(
    axes: Axes, means: pd.DataFrame, column: str, look: Line, x: Axis, paper: Paper, *, label: str, place: float
) -> None:
    """Draw a line and its band; its markers begin at a place of their own, 0 .. 1 of their distance."""
    at = means[x.column].to_numpy(float) / x.scale
    mean, std = means[f"{column}_mean"].to_numpy(float), means[f"{column}_std"].to_numpy(float)
    whole = int((means["n"] == means["n"].max()).sum())  # n never rises: runs may end early, but all start in round 0
    step = max(1, len(at) // _NUM_MARKERS)
    marker = {**_marker(look, paper), "markevery": (min(int(place * step), whole - 1), step)}
    axes.plot(at[:whole], mean[:whole], color=look.colour, ls=look.dashes, label=label, lw=paper.line, **marker)
    if whole < len(at):
        axes.plot(at[whole - 1 :], mean[whole - 1 :], color=look.colour, ls=":", lw=paper.line)
    if np.isfinite(std).any():
        axes.fill_between(at, mean - std, mean + std, color=look.colour, alpha=0.18, lw=0)


def _marker(look: Line, paper: Paper) -> dict[str, Any]:
    """Return the arguments of a line's markers; those with thin arms are larger, to look alike."""
    size = paper.marker * _LARGER.get(look.marker, 1.0)
    return {"marker": look.marker, "ms": size, "mec": "white", "mew": 0.05 * paper.text}


def _label_ends(axes: Axes, panel: pd.DataFrame, looks: Mapping[str, Line], gap: float, paper: Paper) -> None:
    """Write each line's marker and name to the right of its end, the upper line's above; close ones are moved apart."""
    ends = panel.groupby("algorithm").last().sort_values("test_accuracy_mean")
    low, high = axes.get_ylim()
    ends_at = np.clip((ends["test_accuracy_mean"] - low) / (high - low), 0.0, 1.0)  # --ylim may leave ends out
    places = spread(ends_at.tolist(), gap)
    for algorithm, place in zip(ends.index, places, strict=True):
        look = looks[algorithm]
        marker = _marker(look, paper)
        axes.plot([1.02], [place], color=look.colour, transform=axes.transAxes, clip_on=False, **marker)
        axes.annotate(
            algorithm,
            (1.035, place),
            xycoords="axes fraction",
            color=look.colour,
            size=paper.text,
            weight="bold",
            va="center",
            annotation_clip=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return ascending places in 0 .. 1, moved as little as possible so that neighbours are at least `gap` apart."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    shift = sum(new - old for new, old in zip(moved, places, strict=True)) / len(moved)
    shift = max(shift, moved[-1] - 1.0)
    return [place - shift for place in moved]


def _explanation(figure: Figure, means: pd.DataFrame) -> str:
    """Return the explanation of bands and markers."""
    few, many = means["n"].min(), means["n"].max()
    counted = f"{many} runs" if few == many else f"{few} to {many} runs"
    text = "one run each" if many == 1 else f"mean ± one standard deviation of {counted}"
    if means["begins"].any():
        text += "; ● a branch begins"
    if (means.groupby(["dataset", "stragglers_fraction", "algorithm"])["n"].nunique() > 1).any():
        text += "; dotted after some runs have ended"
    if any(line.get_marker() == "^" for axes in figure.axes for line in axes.get_lines()):
        text += "; ▲ loss leaves the view"
    return text
