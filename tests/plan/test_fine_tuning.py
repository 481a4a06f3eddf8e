"""The work of clients that fine-tune: full, on batches of its own, a function of seed, round and client."""

import numpy as np

from fedprox.plan.fine_tuning import FineTuning
from fedprox.plan.plan import Plan, epoch_orders
from fedprox.plan.protocols import PaperProtocol

SIZES = np.array([25, 30])


def test_every_client_does_all_epochs_in_whole_batches():
    task = FineTuning(SIZES, 3, 10).task(4, client=0)
    assert (task.client, task.num_epochs, task.num_steps, task.is_straggler) == (0, 3, 9, False)
    assert FineTuning(SIZES, 3, 10, last_batch="drop").task(4, client=0).num_steps == 6


def test_its_batches_follow_from_seed_repetition_round_and_client_and_are_no_rounds_of_training():
    def order(round_num: int, client: int, **streams: int) -> tuple[int, ...]:
        task = FineTuning(np.array([30, 30]), 1, 10, **streams).task(round_num, client)
        return tuple(epoch_orders(task, 30)[0].tolist())

    orders = [order(1, 0), order(2, 0), order(1, 1), order(1, 0, seed=1), order(1, 0, repetition=1)]
    settings = {"num_epochs": 1, "batch_size": 10, "stragglers_fraction": 0.0, "protocol": PaperProtocol(), "seed": 0}
    (first, *_) = Plan(np.array([30, 30]), 2, **settings).tasks(1)
    orders.append(tuple(epoch_orders(first, 30)[0].tolist()))
    assert len(set(orders)) == 6
    assert order(1, 0) == orders[0]
