"""The tidy table of `fedprox.report.table` -> figures, by matplotlib's object API alone."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedprox.report.checks import label, percent
from fedprox.report.table import algorithm_order, mean_by_round

# Okabe and Ito's colour-blind-safe colours, without the yellow that vanishes on white; the first is FedAvg's.
PALETTE = ("#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#000000")
WIDTH = 9.0  # inches: shown 900 px wide, text has the sizes asked for at 100 px to the inch

Curve = NDArray[np.float64]


def comparison(frame: pd.DataFrame) -> Figure:
    """Draw test loss and test accuracy by round: a row per straggler level, a line per algorithm.

    A line is the mean over an experiment's runs, its band one sample standard deviation to each side. Where
    some of the runs have no such round, the line is dotted. A loss that diverges leaves the view at a
    triangle on the upper edge instead of squashing the axis (see `loss_limit`).

    Args:
        frame: From `fedprox.report.table.read_runs`. Several data sets give a group of rows each.
    """
    means = mean_by_round(frame)
    several = means["dataset"].nunique() > 1
    levels = means[["dataset", "stragglers_fraction"]].drop_duplicates().itertuples(index=False)
    panels = [(str(dataset), float(fraction)) for dataset, fraction in levels]
    figure = _figure(height=0.8 + 2.5 * len(panels))
    grid = figure.subplots(len(panels), 2, sharex=True, squeeze=False)
    for (left, right), (dataset, fraction) in zip(grid, panels, strict=True):
        panel = means[(means["dataset"] == dataset) & (means["stragglers_fraction"] == fraction)]
        title = (f"{dataset}, " if several else "") + f"{percent(fraction)} stragglers"
        limit = loss_limit(_upper_edges(means[means["dataset"] == dataset]))
        for algorithm, colour in algorithm_colours(frame).items():
            experiment = panel[panel["algorithm"] == algorithm]
            _draw_experiment(left, experiment, "test_loss", algorithm, colour)
            _draw_experiment(right, experiment, "test_accuracy", algorithm, colour)
        _finish_loss(left, title, "test loss", limit)
        _finish_accuracy(right, title)
    for axes in grid[-1]:
        axes.set_xlabel("round")
    _add_legend(figure, means, algorithm_colours(frame))
    return figure


def curves(frame: pd.DataFrame) -> Figure:
    """Draw one run by round: test loss and the cohort's train loss on the left, test accuracy on the right.

    Args:
        frame: The rows of one run, from `fedprox.report.table.read_runs`.

    Raises:
        ValueError: If the rows are not those of exactly one run.
    """
    if frame["run"].nunique() != 1:
        count = frame["run"].nunique()
        raise ValueError(f'curves draws one run, got {count}; select one with frame[frame["run"] == ...]')
    tested = frame.dropna(subset=["test_accuracy"])
    trained = frame[frame["num_clients_counted"] > 0]  # the model stays where nobody trained
    figure = _figure(height=3.2)
    left, right = figure.subplots(1, 2, sharex=True)
    left.plot(trained["round"], trained["train_loss_cohort"], color=PALETTE[1], label="train (cohort)", lw=1.2)
    left.plot(tested["round"], tested["test_loss"], color=PALETTE[2], label="test", lw=1.8)
    right.plot(tested["round"], tested["test_accuracy"], color=PALETTE[2], label="test", lw=1.8)
    losses = [tested["test_loss"].to_numpy(float), trained["train_loss_cohort"].to_numpy(float)]
    _finish_loss(left, "", "loss", loss_limit(losses))
    _finish_accuracy(right, "")
    left.legend(frameon=False)
    figure.supxlabel("round", fontsize=10)
    figure.suptitle(label(frame.iloc[0].to_dict()), fontsize=11)
    return figure


def algorithm_colours(frame: pd.DataFrame) -> dict[str, str]:
    """Return algorithm -> colour in `algorithm_order`, the first colour for FedAvg alone.

    After seven algorithms the colours repeat.
    """
    algorithms = algorithm_order(frame)
    others = [algorithm for algorithm in algorithms if algorithm != "FedAvg"]
    colours = {algorithm: PALETTE[1 + index % 6] for index, algorithm in enumerate(others)}
    return {algorithm: colours.get(algorithm, PALETTE[0]) for algorithm in algorithms}


def loss_limit(losses: Iterable[Curve]) -> float:
    """Return the upper end of a loss axis, > 0, that diverged curves cannot squash.

    It holds every curve that stays within twice the highest initial loss (a model twice as bad as an
    untrained one has diverged), and in any case the whole of the curve with the lowest peak.

    Args:
        losses: Curves of any length from the first round on; NaN and infinite values are no reason for room.
    """
    finite = [curve[np.isfinite(curve)] for curve in losses]
    finite = [curve for curve in finite if len(curve)]
    if not finite:
        return 1.0
    peaks = [float(curve.max()) for curve in finite]
    room = max(2 * max(float(curve[0]) for curve in finite), min(peaks))
    return 1.05 * min(room, max(peaks)) or 1.0


def _upper_edges(means: pd.DataFrame) -> list[Curve]:
    edge = means["test_loss_mean"] + means["test_loss_std"].fillna(0.0)
    experiments = edge.groupby([means["stragglers_fraction"], means["algorithm"]])
    return [curve.to_numpy(float) for _, curve in experiments]


def _draw_experiment(axes: Axes, means: pd.DataFrame, column: str, algorithm: str, colour: str) -> None:
    if means.empty:
        return
    rounds = means["round"].to_numpy(float)
    mean, std = means[f"{column}_mean"].to_numpy(float), means[f"{column}_std"].to_numpy(float)
    whole = int((means["n"] == means["n"].max()).sum())  # n only falls: runs end early, none starts late
    axes.plot(rounds[:whole], mean[:whole], color=colour, label=algorithm, lw=1.6)
    if whole < len(rounds):
        axes.plot(rounds[whole - 1 :], mean[whole - 1 :], color=colour, ls=":", lw=1.6)
    if np.isfinite(std).any():
        axes.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.18, lw=0)


def _finish_loss(axes: Axes, title: str, name: str, limit: float) -> None:
    """Set the view to 0 .. limit and mark where each line leaves it for the first time."""
    for line in list(axes.get_lines()):
        rounds, losses = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        outside = ~(losses <= limit)  # NaN is outside too
        if outside.any():
            first = rounds[outside.argmax()]
            axes.plot([first], [limit], marker="^", ms=7, color=line.get_color(), clip_on=False, zorder=5)
    _finish(axes, title, name)
    axes.set_ylim(0.0, limit)


def _finish_accuracy(axes: Axes, title: str) -> None:
    _finish(axes, title, "test accuracy")
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks(np.linspace(0.0, 1.0, 6))


def _finish(axes: Axes, title: str, name: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel(name)
    axes.grid(color="0.9", lw=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))  # rounds are whole
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("0.6")
    axes.tick_params(color="0.6")


def _add_legend(figure: Figure, means: pd.DataFrame, colours: dict[str, str]) -> None:
    few, many = means["n"].min(), means["n"].max()
    counted = f"{many} runs" if few == many else f"{few} to {many} runs"
    title = "one run each" if many == 1 else f"mean ± one standard deviation of {counted}"
    if (means.groupby(["dataset", "stragglers_fraction", "algorithm"])["n"].nunique() > 1).any():
        title += "; dotted where some have ended"
    if any(line.get_marker() == "^" for axes in figure.axes for line in axes.get_lines()):
        title += "; ▲ loss leaves the view"
    figure.legend(
        handles=[Line2D([], [], color=colour, lw=2.4, label=name) for name, colour in colours.items()],
        loc="outside upper center",
        ncols=min(len(colours), 4),
        title=title,
        title_fontsize=9,
        frameon=False,
    )


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
