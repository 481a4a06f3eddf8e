"""Figures of the table of `fedprox.report.summary`, drawn with matplotlib's object API."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedprox.errors import UserError
from fedprox.report.curves import draw
from fedprox.report.runs import TITLES, label, percent
from fedprox.report.style import PALETTE, Curve, blank_figure, finish_accuracy, finish_by_round, finish_loss, loss_limit
from fedprox.report.summary import ROUND, Axis, algorithm_order, mean_by_round

_LEGEND_CHARACTERS = 105  # that fit into a row; the sample of a line takes eight
_LABEL_GAP = 0.085  # between the labels of two lines, as a share of the axis


def comparison(frame: pd.DataFrame, x: Axis = ROUND, *, drift: bool = False) -> Figure:
    """Draw test loss and test accuracy by round: a row per data set and straggler level, a line per algorithm.

    A line is the mean over an experiment's runs; its band is one sample standard deviation to each side. The line is
    dotted in rounds that some of the runs lack. A diverging loss leaves the view at a triangle on the upper edge
    (see `loss_limit`). A branch begins at a dot on the line of the run that it leaves, if that run is drawn too.

    Args:
        frame: From `fedprox.report.summary.read_runs`.
        x: The horizontal axis; other than ROUND it is the mean over an experiment's runs, such as the mean bytes that
            clients have sent until a round.
        drift: Whether to draw the cohorts' mean drift in a third column.

    Raises:
        UserError: If drift is to be drawn and no run has recorded it.
    """
    means = mean_by_round(frame)
    if drift and "drift_mean" not in means:
        raise UserError("no run has recorded its drift; remove --drift")
    is_named = means["dataset"].nunique() > 1
    panels = [(f"{name}, {level}" if is_named else level, panel) for (name, level), panel in _panels(means)]
    figure = blank_figure(height=0.8 + 2.5 * len(panels))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(panels), 2 + drift, sharex=True, squeeze=False)
    colours = algorithm_colours(frame)
    for (left, right, *further), (title, panel) in zip(grid, panels, strict=True):
        limit = loss_limit(_upper_edges(means[means["dataset"] == panel["dataset"].iloc[0]]))
        for axes, column in zip((left, right, *further), ("test_loss", "test_accuracy", "drift"), strict=False):
            _draw_lines(axes, panel, column, colours, x)
        left.set_title(title, fontsize=11, loc="left")  # for the whole row
        finish_loss(left, "test loss", limit)
        finish_accuracy(right)
        for axes in further:
            finish_by_round(axes, "drift")
            axes.set_ylim(bottom=0.0)
    for axes in grid[-1]:
        axes.set_xlabel(x.label)
        _finish_x(axes, x)
    figure.legend(
        handles=[Line2D([], [], color=colour, lw=2.4, label=name) for name, colour in colours.items()],
        loc="outside upper center",
        ncols=max(1, min(len(colours), 4, _LEGEND_CHARACTERS // (max(map(len, colours)) + 8))),
        title=_explanation(figure, means),
        title_fontsize=9,
        frameon=False,
    )
    return figure


def accuracy(frame: pd.DataFrame, x: Axis = ROUND) -> Figure:
    """Draw test accuracy by round, a row per data set and straggler level, each line with its name beside its end.

    Lines and bands are those of `comparison`.
    """
    means = mean_by_round(frame)
    panels = [(f"{TITLES.get(name, name)}, {level}", panel) for (name, level), panel in _panels(means)]
    figure = blank_figure(height=0.3 + 2.7 * len(panels), width=7.0)
    figure.set_layout_engine("constrained")
    for axes, (title, panel) in zip(figure.subplots(len(panels), squeeze=False).flat, panels, strict=True):
        colours = algorithm_colours(frame)
        _draw_lines(axes, panel, "test_accuracy", colours, x)
        axes.set_title(title, fontsize=11, loc="left")
        finish_accuracy(axes)
        _label_ends(axes, panel, colours)
        _finish_x(axes, x)
    axes.set_xlabel(f"{x.label}  ({_explanation(figure, means)})")
    return figure


def _finish_x(axes: Axes, x: Axis) -> None:
    """Let all but rounds have ticks of their own: they are not whole numbers."""
    if x is not ROUND:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


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


def algorithm_colours(frame: pd.DataFrame) -> dict[str, str]:
    """Return algorithm -> colour in `algorithm_order`; the first colour is reserved for FedAvg.

    After seven algorithms the colours repeat.
    """
    algorithms = algorithm_order(frame)
    others = [algorithm for algorithm in algorithms if algorithm != "FedAvg"]
    colours = {algorithm: PALETTE[1 + index % 6] for index, algorithm in enumerate(others)}
    return {algorithm: colours.get(algorithm, PALETTE[0]) for algorithm in algorithms}


def _panels(means: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Return each data set and straggler level with its rows."""
    levels = means[["dataset", "stragglers_fraction"]].drop_duplicates().itertuples(index=False)
    return [
        (
            (str(dataset), f"{percent(float(fraction))} stragglers"),
            means[(means["dataset"] == dataset) & (means["stragglers_fraction"] == fraction)],
        )
        for dataset, fraction in levels
    ]


def _upper_edges(means: pd.DataFrame) -> list[Curve]:
    edge = means["test_loss_mean"] + means["test_loss_std"].fillna(0.0)
    experiments = edge.groupby([means["stragglers_fraction"], means["algorithm"]])
    return [curve.to_numpy(float) for _, curve in experiments]


def _draw_lines(axes: Axes, panel: pd.DataFrame, column: str, colours: dict[str, str], x: Axis) -> None:
    for algorithm, colour in colours.items():
        experiment = panel[panel["algorithm"] == algorithm]
        if len(experiment):
            _draw_line(axes, experiment, column, algorithm, colour, x)


def _draw_line(axes: Axes, means: pd.DataFrame, column: str, algorithm: str, colour: str, x: Axis) -> None:
    begins = means["begins"].iloc[0]
    if begins:  # it leaves another run's line in the last evaluated round before it begins
        means = means[means["round"] >= means.loc[means["round"] <= begins, "round"].max()]
        start = means.iloc[0]
        place = start[x.column] / x.scale
        axes.plot([place], [start[f"{column}_mean"]], marker="o", ms=5, mec="white", color=colour, zorder=4)
    rounds = means[x.column].to_numpy(float) / x.scale
    mean, std = means[f"{column}_mean"].to_numpy(float), means[f"{column}_std"].to_numpy(float)
    whole = int((means["n"] == means["n"].max()).sum())  # n never rises: runs may end early, but all start in round 0
    axes.plot(rounds[:whole], mean[:whole], color=colour, label=algorithm, lw=1.6)
    if whole < len(rounds):
        axes.plot(rounds[whole - 1 :], mean[whole - 1 :], color=colour, ls=":", lw=1.6)
    if np.isfinite(std).any():
        axes.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.18, lw=0)


def _label_ends(axes: Axes, panel: pd.DataFrame, colours: dict[str, str]) -> None:
    """Write each line's name to the right of its end, the upper line's above; close ones are moved apart."""
    ends = panel.groupby("algorithm").last().sort_values("test_accuracy_mean")
    for algorithm, place in zip(ends.index, spread(ends["test_accuracy_mean"].tolist(), _LABEL_GAP), strict=True):
        axes.annotate(
            f" {algorithm}",
            (1.0, place),
            xycoords="axes fraction",
            color=colours[algorithm],
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
