"""The paper's figures, drawn from the rounds of their runs in the paper's arrangement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from fedprox.report.runs import percent
from fedprox.report.style import PALETTE, Curve, finish_by_round, limit_view, loss_limit
from fedprox.reproduce.specs import DATASETS, Figure, Line
from fedprox.reproduce.tables import EXPERIMENT, NAMES, of_data_sets, of_repetitions, summarise


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what is plotted by round."""

    dataset: str
    stragglers_fraction: float
    metric: str
    lines: tuple[Line, ...]


def draw(figure: Figure, curves: pd.DataFrame) -> Canvas:
    """Draw a figure's panels: means over runs with a band of one sample standard deviation to each side.

    The runs are repetitions on one data set. In a figure over data sets they are one run on each data set, and bars at
    the right edge show mean and standard deviation of the repetitions' last ten rounds. A triangle on the upper edge
    marks where a loss or variance leaves the view.
    """
    panels = arrangement(figure, set(curves["dataset"]))
    is_over_data = curves["seed"].nunique() > 1
    means = _means(of_data_sets(curves) if is_over_data else curves, figure.metrics)
    ends = summarise(of_repetitions(curves), figure) if is_over_data else None
    canvas = Canvas(figsize=(_width(len(panels[0])), 1.3 + 2.1 * len(panels)), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(len(panels), len(panels[0]), sharex="col", squeeze=False)
    for row, (axes_row, panel_row) in enumerate(zip(grid, panels, strict=True)):
        for column, (axes, panel) in enumerate(zip(axes_row, panel_row, strict=True)):
            _draw_panel(axes, means, panel, NAMES[panel.metric] if column == 0 else "")
            if ends is not None:
                _draw_ends(axes, ends, panel)
            axes.set_title(_title(figure, panel, first_row=row == 0), fontsize=10, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("round")
    _add_legend(canvas, figure, curves)
    return canvas


def arrangement(figure: Figure, datasets: set[str]) -> list[list[Panel]]:
    """Return the panels row by row."""
    shown = [name for name in figure.datasets if name in datasets]
    sets = [lines for lines in (figure.lines, figure.lower_lines) if lines]
    if figure.levels_across:
        return [
            [Panel(name, level, metric, lines) for name in shown for level in figure.levels]
            for lines in sets
            for metric in figure.metrics
        ]
    return [
        [Panel(name, level, metric, lines) for name in shown]
        for lines in sets
        for level in figure.levels
        for metric in figure.metrics
    ]


def _means(curves: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return mean and standard deviation over runs by round; NaN and infinite values are not left out."""
    groups = curves.groupby([*EXPERIMENT, "round"])
    columns = {}
    for metric in metrics:
        columns[metric] = groups[metric].mean(skipna=False)
        columns[f"{metric}_std"] = groups[metric].std(skipna=False)
    return pd.DataFrame(columns).reset_index()


def _draw_panel(axes: Axes, means: pd.DataFrame, panel: Panel, name: str) -> None:
    here = means[means["dataset"] == panel.dataset]
    level = here[here["stragglers_fraction"] == panel.stragglers_fraction]
    for line in panel.lines:
        colour = PALETTE[line.colour]
        table = level[level["line"] == line.label]
        rounds, mean = table["round"].to_numpy(float), table[panel.metric].to_numpy(float)
        std = table[f"{panel.metric}_std"].to_numpy(float)
        coincides = (
            line.label == "FedAvg" and panel.stragglers_fraction == 0
        )  # with mu = 0, which is drawn on top of it
        width = 3.5 if coincides else 1.5
        axes.plot(rounds, mean, line.style, color=colour, lw=width, label=line.label)
        if np.isfinite(std).any():
            axes.fill_between(rounds, mean - std, mean + std, color=colour, alpha=0.18, lw=0)
    finish_by_round(axes, name, num_ticks=5, label_size=8)
    edges = here[panel.metric] + here[f"{panel.metric}_std"].fillna(0.0)
    _set_view(axes, panel.metric, [edge.to_numpy(float) for _, edge in edges.groupby([here[c] for c in EXPERIMENT])])


def _draw_ends(axes: Axes, ends: pd.DataFrame, panel: Panel) -> None:
    """Draw a bar per line beside the last round: mean ± standard deviation of the repetitions' last rounds."""
    level = ends[(ends["dataset"] == panel.dataset) & (ends["stragglers_fraction"] == panel.stragglers_fraction)]
    for place, line in enumerate(panel.lines):
        (row,) = level[level["line"] == line.label].to_dict("records")
        mean, std = row[f"{panel.metric}_last10_mean"], row[f"{panel.metric}_last10_std"]
        if np.isfinite(mean) and mean + std <= axes.get_ylim()[1]:
            at = row["last_round"] * (1.04 + 0.035 * place)
            axes.errorbar(at, mean, std, color=PALETTE[line.colour], fmt="_", ms=5, lw=1.5, capsize=2)


def _set_view(axes: Axes, metric: str, lines: Sequence[Curve]) -> None:
    """Set a metric's axis, the same for all panels of a data set."""
    if metric.endswith("accuracy"):
        axes.set_ylim(0.0, 1.0)
        return
    limit_view(axes, 1.05 * max(1.0, *map(np.max, lines)) if metric == "mu" else loss_limit(lines), marker_size=6)


def _title(figure: Figure, panel: Panel, first_row: bool) -> str:
    stragglers = f"{percent(panel.stragglers_fraction)} stragglers"
    if figure.levels_across:
        return stragglers if first_row else ""
    name = DATASETS[panel.dataset].title
    if panel.lines == figure.lower_lines:
        return f"{name}, more devices"
    if len(figure.levels) > 1:
        return f"{name}, {stragglers}"
    return name if first_row else ""


def _add_legend(canvas: Canvas, figure: Figure, curves: pd.DataFrame) -> None:
    runs = of_repetitions(curves).groupby(EXPERIMENT)["repetition"].nunique()
    num_runs, fewest = runs.max(), runs.min()
    counted = "one run each" if num_runs == 1 else f"mean ± one standard deviation of {num_runs} runs"
    if fewest < num_runs:
        counted += f" ({fewest} with more devices)"
    if (num_data := curves["seed"].nunique()) > 1:
        counted = f"mean ± one standard deviation of {num_data} data sets; bars: of {num_runs} repetitions on the first"
    if any(line.get_marker() == "^" for axes in canvas.axes for line in axes.get_lines()):
        counted += "; ▲ leaves the view"
    handles = [
        Line2D([], [], color=PALETTE[line.colour], ls=line.style, lw=2.4, label=line.label) for line in figure.all_lines
    ]
    canvas.legend(
        handles=handles,
        loc="outside upper center",
        ncols=2 if canvas.get_figwidth() < 7 else 4,
        title=figure.title + ("\n" if canvas.get_figwidth() < 7 else ": ") + counted,
        title_fontsize=10,
        frameon=False,
    )


def _width(num_columns: int) -> float:
    return max(5.0, 0.5 + 2.9 * num_columns)
