"""The figure of a division and the table of its measures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection

from fedprox.data.heterogeneity import label_distributions, measure
from fedprox.report.partition_figure import SHARES, Division, by_class, draw, size_bins, table


def division(counts, name="a name") -> Division:
    counts = np.asarray(counts)
    return Division(name, counts, measure(counts, np.random.default_rng(0)))


def many(num_clients: int, num_classes: int = 10) -> Division:
    """Return a division in which client k holds k + 1 examples of class k mod num_classes."""
    counts = np.zeros((num_clients, num_classes), dtype=np.int64)
    clients = np.arange(num_clients)
    counts[clients, clients % num_classes] = clients + 1
    return division(counts)


def dots_of(figure) -> list[PathCollection]:
    return [each for axes in figure.axes for each in axes.collections if isinstance(each, PathCollection)]


def heats_of(figure) -> list:
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_the_area_of_a_dot_is_proportional_to_the_examples_and_absent_classes_have_no_dot():
    (dots,) = dots_of(draw([division([[8, 0], [2, 4]])]))
    assert dots.get_offsets().tolist() == [[0, 0], [1, 0], [1, 1]]  # (client, class)
    areas = dots.get_sizes()
    assert (areas / areas.max()).tolist() == pytest.approx([1, 2 / 8, 4 / 8])


def test_a_bar_above_the_dots_is_the_number_of_a_clients_examples():
    bars = draw([division([[8, 0], [2, 4]])]).axes[0]
    assert [patch.get_height() for patch in bars.patches] == [8, 6]


def test_dots_of_several_divisions_have_one_scale():
    first, second = dots_of(draw([division([[8, 1]]), division([[2, 2]])]))
    assert second.get_sizes()[0] / first.get_sizes()[0] == pytest.approx(2 / 8)


@pytest.mark.parametrize("num_clients", [3, 20, 21, 60])
def test_the_largest_dot_fills_a_cell_without_touching_the_next_one(num_clients, tmp_path):
    figure = draw([division(np.full((num_clients, 10), 7))])
    figure.savefig(tmp_path / "laid_out.png")
    (dots,) = dots_of(figure)
    box = dots.axes.get_window_extent()
    cells = box.width / np.ptp(dots.axes.get_xlim()), box.height / np.ptp(dots.axes.get_ylim())
    diameter = dots.get_sizes()[0] ** 0.5 * figure.dpi / 72  # pixels
    assert 0.85 * min(cells) <= diameter <= min(cells)  # `draw` has to estimate the cells before the layout


def test_many_clients_or_classes_become_a_heat_map_of_shares():
    assert not heats_of(draw([many(60)]))
    for shown in (many(61), many(30, num_classes=41)):
        figure = draw([shown])
        (heat,) = heats_of(figure)
        assert not dots_of(figure)
        assert heat.get_array().shape == shown.counts.T.shape
        assert heat.get_array().sum(axis=0).tolist() == pytest.approx([1] * len(shown.counts))
        assert heat.get_cmap() is SHARES


def test_the_heat_map_has_class_0_at_the_bottom_and_sorted_clients():
    (heat,) = heats_of(draw([many(80)]))
    # Each client holds one class, eight clients per class: ten steps of a stair.
    assert heat.origin == "lower"
    assert heat.get_array().tolist() == np.repeat(np.eye(10), 8, axis=1).tolist()


def test_the_histogram_counts_every_client_once():
    shown = many(500)
    histogram = draw([shown]).axes[1]
    assert sum(patch.get_height() for patch in histogram.patches) == 500
    assert histogram.get_xscale() == "log"  # 1 to 500 examples
    equal = draw([division(np.full((100, 2), 30))]).axes[1]
    assert equal.get_xscale() == "linear"
    assert max(patch.get_height() for patch in equal.patches) == 100


def test_a_mixed_figure_names_the_largest_dot_among_the_dots():
    figure = draw([division([[8, 1]]), many(200)])  # whose largest count is 200
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert [label for label in labels if "dot" in label] == ["client  (largest dot: 8 examples)"]


def test_the_heading_of_a_panel_has_name_sizes_and_measures():
    # By hand: no class in common, sizes 9 and 3: Gini (mean |difference| 3) / (2 * 6); classes 1 and 3.
    figure = draw([division([[9, 0, 0, 0], [0, 1, 1, 1]], "alpha=0.1"), division([[1, 1], [1, 1]], "alpha=9")])
    first, second = [panel.get_suptitle() for panel in figure.subfigs]
    assert first.splitlines() == [
        "alpha=0.1",
        "2 clients with 3 to 9 examples (median 6)",
        "JS distance 1.00  ·  effective classes 2.0 (1.0 to 3.0)  ·  Gini 0.25",
    ]
    assert second.startswith("alpha=9\n")


@pytest.mark.parametrize("counts", [(8,), (8, 8, 8), (40, 100), (5000, 5000)])
def test_no_heading_leaves_its_panel_and_no_labels_overlap(counts, tmp_path):
    figure = draw([many(num_clients) for num_clients in counts])
    figure.savefig(tmp_path / "laid_out.png")
    for panel in figure.subfigs[: len(counts)]:
        heading = panel._suptitle.get_window_extent()
        assert panel.bbox.x0 <= heading.x0
        assert heading.x1 <= panel.bbox.x1
        boxes = [axes.get_tightbbox() for axes in panel.axes]
        for place, box in enumerate(boxes):
            assert panel.bbox.y0 - 1 <= box.y0
            assert box.y1 <= heading.y0 + 1
            assert not any(box.overlaps(other) for other in boxes[:place])


def test_the_table_has_a_row_of_text_for_each_division():
    (row,) = table([division([[9, 0, 0, 0], [0, 1, 1, 1]], "alpha=0.1")]).to_dict("records")
    assert row == {
        "partition": "alpha=0.1",
        "clients": "2",
        "examples": "12",
        "smallest": "3",
        "median": "6",
        "largest": "9",
        "Gini of sizes": "0.250",
        "effective classes (range)": "2.00 (1.00 to 3.00)",
        "Jensen-Shannon distance": "1.000",
    }


def test_clients_are_sorted_by_first_class_then_second_then_share():
    shares = label_distributions(np.array([[1, 9, 0], [6, 0, 4], [5, 4, 0], [9, 1, 0], [0, 0, 2]]))
    # First classes 1, 0, 0, 0, 2; among those of class 0 the seconds are 2, 1, 1; of the last two 0.9 > 5/9.
    assert by_class(shares).tolist() == [3, 2, 1, 0, 4]


def test_clients_of_a_single_class_keep_their_order():
    assert by_class(np.ones((3, 1))).tolist() == [0, 1, 2]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_the_bins_contain_all_sizes_and_no_size_is_an_edge(sizes):
    edges = size_bins(np.array(sizes))
    assert 1 <= len(edges) - 1 <= 20
    assert (np.diff(edges) >= 1).all()
    assert edges[0] < min(sizes)
    assert max(sizes) < edges[-1]
    assert set(edges % 1) == {0.5}


def test_bins_have_equal_width_or_equal_ratio_for_a_wide_range():
    assert size_bins(np.array([30, 30])).tolist() == [29.5, 30.5]
    assert set(np.diff(size_bins(np.array([1, 200])))) == {10}
    ratios = size_bins(np.array([100, 100 * 2**20 - 1]))  # 20 bins, each twice as wide as the one before
    assert (ratios + 0.5).tolist() == [100 * 2**power for power in range(21)]
