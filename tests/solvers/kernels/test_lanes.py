"""Sixteen numbers at once: compiled code against plain Python."""

import numpy as np
import pytest
from numba import njit

from fedprox.solvers.kernels.lanes import load, spread, store

GRID = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)


def polynomial(array, row, column, scale):
    a = load(array, row, column)
    b = load(array, row + 1, column + 1)
    store(array, row, column, (scale * a - b) / spread(scale) + a * b)


def test_the_operations_are_those_of_numpy_on_sixteen_neighbours():
    a, b = GRID[1, 5:21], GRID[2, 6:22]
    scale = np.float32(0.3)
    expected = GRID.copy()
    expected[1, 5:21] = (scale * a - b) / scale + a * b
    plain, compiled = GRID.copy(), GRID.copy()
    polynomial(plain, 1, 5, scale)
    assert np.array_equal(plain, expected)
    njit(polynomial)(compiled, 1, 5, scale)
    # A product and a sum may be fused, and are then rounded once instead of twice: 1.2e-7 of the terms, at most 20.
    np.testing.assert_allclose(compiled, expected, rtol=0, atol=20 * 1.2e-7)


def test_only_the_sixteen_numbers_change():
    array = GRID.copy()
    njit(polynomial)(array, 0, 24, np.float32(2.0))
    changed = np.zeros(GRID.shape, bool)
    changed[0, 24:] = True
    assert np.array_equal(array != GRID, changed)


@pytest.mark.parametrize(("row", "column"), [(0, 25), (3, 0)])
def test_plain_python_refuses_positions_outside_the_array(row, column):
    with pytest.raises(IndexError):
        load(GRID, row, column)
    with pytest.raises((IndexError, ValueError)):
        store(GRID.copy(), row, column, spread(np.float32(0)))
