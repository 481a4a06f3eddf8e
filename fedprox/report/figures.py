"""The tidy table of `fedprox.report.summary` -> figures, by matplotlib's object API alone."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedprox.errors import UserError
from fedprox.report.curves import draw
from fedprox.report.runs import label, percent
from fedprox.report.style import PALETTE, Curve, blank_figure, finish_accuracy, finish_drift, finish_loss, loss_limit
from fedprox.report.summary import algorithm_order, mean_by_round

_LEGEND_CHARACTERS = 105  # that fit beside each other; a line's sample takes eight


def comparison(frame: pd.DataFrame, *, drift: bool = False) -> Figure:
    """Draw test loss and test accuracy by round: a row per straggler level, a line per algorithm.

    A line is the mean over an experiment's runs, its band one sample standard deviation to each side. Where
    some of the runs have no such round, the line is dotted. A loss that diverges leaves the view at a
    triangle on the upper edge instead of squashing the axis (see `loss_limit`). A branch of another run that is given
    begins at a dot on its line.

    Args:
        frame: From `fedprox.report.summary.read_runs`. Several data sets give a group of rows each.
        drift: Also draw the cohorts' mean drift.

    Raises:
        UserError: If drift is to be drawn, and no run has recorded it.
    """
    means = mean_by_round(frame)
    if drift and "drift_mean" not in means:
        raise UserError("no run has recorded its drift; leave --drift out")
    several = means["dataset"].nunique() > 1
    levels = means[["dataset", "stragglers_fraction"]].drop_duplicates().itertuples(index=False)
    panels = [(str(dataset), float(fraction)) for dataset, fraction in levels]
    figure = blank_figure(height=0.8 + 2.5 * len(panels))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(panels), 2 + drift, sharex=True, squeeze=False)
    for (left, right, *further), (dataset, fraction) in zip(grid, panels, strict=True):
        panel = means[(means["dataset"] == dataset) & (means["stragglers_fraction"] == fraction)]
        title = (f"{dataset}, " if several else "") + f"{percent(fraction)} stragglers"
        limit = loss_limit(_upper_edges(means[means["dataset"] == dataset]))
        for algorithm, colour in algorithm_colours(frame).items():
            experiment = panel[panel["algorithm"] == algorithm]
            _draw_experiment(left, experiment, "test_loss", algorithm, colour)
            _draw_experiment(right, experiment, "test_accuracy", algorithm, colour)
            for axes in further:
                _draw_experiment(axes, experiment, "drift", algorithm, colour)
        finish_loss(left, title, "test loss", limit)  # the row's title; it may be as wide as all its panels
        finish_accuracy(right, "")
        for axes in further:
            finish_drift(axes, "")
    for axes in grid[-1]:
        axes.set_xlabel("round")
    _add_legend(figure, means, algorithm_colours(frame))
    return figure


def curves(frame: pd.DataFrame) -> Figure:
    """Draw one run by round, as in its curves.png: loss on the left, test accuracy on the right.

    Args:
        frame: The rows of one run, from `fedprox.report.summary.read_runs`.

    Raises:
        ValueError: If the rows are not those of exactly one run.
    """
    if frame["run"].nunique() != 1:
        count = frame["run"].nunique()
        raise ValueError(f'curves draws one run, got {count}; select one with frame[frame["run"] == ...]')
    columns = {str(name): column.to_numpy(float) for name, column in frame.select_dtypes("number").items()}
    return draw(columns, label(frame.iloc[0].to_dict()))


def algorithm_colours(frame: pd.DataFrame) -> dict[str, str]:
    """Return algorithm -> colour in `algorithm_order`, the first colour for FedAvg alone.

    After seven algorithms the colours repeat.
    """
    algorithms = algorithm_order(frame)
    others = [algorithm for algorithm in algorithms if algorithm != "FedAvg"]
    colours = {algorithm: PALETTE[1 + index % 6] for index, algorithm in enumerate(others)}
    return {algorithm: colours.get(algorithm, PALETTE[0]) for algorithm in algorithms}


def _upper_edges(means: pd.DataFrame) -> list[Curve]:
    edge = means["test_loss_mean"] + means["test_loss_std"].fillna(0.0)
    experiments = edge.groupby([means["stragglers_fraction"], means["algorithm"]])
    return [curve.to_numpy(float) for _, curve in experiments]


def _draw_experiment(axes: Axes, means: pd.DataFrame, column: str, algorithm: str, colour: str) -> None:
    if means.empty:
        return
    begins = means["begins"].iloc[0]
    if begins:  # the line leaves that of another run, at the last round before it that was evaluated
        means = means[means["round"] >= means.loc[means["round"] <= begins, "round"].max()]
        start = means.iloc[0]
        axes.plot([start["round"]], [start[f"{column}_mean"]], marker="o", ms=5, mec="white", color=colour, zorder=4)
    rounds = means["round"].to_numpy(float)
    mean, std = means[f"{column}_mean"].to_numpy(float), means[f"{column}_std"].to_numpy(float)
    whole = int((means["n"] == means["n"].max()).sum())  # n only falls: runs end early, none starts late
    axes.plot(rounds[:whole], mean[:whole], color=colour, label=algorithm, lw=1.6)
    if whole < len(rounds):
        axes.plot(rounds[whole - 1 :], mean[whole - 1 :], color=colour, ls=":", lw=1.6)
    if np.isfinite(std).any():
        axes.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.18, lw=0)


def _add_legend(figure: Figure, means: pd.DataFrame, colours: dict[str, str]) -> None:
    few, many = means["n"].min(), means["n"].max()
    counted = f"{many} runs" if few == many else f"{few} to {many} runs"
    title = "one run each" if many == 1 else f"mean ± one standard deviation of {counted}"
    if means["begins"].any():
        title += "; ● a branch begins"
    if (means.groupby(["dataset", "stragglers_fraction", "algorithm"])["n"].nunique() > 1).any():
        title += "; dotted where some have ended"
    if any(line.get_marker() == "^" for axes in figure.axes for line in axes.get_lines()):
        title += "; ▲ loss leaves the view"
    figure.legend(
        handles=[Line2D([], [], color=colour, lw=2.4, label=name) for name, colour in colours.items()],
        loc="outside upper center",
        ncols=max(1, min(len(colours), 4, _LEGEND_CHARACTERS // (max(map(len, colours)) + 8))),
        title=title,
        title_fontsize=9,
        frameon=False,
    )
