"""Figure of personal models: the accuracy of each client's own model against that of the global one."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedprox.errors import UserError
from fedprox.report.figures import titled
from fedprox.report.lines import lines_of
from fedprox.report.runs import EXPERIMENT, percent
from fedprox.report.style import Paper, blank_figure, finish_plain
from fedprox.report.summary import algorithm_order, in_order
from fedprox.runs.reader import broken, read_rows
from fedprox.storage import PERSONAL

_COLUMNS, _PER_ROW = ("num_examples", "global_accuracy", "personal_accuracy"), 4
_NARROWEST, _USUAL, _WIDEST = 1.5, 2.4, 3.0  # inches of a panel
_TICKS = (0.0, 0.5, 1.0)


def read_personal(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the clients of all runs that have personal models, a row each.

    Args:
        frame: From `fedprox.report.summary.read_runs`.

    Returns:
        The EXPERIMENT columns, num_examples, global_accuracy and personal_accuracy.

    Raises:
        UserError: If no run has any, or a personal.csv is damaged.
    """
    runs = frame.drop_duplicates("run")[["run", *EXPERIMENT]].to_dict("records")
    tables = [
        _read(file).assign(**{column: run[column] for column in EXPERIMENT})
        for run in runs
        if (file := Path(run["run"]) / PERSONAL).exists()
    ]
    if not tables:
        raise UserError("--personal needs runs with personal models; run them with personalisation=ditto, for example")
    return in_order(pd.concat(tables, ignore_index=True), algorithm_order(frame))


def _read(file: Path) -> pd.DataFrame:
    """Return the columns of a personal.csv that the figure needs."""
    header, rows = read_rows(file)
    try:
        return pd.DataFrame(rows, columns=header)[[*_COLUMNS]].astype(float)
    except (KeyError, ValueError) as error:
        raise broken(file, error) from error


def personal(frame: pd.DataFrame, paper: Paper | None = None) -> Figure:
    """Draw a panel for each experiment, with a point for each client of its runs.

    Above the diagonal, the client's own model is better. A point's area is proportional to the client's number of
    held-out examples. The numbers are the means over clients.

    Args:
        frame: From `fedprox.report.summary.read_runs`.
        paper: Size of the figure and its text; None: as wide as its panels, for a screen.

    Raises:
        UserError: See `read_personal`.
    """
    clients = read_personal(frame)
    panels = list(clients.groupby(EXPERIMENT, sort=False))
    columns = min(_PER_ROW, len(panels))
    if paper:
        columns = max(1, min(columns, int((paper.width - 0.4) / _NARROWEST)))
        side = min(_WIDEST, (paper.width - 0.4) / columns)
    else:
        paper, side = Paper(width=max(4.0, 0.4 + _USUAL * columns)), _USUAL
    rows = -(-len(panels) // columns)
    figure = blank_figure(height=0.5 + (side + 0.2) * rows, width=paper.width)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    looks = lines_of(frame)
    for axes, ((dataset, stragglers, algorithm), panel) in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, looks[str(algorithm)].colour, paper)
        where = f"{titled(str(dataset))}, {percent(float(str(stragglers)))} stragglers"
        axes.set_title(f"{where}\n{_wrapped(str(algorithm))}", fontsize=paper.small, loc="left", parse_math=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("accuracy of the global model\non a client's held-out examples", fontsize=paper.text)
    figure.supylabel("accuracy of the client's own model", fontsize=paper.text)
    return figure


def _draw(axes: Axes, panel: pd.DataFrame, colour: str, paper: Paper) -> None:
    before, after = panel["global_accuracy"], panel["personal_accuracy"]
    areas = 90 * panel["num_examples"] / panel["num_examples"].max()
    axes.plot([0, 1], [0, 1], color="0.7", lw=1.0, zorder=1)
    axes.scatter(before, after, s=np.maximum(areas, 6.0), color=colour, alpha=0.4, lw=0, clip_on=False, zorder=2)
    means = f"{before.mean():.3f} → {after.mean():.3f}"
    axes.text(0.97, 0.05, means, ha="right", fontsize=paper.small, transform=axes.transAxes)
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), xticks=_TICKS, yticks=_TICKS, aspect="equal")
    finish_plain(axes, paper.text)


def _wrapped(algorithm: str) -> str:
    """Return "FedProx (mu = 1, Ditto 1)" in two lines."""
    name, _, details = algorithm.partition(" (")
    return f"{name}\n({details}" if details else name
