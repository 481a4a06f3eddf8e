"""Names: one for each way to write a whole number, in order, and rows of two files together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprox.data.sources.categories import Categories

NAMES = st.lists(st.sampled_from(["10", "9", "a", "7.0", "7", " 7"]), min_size=1)


def categories(names: list[str]) -> Categories:
    return Categories.of(np.arange(len(names)), names)


def texts(rows: Categories) -> list[str]:
    return [rows.names[code] for code in rows.codes]


@given(NAMES, NAMES)
def test_rows_keep_their_names_when_they_are_ordered_and_joined(one, other):
    expected = [{"7.0": "7", " 7": "7"}.get(name, name) for name in one + other]
    rows = categories(one).joined(categories(other))
    assert texts(rows) == texts(rows.in_order()) == expected
    assert len(set(rows.names)) == len(rows.names) == len(set(expected))


def test_whole_numbers_are_in_the_order_of_numbers_and_all_else_in_that_of_text():
    assert categories(["10", "9", "9.0"]).in_order().names == ("9", "10")
    assert categories(["10", "9", "a"]).in_order().names == ("10", "9", "a")
