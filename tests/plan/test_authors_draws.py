"""The authors' draws, against vectors that their program printed."""

import numpy as np
import pytest

from fedprox.plan import authors_draws

SELECTED = {
    (30, 0): [2, 28, 13, 10, 26, 24, 27, 11, 17, 22],
    (1000, 0): [993, 859, 298, 553, 672, 971, 27, 231, 306, 706],
    (1000, 2): [37, 726, 846, 295, 924, 658, 682, 286, 880, 272],
}
ACTIVE_AT_50 = {
    (30, 0): [13, 17, 26, 22, 28],
    (1000, 0): [298, 306, 672, 706, 859],
    (1000, 2): [924, 726, 658, 37, 286],
}
ACTIVE_AT_90 = {(30, 0): 13, (1000, 0): 298, (1000, 2): 924}


@pytest.mark.parametrize(("num_clients", "round_index"), SELECTED)
def test_selected_and_active_clients_are_those_of_the_authors_program(num_clients, round_index):
    selected, active = authors_draws.select(num_clients, round_index, 10, 5)
    assert selected.tolist() == SELECTED[num_clients, round_index]
    assert active.tolist() == ACTIVE_AT_50[num_clients, round_index]
    assert authors_draws.select(num_clients, round_index, 10, 1)[1].tolist() == [ACTIVE_AT_90[num_clients, round_index]]


@pytest.mark.parametrize("num_active", [1, 5])
def test_the_first_straggler_draws_its_epochs_after_the_selection(num_active):
    epochs = [authors_draws.first_straggler_epochs(30, index, 10, num_active, 20) for index in range(10)]
    assert epochs == [5, 8, 12, 11, 8, 17, 2, 15, 17, 9]


@pytest.mark.parametrize(("num_examples", "epochs"), [(14, 15), (15, 17), (18, 5), (1000, 12)])
def test_a_later_straggler_draws_its_epochs_after_the_previous_clients_shuffle(num_examples, epochs):
    assert authors_draws.straggler_epochs_after(num_examples, 20) == epochs


def test_an_epochs_shuffle_is_that_of_the_authors():
    (order,) = authors_draws.epoch_orders(17, epochs_before=0, num_epochs=1)
    assert order.tolist() == [14, 9, 11, 1, 12, 6, 15, 5, 2, 4, 10, 0, 13, 7, 3, 16, 8]


def test_shuffles_accumulate_over_epochs_and_rounds():
    # The authors' program repeatedly shuffles a client's arrays in place from the same state.
    array = np.arange(17)
    expected = []
    for _ in range(7):
        np.random.RandomState(100).shuffle(array)
        expected.append(array.tolist())
    orders = [*authors_draws.epoch_orders(17, 0, 3), *authors_draws.epoch_orders(17, 3, 4)]
    assert [order.tolist() for order in orders] == expected


def test_the_global_generator_is_left_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    authors_draws.select(30, 0, 10, 5)
    list(authors_draws.epoch_orders(17, 2, 3))
    authors_draws.straggler_epochs_after(14, 20)
    assert np.random.get_state()[1].tolist() == before
