"""The panels of the figures, checked on the Figure object, and their tables."""

import numpy as np
import pandas as pd
import pytest

from fedprox.reproduce.figures import draw
from fedprox.reproduce.runs import run_missing
from fedprox.reproduce.specs import FIGURES, jobs_of
from fedprox.reproduce.tables import read_curves, readable, summarise

ALL_METRICS = ("train_loss", "test_accuracy", "gradient_variance", "gradient_variance_unweighted")


@pytest.fixture
def curves_of():
    """Return a function that makes a figure's rounds 0 .. 12 with random values; adaptive mu rises by 0.1 per round."""

    def make(name, num_seeds=2, datasets=None):
        figure = FIGURES[name]
        rng = np.random.default_rng(0)
        rounds = np.arange(13)
        jobs = jobs_of(figure, datasets or figure.datasets, num_seeds)
        tables = [
            pd.DataFrame({metric: rng.uniform(0.2, 0.9, 13) for metric in ALL_METRICS}).assign(
                mu=0.1 * rounds if "adaptive" in job.label else float(job.label == "FedProx (mu = 1)"),
                round=rounds,
                dataset=job.dataset,
                stragglers_fraction=job.stragglers_fraction,
                line=job.label,
                seed=job.seed,
                repetition=job.repetition,
            )
            for job in jobs
        ]
        return pd.concat(tables, ignore_index=True)

    return make


def shape(canvas):
    grid = canvas.axes[0].get_subplotspec().get_gridspec()
    return grid.nrows, grid.ncols


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("fig1", 3, 5),
        ("fig2", 2, 4),
        ("fig3", 2, 2),
        ("fig4", 2, 4),
        ("fig5", 2, 3),
        ("fig7", 3, 5),
        ("fig8", 1, 5),
        ("fig12", 3, 4),
    ],
)
def test_panels_are_arranged_as_in_the_paper_with_a_line_per_algorithm(curves_of, name, rows, columns):
    canvas = draw(FIGURES[name], curves_of(name))
    assert shape(canvas) == (rows, columns)
    upper, lower = ([line.label for line in lines] for lines in (FIGURES[name].lines, FIGURES[name].lower_lines))
    for axes in canvas.axes:
        is_lower = axes.get_subplotspec().rowspan.start == 1 and lower
        shown = [line.get_label() for line in axes.get_lines() if len(line.get_xdata()) == 13]
        assert shown == (lower if is_lower else upper)
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == list(dict.fromkeys(upper + lower))


def test_titles_name_data_set_and_level_or_the_data_set_of_the_column(curves_of):
    titles = [axes.get_title(loc="left") for axes in draw(FIGURES["fig1"], curves_of("fig1")).axes]
    assert titles[0] == "Synthetic(1,1), 0% stragglers"
    assert titles[14] == "Sent140, 90% stragglers"
    titles = [axes.get_title(loc="left") for axes in draw(FIGURES["fig2"], curves_of("fig2")).axes]
    assert titles == ["Synthetic-IID", "Synthetic(0,0)", "Synthetic(0.5,0.5)", "Synthetic(1,1)", "", "", "", ""]
    titles = [axes.get_title(loc="left") for axes in draw(FIGURES["fig5"], curves_of("fig5")).axes]
    assert titles == ["0% stragglers", "50% stragglers", "90% stragglers", "", "", ""]


def test_a_line_is_the_mean_over_repetitions_and_its_band_one_sample_standard_deviation(curves_of):
    curves = curves_of("fig7", num_seeds=3, datasets=["mnist"])
    axes = draw(FIGURES["fig7"], curves).axes[2]  # 90%
    of_line = curves[(curves["stragglers_fraction"] == 0.9) & (curves["line"] == "FedProx (best mu)")]
    runs = np.stack([run["test_accuracy"].to_numpy() for _, run in of_line.groupby("repetition")])
    (line,) = (line for line in axes.get_lines() if line.get_label() == "FedProx (best mu)")
    np.testing.assert_allclose(line.get_ydata(), runs.mean(axis=0), rtol=1e-12)
    band = axes.collections[-1].get_paths()[0].get_extents()
    assert band.y0 == pytest.approx((runs.mean(axis=0) - runs.std(axis=0, ddof=1)).min())
    assert band.y1 == pytest.approx((runs.mean(axis=0) + runs.std(axis=0, ddof=1)).max())


def test_a_figure_over_data_sets_has_bands_over_them_and_bars_for_repetitions_on_the_first(curves_of):
    figure, curves = FIGURES["fig2"], curves_of("fig2", num_seeds=3, datasets=["synthetic_1_1"])
    axes = draw(figure, curves).axes[0]
    of_line = curves[curves["line"] == "FedProx (mu = 1)"]
    loss = {key: run["train_loss"].to_numpy() for key, run in of_line.groupby(["seed", "repetition"])}
    assert set(loss) == {(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)}
    (line,) = (line for line in axes.get_lines() if line.get_label() == "FedProx (mu = 1)")
    data_sets = np.stack([loss[seed, 0] for seed in range(3)])
    np.testing.assert_allclose(line.get_ydata(), data_sets.mean(axis=0), rtol=1e-12)
    ends = [loss[0, repetition][3:].mean() for repetition in range(3)]  # rounds 3 .. 12 are the last ten
    bar = axes.containers[1]  # the second line's
    ((_, low), (at, high)) = bar.lines[2][0].get_segments()[0]
    assert at > 12
    assert (low, high) == pytest.approx((np.mean(ends) - np.std(ends, ddof=1), np.mean(ends) + np.std(ends, ddof=1)))


