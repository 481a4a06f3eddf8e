"""The plan of protocol=authors."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fedprox.errors import UserError
from fedprox.plan import authors_draws
from fedprox.plan.authors import AuthorsProtocol

SIZES = np.arange(30) + 14


def plan(fraction=0.5, **changes):
    settings = {
        "client_sizes": SIZES,
        "client_ids": [f"f_{client:05d}" for client in range(30)],
        "clients_per_round": 10,
        "num_epochs": 20,
        "batch_size": 10,
        "stragglers_fraction": fraction,
        "seed": 3,
        "repetition": 1,
        "sampling": "uniform",
    }
    return AuthorsProtocol().plan(**(settings | changes))


def test_fedprox_trains_all_in_the_order_of_selection():
    tasks = plan().tasks(1)
    assert [task.client for task in tasks] == [2, 28, 13, 10, 26, 24, 27, 11, 17, 22]
    assert [task.client for task in tasks if not task.is_straggler] == [28, 13, 26, 17, 22]
    assert not any(task.is_dropped for task in tasks)


def test_fedavg_trains_the_active_ones_in_the_order_of_activation():
    tasks = replace(plan(), drops_stragglers=True).tasks(1)
    assert [task.client for task in tasks if not task.is_dropped] == [13, 17, 26, 22, 28]
    assert sorted(task.client for task in tasks) == [2, 10, 11, 13, 17, 22, 24, 26, 27, 28]
    assert all(task.num_epochs == 20 for task in tasks if not task.is_dropped)


def test_a_stragglers_epochs_depend_on_the_previous_client():
    tasks = plan().tasks(1)
    assert tasks[0].num_epochs == 5  # the first of round 0
    for before, task in pairwise(tasks):
        if task.is_straggler:
            assert task.num_epochs == authors_draws.straggler_epochs_after(int(SIZES[before.client]), 20)


def test_epochs_before_counts_what_a_client_has_trained_so_far():
    for drops in (False, True):  # dropped clients do not train
        a_plan, done = replace(plan(0.9), drops_stragglers=drops), {}
        for task in (task for round_num in range(1, 30) for task in a_plan.tasks(round_num) if not task.is_dropped):
            assert task.epochs_before == done.get(task.client, 0)
            done[task.client] = done.get(task.client, 0) + task.num_epochs


def test_a_round_does_not_depend_on_earlier_calls():
    late, in_order = plan(), plan()
    assert late.tasks(7) == [in_order.tasks(round_num) for round_num in range(1, 8)][-1]
    assert late.tasks(2) == in_order.tasks(2)


def test_seed_and_repetition_change_nothing():
    assert plan(seed=4, repetition=9).tasks(5) == plan().tasks(5)


@pytest.mark.parametrize("ids", [(), ("b", "a")])
def test_clients_that_are_not_sorted_by_id_are_refused(ids):
    with pytest.raises(UserError, match="sorted by id"):
        plan(client_ids=ids)


def test_one_epoch_with_stragglers_and_other_sampling_are_refused():
    protocol = AuthorsProtocol()
    with pytest.raises(UserError, match="num_epochs >= 2"):
        protocol.check(1, 0.5)
    with pytest.raises(UserError, match="sampling=proportional"):
        protocol.check(20, 0.5, "proportional")
    with pytest.raises(UserError, match=r"does not support last_batch=drop.*protocol=paper"):
        protocol.check(20, 0.5, "uniform", "drop")
    protocol.check(1, 0.0)
