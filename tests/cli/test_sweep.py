"""Which configurations are composed and checked before a sweep's first job."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from fedprox.config.compose import each_value_once
from fedprox.errors import UserError


def test_without_a_sweep_there_is_one_configuration_with_the_overrides_as_they_were_given():
    given_ = ["mu=0.5", "dataset=digits", "data_dir='a, b'", "+repeat_num=3", "~experiment"]
    assert list(each_value_once(given_)) == [given_]
    assert list(each_value_once([])) == [[]]


def test_every_value_of_every_swept_setting_occurs_once_beside_the_first_of_the_others():
    # 1 + (2 - 1) + (3 - 1) = 4 configurations, where the sweep has 6 jobs.
    assert list(each_value_once(["mu=0,1", "dataset=digits", "seed=1,2,3"])) == [
        ["mu=0", "dataset=digits", "seed=1"],
        ["mu=1", "dataset=digits", "seed=1"],
        ["mu=0", "dataset=digits", "seed=2"],
        ["mu=0", "dataset=digits", "seed=3"],
    ]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("+repeat_num=range(3)", ["+repeat_num=0", "+repeat_num=1", "+repeat_num=2"]),
        ("repeat_num=range(1,6,2)", ["repeat_num=1", "repeat_num=3", "repeat_num=5"]),
        ("++mu=0,1", ["++mu=0", "++mu=1"]),
        ("mu=choice(0.5,2)", ["mu=0.5", "mu=2"]),
        ("data_dir='a b','c=d'", ["data_dir='a b'", "data_dir='c=d'"]),
        ("dataset=digits,synthetic_0.5_0.5", ["dataset=digits", "dataset=synthetic_0.5_0.5"]),
    ],
)
def test_each_form_of_a_sweep_is_taken_apart(override, values):
    assert list(each_value_once([override])) == [[value] for value in values]


@pytest.mark.parametrize("override", ["x=[1,2]", "x={a:1,b:2}", "data_dir='a,b'", "mu=1"])
def test_lists_and_quoted_commas_are_no_sweeps(override):
    assert list(each_value_once([override])) == [[override]]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), max_size=4))
def test_as_many_configurations_as_there_are_values_and_none_of_them_sweeps(settings):
    overrides = [f"s{at}={','.join(map(str, values))}" for at, values in enumerate(settings)]
    found = list(each_value_once(overrides))
    assert len(found) == 1 + sum(len(values) - 1 for values in settings)
    for at, values in enumerate(settings):
        assert {chosen[at] for chosen in found} == {f"s{at}={value}" for value in values}
    parser = OverridesParser.create()
    assert not any(each.is_sweep_override() for chosen in found for each in parser.parse_overrides(chosen))


@pytest.mark.parametrize(
    "override", ["mu=interval(0,1)", "mu=tag(log,interval(0.1,1))", "batch_size=int(interval(1,9))"]
)
def test_what_cannot_be_listed_is_left_to_the_sweeper_and_the_rest_is_checked(override):
    assert list(each_value_once([override, "seed=1,2", "dataset=digits"])) == [
        ["seed=1", "dataset=digits"],
        ["seed=2", "dataset=digits"],
    ]


@pytest.mark.parametrize(
    "override",
    ["+repeat_num=range(0)", "mu=range(1,1)", "mu=range(0,1,-1)", "model=glob(nothing*)", "mu=shuffle(range(0))"],
)
def test_a_sweep_over_no_value_is_refused_by_name(override):
    with pytest.raises(UserError) as error:
        list(each_value_once(["seed=1,2", override]))
    assert str(error.value).startswith(f"{override} gives no value")


def test_a_glob_over_a_group_is_a_sweep_too():
    assert list(each_value_once(["protocol=glob(*)"])) == [
        ["protocol=authors"],
        ["protocol=flower"],
        ["protocol=paper"],
    ]
