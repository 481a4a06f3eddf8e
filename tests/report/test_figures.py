"""Figures, checked by the lines, bands and limits of the Figure object."""

import math

import numpy as np
import pytest

from fedprox.report.figures import accuracy, comparison, curves, spread
from fedprox.report.style import PALETTE, Paper, loss_limit
from fedprox.report.summary import read_runs

ALGORITHMS = {"FedProx (mu = 2)": 2.0, "FedAvg": 0.0, "FedProx (mu = 0)": 0.0}
ORDER = ["FedAvg", "FedProx (mu = 0)", "FedProx (mu = 2)"]


def named_lines(axes):
    """Return label -> line of the lines with a label."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_there_is_a_row_per_straggler_level_and_a_column_for_loss_and_accuracy(tmp_path, write_run):
    for fraction in (0.9, 0.0, 0.5):
        write_run(tmp_path / str(fraction), [0.1, 0.5], stragglers_fraction=fraction)
    panels = comparison(read_runs([tmp_path])).axes
    names = ["test loss", "test accuracy"] * 3
    levels = ["MNIST, 0% stragglers", "", "MNIST, 50% stragglers", "", "MNIST, 90% stragglers", ""]  # for each row
    assert [axes.get_title(loc="left") for axes in panels] == levels
    assert [axes.get_ylabel() for axes in panels] == names
    assert [axes.get_xlabel() for axes in panels] == [""] * 4 + ["round"] * 2


def test_drift_is_an_optional_third_column(tmp_path, write_run):
    for index, drift in enumerate((1.0, 3.0)):
        more = {"drift": [None, drift, 2 * drift]}
        write_run(tmp_path / str(index), [0.1, 0.5, 0.6], repetition=index, more=more)
    frame = read_runs([tmp_path])
    assert len(comparison(frame).axes) == 2
    axes = comparison(frame, drift=True).axes[2]
    (line,) = named_lines(axes).values()
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 2.0, 4.0])
    assert (axes.get_ylabel(), axes.get_xlabel(), axes.get_ylim()[0]) == ("drift", "round", 0.0)


def test_data_sets_are_named_in_the_titles_as_in_the_paper(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1], dataset="mnist", partition={"alpha": 0.1})
    write_run(tmp_path / "1", [0.1], dataset="a$b$c", partition={"alpha": 1})
    titles = [axes.get_title(loc="left") for axes in comparison(read_runs([tmp_path], ["partition.alpha"])).axes[::2]]
    assert titles == ["a$b$c, alpha = 1, 90% stragglers", "MNIST, alpha = 0.1, 90% stragglers"]


def test_panels_are_side_by_side_on_a_page_and_one_above_the_other_in_a_column(tmp_path, write_run):
    for algorithm, mu in ALGORITHMS.items():
        write_run(tmp_path / algorithm, [0.1, 0.5], algorithm=algorithm, mu=mu)
    for width, shape in (("page", (1, 2)), ("column", (2, 1))):
        paper = Paper.of(width)
        figure = comparison(read_runs([tmp_path]), paper=paper)
        assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == shape
        assert [axes.get_ylabel() for axes in figure.axes] == ["test loss", "test accuracy"]
        assert [axes.get_xlabel() for axes in figure.axes] == (["round"] * 2 if width == "page" else ["", "round"])
        figure.savefig(tmp_path / "figure.png")
        (legend,) = figure.legends
        texts = [text for axes in figure.axes for text in (axes.yaxis.label, *axes.get_yticklabels())]
        assert {text.get_size() for text in (*texts, *legend.get_texts())} == {8.0}
        extent = legend.get_window_extent()
        assert (extent.x0, extent.x1) >= (0, 0)
        assert extent.x1 <= paper.width * figure.dpi


def test_a_long_explanation_is_broken_into_lines_that_fit_a_column(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.4, 0.5, 0.6], [1.0, 99.0, 1.0, 1.0], repetition=0)
    write_run(tmp_path / "1", [0.1, 0.8], repetition=1, status="interrupted")
    figure = comparison(read_runs([tmp_path]), paper=Paper.of("column"))
    figure.savefig(tmp_path / "figure.png")
    title = figure.legends[0].get_title()
    assert title.get_text().count("\n") >= 1
    assert title.get_window_extent().width <= 3.3 * figure.dpi


def test_lines_come_in_order_with_the_same_colours_in_every_panel_and_one_legend(tmp_path, write_run):
    for fraction in (0.0, 0.9):
        for algorithm, mu in ALGORITHMS.items():
            if (fraction, algorithm) != (0.0, "FedAvg"):  # a missing line must not shift the colours
                directory = tmp_path / f"{fraction}-{algorithm}"
                write_run(directory, [0.1, 0.5], algorithm=algorithm, mu=mu, stragglers_fraction=fraction)
    figure = comparison(read_runs([tmp_path]))
    colours = dict(zip(ORDER, PALETTE, strict=False))
    for axes, present in zip(figure.axes, [ORDER[1:]] * 2 + [ORDER] * 2, strict=True):
        assert list(named_lines(axes)) == present
        assert {name: line.get_color() for name, line in named_lines(axes).items()} == {
            name: colours[name] for name in present
        }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ORDER
    drawn = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    for handle, name in zip(legend.legend_handles, ORDER, strict=True):  # they look like the lines that they explain
        look = [getattr(drawn[name], f"get_{part}")() for part in ("color", "linestyle", "marker")]
        assert [getattr(handle, f"get_{part}")() for part in ("color", "linestyle", "marker")] == look
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_a_line_is_the_mean_and_its_band_one_sample_standard_deviation(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.4, 0.5], [2.0, 1.2, 1.0], repetition=0)
    write_run(tmp_path / "1", [0.1, 0.8, 0.9], [2.0, 1.0, 0.6], repetition=1)
    figure = comparison(read_runs([tmp_path]))
    values = [(np.array([2.0, 1.1, 0.8]), [0.0, 0.2, 0.4]), (np.array([0.1, 0.6, 0.7]), [0.0, 0.4, 0.4])]
    for axes, (mean, distances) in zip(figure.axes, values, strict=True):
        std = np.array(distances) / math.sqrt(2)  # the sample standard deviation of two values: |a - b| / sqrt(2)
        np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), np.column_stack([[0, 1, 2], mean]))
        (band,) = axes.collections
        corners = band.get_paths()[0].vertices
        for round_num in range(3):
            edge = corners[corners[:, 0] == round_num, 1]
            assert edge.min() == pytest.approx(mean[round_num] - std[round_num])
            assert edge.max() == pytest.approx(mean[round_num] + std[round_num])
    assert figure.legends[0].get_title().get_text() == "mean ± one standard deviation of 2 runs"


def test_a_single_run_has_no_band(tmp_path, write_run):
    figure = comparison(read_runs([write_run(tmp_path / "0", [0.1, 0.4])]))
    assert [len(axes.collections) for axes in figure.axes] == [0, 0]
    assert figure.legends[0].get_title().get_text() == "one run each"


def test_a_mean_over_fewer_runs_is_dotted_and_the_legend_explains_it(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.4, 0.5, 0.6], repetition=0)
    write_run(tmp_path / "1", [0.1, 0.8], repetition=1, status="interrupted")
    figure = comparison(read_runs([tmp_path]))
    solid, dotted = figure.axes[1].get_lines()
    assert (solid.get_linestyle(), dotted.get_linestyle()) == ("-", ":")
    assert solid.get_xydata().tolist() == [[0, pytest.approx(0.1)], [1, pytest.approx(0.6)]]
    assert dotted.get_xdata().tolist() == [1, 2, 3]
    assert dotted.get_ydata()[1:].tolist() == [0.5, 0.6]
    title = figure.legends[0].get_title().get_text()
    assert title == "mean ± one standard deviation of 1 to 2 runs; dotted after some runs have ended"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 50.0])
def test_a_diverged_loss_leaves_the_view_at_a_triangle_and_does_not_squash_the_axis(tmp_path, write_run, bad):
    write_run(tmp_path / "0", [0.1, 0.5, 0.6], [2.3, 1.0, 0.8], algorithm="FedProx (mu = 0)")
    write_run(tmp_path / "1", [0.1, 0.1, 0.1], [2.3, bad, 0.9])
    figure = comparison(read_runs([tmp_path]))
    loss = figure.axes[0]
    bottom, top = loss.get_ylim()
    assert bottom == 0.0
    assert 2.3 < top <= 1.05 * 2 * 2.3
    (triangle,) = [line for line in loss.get_lines() if line.get_marker() == "^"]
    assert triangle.get_xydata().tolist() == [[1.0, top]]
    assert triangle.get_color() == PALETTE[0]
    assert figure.legends[0].get_title().get_text().endswith("; ▲ loss leaves the view")
    figure.savefig(tmp_path / "figure.png")


def test_the_loss_axis_fits_all_curves_that_do_not_diverge():
    start = np.array([2.0, 1.0])
    assert loss_limit([start, np.array([2.0, 3.9])]) == pytest.approx(1.05 * 3.9)
    assert loss_limit([start, np.array([2.0, 1e9])]) == pytest.approx(1.05 * 4.0)  # twice the initial 2
    assert loss_limit([np.array([2.0, 30.0]), np.array([2.0, 1e9])]) == pytest.approx(1.05 * 30.0)
    assert loss_limit([start, np.array([math.nan, math.inf])]) == pytest.approx(1.05 * 2.0)
    assert loss_limit([np.array([math.nan])]) == 1.0


def test_the_accuracy_figure_has_a_row_per_data_set_with_the_name_of_each_line_beside_its_end(tmp_path, write_run):
    for dataset in ("synthetic_1_1", "mine"):
        for repetition in range(2):
            for (algorithm, mu), last in zip(ALGORITHMS.items(), (0.9, 0.4, 0.89), strict=True):
                directory = tmp_path / f"{dataset}{algorithm}{repetition}"
                write_run(directory, [0.1, last], dataset=dataset, algorithm=algorithm, mu=mu, repetition=repetition)
    figure = accuracy(read_runs([tmp_path]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["mine, 90% stragglers", "Synthetic(1,1), 90% stragglers"]
    assert figure.axes[-1].get_xlabel() == "round  (mean ± one standard deviation of 2 runs)"
    assert figure.legends == []
    for axes in figure.axes:
        assert {name: line.get_ydata()[-1] for name, line in named_lines(axes).items()} == {
            "FedAvg": 0.4,
            "FedProx (mu = 0)": 0.89,
            "FedProx (mu = 2)": 0.9,
        }
        assert [text.get_text().strip() for text in axes.texts] == ORDER  # from the lowest end to the highest
        colours = dict(zip(ORDER, PALETTE, strict=False))
        assert all(text.get_color() == colours[text.get_text().strip()] for text in axes.texts)
        heights = [text.xy[1] for text in axes.texts]
        low, high = axes.get_ylim()
        assert heights[0] == pytest.approx((0.4 - low) / (high - low), abs=0.05)
        assert heights[2] - heights[1] >= 0.08  # not on top of each other, though their ends are 0.01 apart


def test_names_that_are_too_long_or_too_many_to_be_beside_their_lines_are_in_a_legend(tmp_path, write_run):
    for number in range(14):
        write_run(tmp_path / str(number), [0.1, 0.5], algorithm=f"FedProx (mu = {number})", mu=number)
    few, many = read_runs([tmp_path / "0", tmp_path / "1"]), read_runs([tmp_path])
    for frame, width, is_beside in ((few, None, True), (few, "2.5", False), (many, None, False)):
        figure = accuracy(frame, paper=Paper.of(width) if width else None)
        assert len(figure.axes[0].texts) == (2 if is_beside else 0)
        names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert names == (
            [] if is_beside else [f"FedProx (mu = {number})" for number in range(frame["algorithm"].nunique())]
        )


def test_labels_are_moved_apart_and_stay_within_the_axis():
    assert spread([0.2, 0.5, 0.9], 0.1) == [0.2, 0.5, 0.9]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_accuracy_axes_fit_all_curves_of_a_data_set_or_have_the_view_that_is_asked_for(tmp_path, write_run):
    write_run(tmp_path / "0", [0.4, 0.5], repetition=0)
    write_run(tmp_path / "1", [0.4, 0.6], repetition=1)
    write_run(tmp_path / "2", [0.3, 0.5], stragglers_fraction=0.0)
    write_run(tmp_path / "3", [0.8, 0.9], dataset="femnist")
    frame = read_runs([tmp_path])
    views = [axes.get_ylim() for axes in comparison(frame).axes[1::2]]
    high = 0.55 + 0.1 / math.sqrt(2)  # mean and standard deviation of 0.5 and 0.6; the margin is 4% of the range
    assert views[0] == pytest.approx((0.8 - 0.005, 0.9 + 0.005))
    assert views[1] == views[2] == pytest.approx((0.3 - 0.04 * (high - 0.3), high + 0.04 * (high - 0.3)))
    whole = comparison(frame, view=(0.0, 1.0)).axes[1::2]
    assert {axes.get_ylim() for axes in whole} == {(0.0, 1.0)}
    assert whole[0].get_yticks().tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert accuracy(frame, view=(0.2, 0.7)).axes[0].get_ylim() == (0.2, 0.7)


def test_an_accuracy_axis_stays_within_0_and_1(tmp_path, write_run):
    write_run(tmp_path / "0", [0.0, 0.5], repetition=0)
    write_run(tmp_path / "1", [0.0, 1.0], repetition=1)  # the band ends at 0.75 + 0.35, above 1
    assert comparison(read_runs([tmp_path])).axes[1].get_ylim() == (0.0, 1.0)


def test_curves_show_test_and_training_loss_beside_accuracy(tmp_path, write_run):
    figure = curves(read_runs([write_run(tmp_path / "0", [0.1, 0.5, 0.6], [2.3, 1.0, 0.8])]))
    loss, accuracy = figure.axes
    lines = named_lines(loss)
    assert lines["test"].get_xydata().tolist() == [[0, 2.3], [1, 1.0], [2, 0.8]]
    assert lines["training (cohort)"].get_xdata().tolist() == [1, 2]  # no client trained before round 1
    assert lines["training (cohort)"].get_ydata().tolist() == pytest.approx([1.1, 0.9])  # written as test + 0.1
    assert accuracy.get_lines()[0].get_ydata().tolist() == [0.1, 0.5, 0.6]
    assert figure.get_suptitle() == "FedAvg on mnist at 90% stragglers"


def test_training_loss_skips_rounds_without_updates(tmp_path, write_run):
    file = write_run(tmp_path / "0", [0.1, 0.5]) / "metrics.csv"
    file.write_text(file.read_text() + "2,0.5,0.5,,0,1.0\n3,0.4,0.6,0.7,4,1.5\n")
    loss, _ = curves(read_runs([tmp_path])).axes
    assert named_lines(loss)["training (cohort)"].get_xdata().tolist() == [1, 3]
    assert named_lines(loss)["test"].get_xdata().tolist() == [0, 1, 2, 3]


def test_curves_draw_one_run_only(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1])
    write_run(tmp_path / "1", [0.1], repetition=1)
    with pytest.raises(ValueError, match="curves draws one run, got 2"):
        curves(read_runs([tmp_path]))
