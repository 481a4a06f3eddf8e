"""Garbage collection around large imports."""

import gc

import pytest

from fedprox.startup import without_garbage_collection


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