def test_the_legend_explains_the_bands(curves_of):
    def title(name):
        return draw(FIGURES[name], curves_of(name, num_seeds=2)).legends[0].get_title().get_text()

    assert "mean ± one standard deviation of 2 runs" in title("fig8")
    assert "of 2 data sets; bars: of 2 repetitions on the first" in title("fig2")


def test_one_repetition_has_no_band(curves_of):
    canvas = draw(FIGURES["fig2"], curves_of("fig2", num_seeds=1))
    assert not any(axes.collections for axes in canvas.axes)
    assert canvas.legends[0].get_title().get_text().endswith(": one run each")


def test_mu_is_drawn_by_round_if_it_is_adaptive_and_as_the_setting_otherwise(tmp_path, fake_run):
    jobs = jobs_of(FIGURES["fig3"], FIGURES["fig3"].datasets, num_seeds=1, num_rounds=12)
    run_missing(jobs, tmp_path, run=fake_run)
    canvas = draw(FIGURES["fig3"], read_curves(jobs, tmp_path))
    mu = {line.get_label(): line.get_ydata() for line in canvas.axes[3].get_lines()}  # Synthetic(1,1), second row
    np.testing.assert_allclose(mu["FedProx (mu = 0)"], 0)
    np.testing.assert_allclose(mu["FedProx (mu = 1)"], 1)
    np.testing.assert_allclose(mu["FedProx (adaptive mu)"], 0.1 * np.arange(13))
    assert canvas.axes[3].get_ylim()[1] > 1.2  # no line is cut off


def test_a_diverging_loss_leaves_the_view_at_a_triangle(curves_of):
    curves = curves_of("fig2", num_seeds=1, datasets=["synthetic_1_1"])
    wild = (curves["line"] == "FedProx (mu = 0)") & (curves["round"] >= 7)
    curves.loc[wild, "train_loss"] = 1e6
    canvas = draw(FIGURES["fig2"], curves)
    (triangle,) = (line for line in canvas.axes[0].get_lines() if line.get_marker() == "^")
    assert triangle.get_xdata() == [7]
    assert canvas.axes[0].get_ylim()[1] < 10
    assert canvas.legends[0].get_title().get_text().endswith("▲ leaves the view")


def test_the_table_has_the_figures_order_and_averages_each_runs_last_rounds(curves_of):
    figure = FIGURES["fig6"]
    curves = curves_of("fig6", num_seeds=2, datasets=["synthetic_1_1", "synthetic_iid"])
    table = summarise(curves, figure)
    assert table["dataset"].tolist() == ["synthetic_iid"] * 4 + ["synthetic_1_1"] * 4
    assert table["line"].tolist() == (["FedProx (mu = 0)"] * 2 + ["FedProx (mu = 1)"] * 2) * 2
    assert table["over"].tolist() == ["data sets", "repetitions"] * 4
    of_line = curves[(curves["dataset"] == "synthetic_1_1") & (curves["line"] == "FedProx (mu = 1)")]
    for row, key in ((table.iloc[6], "seed"), (table.iloc[7], "repetition")):
        others = of_line[of_line["repetition" if key == "seed" else "seed"] == 0]
        assert_summarises(row, [run["test_accuracy"].to_numpy() for _, run in others.groupby(key)])
    shown = readable(table, figure)
    assert shown["runs"].tolist() == ["2 data sets", "2 repetitions"] * 4
    assert shown["training loss, run by run"].iloc[6] == ", ".join(
        f"{loss:.3f}" for loss in table["train_loss_each"][6]
    )
    assert "test accuracy, first half" not in shown
    assert "variance, unweighted" in shown


def assert_summarises(row, runs):
    """Assert that a row of the table has the accuracies of these runs in 12 rounds after the initial model."""
    assert row["test_accuracy_mean"] == pytest.approx(np.mean([run[-1] for run in runs]))
    assert row["test_accuracy_std"] == pytest.approx(np.std([run[-1] for run in runs], ddof=1))
    assert row["test_accuracy_last10_mean"] == pytest.approx(np.mean([run[3:].mean() for run in runs]))
    assert row["test_accuracy_last10_std"] == pytest.approx(np.std([run[3:].mean() for run in runs], ddof=1))
    assert row["test_accuracy_half_mean"] == pytest.approx(np.mean([run[1:7].mean() for run in runs]))  # rounds 1 .. 6
    assert row["test_accuracy_half_std"] == pytest.approx(np.std([run[1:7].mean() for run in runs], ddof=1))
    assert row["test_accuracy_each"] == pytest.approx([run[3:].mean() for run in runs])
    assert (row["runs"], row["last_round"]) == (2, 12)


def test_a_run_that_ends_with_nan_makes_the_mean_diverged(curves_of):
    curves = curves_of("fig2", num_seeds=2, datasets=["synthetic_iid"])
    curves.loc[(curves["repetition"] == 1) & (curves["round"] > 8), "train_loss"] = float("nan")
    table = readable(summarise(curves, FIGURES["fig2"]), FIGURES["fig2"])
    of_repetitions = table[table["runs"] == "2 repetitions"]  # the data set of seed 1 has no such run
    assert of_repetitions["training loss"].tolist() == ["diverged", "diverged"]


def test_a_table_with_stragglers_also_has_the_first_half_of_the_rounds(curves_of):
    figure = FIGURES["fig7"]
    summary = summarise(curves_of("fig7", num_seeds=1, datasets=["synthetic_1_1"]), figure)
    halves = readable(summary, figure)["test accuracy, first half"].tolist()
    assert halves == [f"{mean:.3f}" for mean in summary["test_accuracy_half_mean"]]
