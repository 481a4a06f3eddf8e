"""The page of algorithms: it cannot drift from its numbers, and its runs have the settings that it says."""

from pathlib import Path

import pandas as pd
import pytest

from fedprox.experiment.build import check_settings
from fedprox.reproduce import runs
from fedprox.reproduce.accuracies import jobs_of, of_frame
from fedprox.reproduce.algorithms import ALGORITHMS, RATES, TABLES
from fedprox.reproduce.algorithms_page import PAGE
from fedprox.reproduce.bars import draw

DOCS = Path(__file__).parents[2] / "docs"
CELLS = of_frame(pd.read_csv(DOCS / "figures" / "algorithms.csv"))


def test_the_page_is_what_its_numbers_make():
    assert (DOCS / "algorithms.md").read_text(encoding="utf-8") == PAGE.written(CELLS)


def test_the_page_has_five_runs_of_every_algorithm_in_every_column():
    assert set(CELLS) == {(table.name, name, column) for table in TABLES for name in ALGORITHMS for column in
                          table.columns.choices}  # fmt: skip
    assert {cell.runs for cell in CELLS.values()} == {5}


def test_scaffold_beats_fedavg_on_skewed_images_by_more_than_both_deviations():
    scaffold, fedavg = (CELLS["digits", name, "alpha = 0.1"] for name in ("SCAFFOLD", "FedAvg"))
    assert scaffold.mean - fedavg.mean > scaffold.std + fedavg.std


def test_every_run_has_a_number_that_was_tried_and_passes_every_check():
    columns = ("90% stragglers", "alpha = 0.1")  # the others differ in nothing else
    of_cells = {
        key: runs_of_cell for key, runs_of_cell in jobs_of(TABLES, PAGE.datasets, 1).items() if key[2] in columns
    }
    jobs = {job.name: job for (job,) in of_cells.values()}
    configs = runs.settings_of({Path(name): job for name, job in jobs.items()}, {})
    assert len(configs) == len(TABLES) * len(ALGORITHMS)
    for config in configs.values():
        check_settings(config)
    rates = {job.dataset: set() for job in jobs.values()}
    for job, config in zip(jobs.values(), configs.values(), strict=True):
        rates[job.dataset].add(config.learning_rate)
    for table in TABLES:
        assert rates[table.dataset] <= set(RATES[table.name])


@pytest.mark.parametrize("place", range(len(TABLES)))
def test_the_figure_has_a_point_for_each_cell(place):
    axes, table = draw(PAGE, CELLS).axes[place], TABLES[place]
    points = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    assert list(points) == list(table.columns.choices)
    for column, heights in points.items():
        expected = [100 * CELLS[table.name, name, column].mean for name in ALGORITHMS]
        assert list(heights) == pytest.approx(expected)
