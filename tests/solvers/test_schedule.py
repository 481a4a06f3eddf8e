"""The layout of a cohort's steps."""

import numpy as np
import torch

from fedprox.plan.epoch_batches import epoch_batches
from fedprox.solvers.dropout import dropout_keys, first_key
from fedprox.solvers.problem import LocalProblem, LocalWork
from fedprox.solvers.schedule import ClientBatches, Schedule


def problem(num_examples: int, work: LocalWork) -> LocalProblem:
    labels = torch.zeros(num_examples, dtype=torch.int64)
    return LocalProblem({}, torch.zeros(num_examples, 1), labels, work)


def test_batches_are_padded_and_the_longest_client_comes_first():
    # Three examples in batches of two, one epoch: 2 0 | 1 (1). The other client has one example and two epochs: 0, 0,
    # limited to one step; its example is the fourth of all. Rows: step 1 of both, then step 2 of the first.
    first = problem(3, LocalWork([np.array([2, 0, 1])], 9, 0.0))
    second = problem(1, LocalWork([np.array([0]), np.array([0])], 1, 0.0))
    clients = [ClientBatches.of(first, epoch_batches(3, 2)), ClientBatches.of(second, epoch_batches(1, 2))]
    schedule = Schedule.of(clients, [np.arange(3), np.array([3])])
    assert schedule.positions.tolist() == [[2, 0], [3, 3], [1, 1]]
    assert schedule.sizes.tolist() == [2, 1, 1]
    assert (schedule.num_steps, schedule.num_seen) == ([2, 1], [3, 1])
    assert list(schedule.phases()) == [(2, [slice(0, 2)]), (1, [slice(2, 3)])]
    assert Schedule.of(clients, [np.arange(3), np.array([3])], width=3).positions.tolist() == [
        [2, 0, 0],
        [3, 3, 3],
        [1, 1, 1],
    ]


def test_batches_are_padded_to_a_merged_last_one():
    # Five examples in batches of two: 4 2 | 0 3 1, and the first is padded with its first example.
    merged = problem(5, LocalWork([np.array([4, 2, 0, 3, 1])], 9, 0.0))
    batches = ClientBatches.of(merged, epoch_batches(5, 2, "merge"))
    assert (batches.positions.tolist(), batches.sizes.tolist()) == ([[4, 2, 4], [0, 3, 1]], [2, 3])


def test_each_position_has_the_augmentation_of_its_example_in_that_epoch():
    # Examples 0, 1, 2 are moved by 10, 11, 12 in the first epoch and by 20, 21, 22 in the second.
    shifts = np.array([[[10] * 3, [11] * 3, [12] * 3], [[20] * 3, [21] * 3, [22] * 3]], dtype=np.int8)
    moved = problem(3, LocalWork([np.array([2, 0, 1]), np.array([1, 0, 2])], 9, 0.0, shifts=shifts))
    batches = ClientBatches.of(moved, epoch_batches(3, 2))
    assert batches.shifts[:, :, 0].tolist() == [[12, 10], [11, 11], [21, 20], [22, 22]]
    schedule = Schedule.of([batches], [np.array([7, 8, 9])], width=3)
    assert schedule.shifts[:, :, 2].tolist() == [[12, 10, 10], [11, 11, 11], [21, 20, 20], [22, 22, 22]]


def test_keys_of_dropout_are_those_of_the_clients_own_seed_and_step():
    works = [LocalWork([np.arange(4)], steps, 0.0, seed=(0, 0, 1, steps)) for steps in (2, 1)]
    clients = [ClientBatches.of(problem(4, work), epoch_batches(4, 2)) for work in works]
    schedule = Schedule.of(clients, [np.arange(4), np.arange(4)], num_dropouts=3)
    first, second = (dropout_keys(first_key((0, 0, 1, steps)), np.arange(steps), 3) for steps in (2, 1))
    assert schedule.keys.tolist() == [first[0].tolist(), second[0].tolist(), first[1].tolist()]
