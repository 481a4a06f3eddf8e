"""Values given in Python reach the settings unchanged."""

from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from fedprox.cli.words import words_of
from fedprox.errors import UserError

PLAIN = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=12)


@given(value=PLAIN | st.lists(PLAIN, max_size=3))
def test_every_value_is_read_as_it_was_given(value):
    (word,) = words_of("name", value)
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    read = override.value()
    assert read == value
    assert list(map(type, read)) == list(map(type, value)) if isinstance(value, list) else type(read) is type(value)


def test_simple_values_are_written_as_they_are_typed():
    settings = {"dataset": "digits", "mu": 0.1, "path": Path("a/b"), "rate": np.float64(0.5), "update": ["top_k"]}
    words = [word for name, value in settings.items() for word in words_of(name, value)]
    assert words == ["dataset=digits", "mu=0.1", "path=a/b", "rate=0.5", "update=[top_k]"]


def test_a_mapping_is_a_group_and_a_plus_stays_in_front():
    given = {"alpha": 0.1, "inner": {"deep": 1}}
    assert list(words_of("partition", given)) == ["partition.alpha=0.1", "partition.inner.deep=1"]
    assert list(words_of("model", {"+width": 4})) == ["+model.width=4"]
    assert list(words_of("++model", {"width": 4})) == ["++model.width=4"]


@pytest.mark.parametrize("value", [object(), {1, 2}, np.ones(3), b"text", 1j])
def test_anything_else_is_refused_with_its_name(value):
    with pytest.raises(UserError, match="mu must be a number, a text, true, false or null"):
        list(words_of("mu", value))
