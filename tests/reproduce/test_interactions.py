"""The page of interactions: its runs, its numbers, and that it cannot drift from them."""

from pathlib import Path

import pandas as pd
import pytest

from fedprox.config.compose import compose
from fedprox.experiment.build import check_settings
from fedprox.reproduce import __main__ as command
from fedprox.reproduce import runs
from fedprox.reproduce.accuracies import Cell, of_frame, read_cells, rows_of, to_frame
from fedprox.reproduce.accuracies import jobs_of as jobs_of_tables
from fedprox.reproduce.bars import draw
from fedprox.reproduce.interactions import TABLES
from fedprox.reproduce.interactions_page import PAGE, SECTIONS

DOCS = Path(__file__).parents[2] / "docs"
CELLS = of_frame(pd.read_csv(DOCS / "figures" / "interactions.csv"))


def jobs_of(datasets, num_seeds: int, num_rounds: int | None = None) -> dict:
    return jobs_of_tables(TABLES, datasets, num_seeds, num_rounds)


def test_the_page_is_what_its_numbers_make():
    assert (DOCS / "interactions.md").read_text(encoding="utf-8") == PAGE.written(CELLS)


def test_the_page_has_five_runs_of_every_cell():
    assert set(CELLS) == set(jobs_of(PAGE.datasets, 1))
    assert {cell.runs for cell in CELLS.values()} == {5}


def test_the_literatures_findings_are_confirmed_and_the_others_are_not():
    there = [finding for table in TABLES for finding in PAGE.findings(table, CELLS)]
    assert [finding.claim for finding in there if not finding.is_confirmed] == [
        "The same attack harms the mean more behind top 10%",
        "The proximal term lowers that price",
    ]


def test_epsilon_is_that_of_the_accountant_for_one_in_twenty_clients_and_40_rounds():
    costs = {(column, cell.epsilon) for (table, _, column), cell in CELLS.items() if table == "privacy"}
    costs = dict(cost for cost in costs if cost[0] in ("z = 0.5", "z = 1"))
    assert costs == {"z = 0.5": pytest.approx(7.9949, abs=1e-3), "z = 1": pytest.approx(1.4027, abs=1e-3)}


@pytest.fixture
def with_fake_runs(monkeypatch, fake_run, tmp_path):
    """Let the command line use fake runs, and a data folder without files."""
    real = runs.run_missing
    monkeypatch.setattr(command, "run_missing", lambda jobs, out, place: real(jobs, out, place, run=fake_run))
    monkeypatch.setenv("FEDPROX_DATA_DIR", str(tmp_path / "data"))
    return fake_run


def test_one_command_does_five_repetitions_and_writes_page_figure_and_numbers(reproduce, with_fake_runs, tmp_path):
    status, out, err = reproduce("interactions", "--rounds", "1")
    assert (status, err) == (0, "")
    assert out.startswith("left out: mnist needs ")
    assert len(with_fake_runs.folders) == 9 * 2 * 5  # rows, columns, repetitions
    names = ("interactions.md", "figures/interactions.png", "figures/interactions.csv")
    files = [f"reproduction/{name}" for name in names]
    assert out.splitlines()[-3:] == files
    text = (tmp_path / files[0]).read_text()
    assert text == PAGE.written(of_frame(pd.read_csv(tmp_path / files[2])))
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## {SECTIONS['compression'].title}"]
    assert (tmp_path / files[1]).read_bytes().startswith(b"\x89PNG")


def test_the_settings_of_the_tables_that_need_files_pass_every_check():
    jobs = {job.name: job for runs_of_cell in jobs_of(["mnist"], 1).values() for job in runs_of_cell}
    for config in runs.settings_of({Path(name): job for name, job in jobs.items()}, {}).values():
        check_settings(config)
    assert len(jobs) == 5 + 4 * 4


def test_a_cell_is_the_mean_of_its_runs_last_ten_rounds(tmp_path, fake_run):
    key = ("skew", "Krum", "no attack")
    jobs = {key: jobs_of(["mnist"], 3, 12)[key]}
    assert [job.repetition for job in jobs[key]] == [0, 1, 2]
    runs.run_missing(jobs[key], tmp_path, run=fake_run)
    means = pd.Series([pd.read_csv(folder / "metrics.csv")["test_accuracy"][3:].mean() for folder in fake_run.folders])
    (cell,) = read_cells(jobs, tmp_path).values()
    assert (cell.mean, cell.std, cell.runs) == (pytest.approx(means.mean()), pytest.approx(means.std(ddof=1)), 3)
    assert cell.epsilon != cell.epsilon


def test_numbers_survive_the_csv_file(tmp_path):
    cells = {("skew", "Krum", "no attack"): Cell(1 / 3, 0.1 / 3, 5, 1.4027)}
    to_frame(cells).to_csv(tmp_path / "a.csv", index=False)
    assert of_frame(pd.read_csv(tmp_path / "a.csv")) == cells


def test_a_rows_settings_are_those_of_its_factors():
    key = ("compression", "top 10%, MultiKrum", "sign flip")
    (job,) = jobs_of(["digits"], 1)[key]
    config = compose(job.overrides)
    assert (config.update.top_k.fraction, config.clients_per_round, config.num_rounds, config.mu) == (0.1, 20, 40, 0)
    assert (config.strategy.arguments["num_malicious"], config.strategy.arguments["num_selected"]) == (5, 12)
    assert (config.attack.name, config.attack.arguments["scale"], config.weight_decay) == ("SignFlip", 4, 0)


def test_the_figure_has_a_group_of_bars_for_each_row():
    figure = draw(PAGE, CELLS)
    assert len(figure.axes) == len(TABLES)
    for axes, table in zip(figure.axes, TABLES, strict=True):
        assert axes.get_title(loc="left") == SECTIONS[table.name].title
        heights = [bar.get_height() for bar in axes.patches]
        expected = [
            100 * CELLS[table.name, row, column].mean for column in table.columns.choices for row in rows_of(table)
        ]
        assert heights == pytest.approx(expected)
