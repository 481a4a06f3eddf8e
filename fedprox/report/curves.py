"""A run's curves.png, drawn after every run and therefore without importing pandas."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedprox.report.runs import identify, label, read_metrics
from fedprox.report.style import PALETTE, Curve, blank_figure, finish_accuracy, finish_loss, loss_limit
from fedprox.runs.reader import COMPLETE, read_record


def save_curves(run_dir: Path) -> None:
    """Write curves.png into the directory of a finished run.

    Raises:
        UserError: If its run.json or metrics.csv is damaged.
    """
    canvas = FigureCanvasAgg(curves_of(run_dir))
    canvas.print_png(run_dir / "curves.png")  # type: ignore[no-untyped-call]  # savefig would render twice


def curves_of(run_dir: Path) -> Figure:
    """Draw the rounds that a run has.

    Raises:
        UserError: If its run.json or metrics.csv is damaged.
    """
    record = read_record(run_dir / "run.json")
    columns = read_metrics(run_dir / "metrics.csv", finished=record["status"] in COMPLETE)
    return draw(columns, label(identify(run_dir, record)))


def draw(columns: Mapping[str, Curve], title: str) -> Figure:
    """Draw one run's columns by round: test and training loss, and on the right test accuracy if there is one."""
    has_accuracy = not np.isnan(columns["test_accuracy"]).all()  # regression has none
    tested = ~np.isnan(columns["test_accuracy" if has_accuracy else "test_loss"])
    trained = columns["num_clients_counted"] > 0  # a round without updates has no training loss
    rounds, test_loss, train_loss = (
        columns["round"],
        columns["test_loss"][tested],
        columns["train_loss_cohort"][trained],
    )
    figure = blank_figure(height=3.2)
    figure.subplots_adjust(
        left=0.07, right=0.985, bottom=0.17, top=0.89, wspace=0.2
    )  # fixed, because a layout engine would render once more
    left, *others = figure.subplots(1, 1 + has_accuracy, sharex=True, squeeze=False)[0]
    left.plot(rounds[trained], train_loss, color=PALETTE[1], label="training (cohort)", lw=1.2)
    left.plot(rounds[tested], test_loss, color=PALETTE[2], label="test", lw=1.8)
    finish_loss(left, "loss", loss_limit([test_loss, train_loss]))
    for right in others:
        right.plot(rounds[tested], columns["test_accuracy"][tested], color=PALETTE[2], label="test", lw=1.8)
        finish_accuracy(right)
    left.legend(frameon=False)
    figure.supxlabel("round", fontsize=10)
    figure.suptitle(title, fontsize=11, parse_math=False)  # a data set may be named a$b$c
    return figure
