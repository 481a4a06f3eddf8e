"""The shared random generators: seeded in a context, and restored afterwards."""

import contextlib
import random

import numpy as np
import pytest
import torch

from fedprox.solvers.generators import Generators, seeded

DRAWS = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_from_any_generator_is_noticed_and_undone(name):
    before = Generators()
    assert not before.have_moved()
    drawn = DRAWS[name]()
    assert before.have_moved()
    before.restore()
    assert not before.have_moved()
    assert DRAWS[name]() == drawn


@pytest.mark.parametrize("seed", [0, 2**63, (0, 3, 7)])
def test_a_seed_gives_the_same_numbers_and_is_undone_even_after_an_error(seed):
    before, drawn = Generators(), []
    for _ in range(2):
        with contextlib.suppress(KeyError), seeded(seed) as generators:
            assert not generators.have_moved()
            drawn.append([draw() for draw in DRAWS.values()])
            assert generators.have_moved()
            raise KeyError
        assert not before.have_moved()
    assert drawn[0] == drawn[1]
    with seeded(1):
        assert [draw() for draw in DRAWS.values()] != drawn[0]
