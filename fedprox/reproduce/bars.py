"""The figure of a page of tables: bars or points of accuracy with standard deviations, a panel per table."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedprox.report.style import PALETTE, blank_figure, finish_plain
from fedprox.reproduce.accuracies import Cells, Table, rows_of, shown
from fedprox.reproduce.pages import Page

PANEL_HEIGHT = 2.9  # inches
COLOURS = [PALETTE[place] for place in (2, 5, 3, 4)]  # one per column
MARKERS = "osD^"
GROUP_WIDTH = 0.8  # of the distance between two groups


def draw(page: Page, cells: Cells) -> Figure:
    """Draw the tables of a page that have cells: a group per row, a bar or a point per column."""
    tables = shown(page.tables, cells)
    figure = blank_figure(PANEL_HEIGHT * len(tables))
    figure.set_layout_engine("constrained")
    for axes, table in zip(figure.subplots(len(tables), squeeze=False).flat, tables, strict=True):
        _draw_table(axes, table, cells, as_bars=page.has_bars)
        axes.set_title(page.sections[table.name].title, fontsize=11, loc="left")
    return figure


def _draw_table(axes: Axes, table: Table, cells: Cells, *, as_bars: bool) -> None:
    rows, columns = list(rows_of(table)), list(table.columns.choices)
    width = GROUP_WIDTH / max(2, len(columns))
    for place, column in enumerate(columns):
        of_column = [cells[table.name, row, column] for row in rows]
        at = np.arange(len(rows)) + (place - (len(columns) - 1) / 2) * width
        means, stds = 100 * np.array([(cell.mean, cell.std) for cell in of_column]).T
        if as_bars:
            axes.bar(at, means, 0.92 * width, color=COLOURS[place], label=column)
        else:
            axes.plot(at, means, MARKERS[place], color=COLOURS[place], label=column, markersize=6)
        axes.errorbar(at, means, stds, fmt="none", ecolor="0.25", elinewidth=1.2, capsize=2)
        for x, mean, top in zip(at, means, means + np.nan_to_num(stds), strict=True):
            axes.annotate(
                f"{mean:.1f}", (x, top), (0, 2 if as_bars else 5), textcoords="offset points", ha="center", fontsize=7.5
            )
    axes.set_xticks(range(len(rows)), [row.replace(", ", "\n") for row in rows])
    if as_bars:
        axes.set_ylim(0, 105)
        axes.set_yticks(range(0, 101, 20))
    else:
        axes.margins(y=0.12)
    axes.set_ylabel("test accuracy, %")
    axes.grid(axis="y", color="0.9", lw=0.7)
    finish_plain(axes, 8)
    if len(columns) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(columns), frameon=False, fontsize=9)
