"""Garbage collection around large imports."""

import gc

import pytest

from fedprox.startup import only_new_garbage, without_garbage_collection


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()
    gc.enable()


def fails() -> None:
    """Stand for an import that finds a library broken."""
    with without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError


@pytest.mark.parametrize("was_enabled", [True, False])
def test_no_garbage_is_collected_meanwhile_and_afterwards_as_before(was_enabled):
    (gc.enable if was_enabled else gc.disable)()
    with pytest.raises(ImportError):
        fails()
    assert gc.isenabled() == was_enabled


def test_what_was_made_meanwhile_is_not_looked_through_again():
    gc.unfreeze()
    with without_garbage_collection():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() > len(kept)
    tracked = {id(each) for each in gc.get_objects()}  # those that collections look at
    assert not tracked & {id(each) for each in kept}


def test_only_new_objects_are_looked_through_and_later_all_that_were_not_before_either():
    gc.unfreeze()
    old = [[] for _ in range(1000)]
    with only_new_garbage():
        new = [[] for _ in range(1000)]
        tracked = {id(each) for each in gc.get_objects()}
    assert not tracked & {id(each) for each in old}
    assert {id(each) for each in new} <= tracked
    assert gc.get_freeze_count() == 0  # so that no garbage stays for good
    assert {id(each) for each in old} <= {id(each) for each in gc.get_objects()}
