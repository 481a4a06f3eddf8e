"""The plan: cohorts, stragglers and local work as pure functions of settings, seed and round."""

import logging
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.plan.plan import ClientTask, Plan, epoch_orders
from fedprox.plan.protocols import FlowerProtocol, PaperProtocol
from fedprox.seeds import Stream

PROTOCOLS = [PaperProtocol(), FlowerProtocol()]


def orders_of(key, num_examples, num_epochs):
    task = ClientTask(key[-1], num_epochs, num_epochs * num_examples, is_straggler=False, batch_key=key)
    return epoch_orders(task, num_examples)


def make_plan(**changes) -> Plan:
    """Return 1000 clients with 1, 2, ..., 1000 examples, ten of them in a round."""
    settings = {
        "client_sizes": np.arange(1, 1001),
        "clients_per_round": 10,
        "num_epochs": 10,
        "batch_size": 10,
        "stragglers_fraction": 0.9,
        "protocol": PaperProtocol(),
        "seed": 0,
    }
    return Plan(**(settings | changes))


def assert_uniform(counts: list[int]) -> None:
    """Check counts against the uniform distribution by Pearson's chi-square statistic.

    It has k - 1 degrees of freedom, so mean k - 1 and variance 2 (k - 1); five standard deviations above the
    mean are reached with probability below 1e-4 for the k of these tests, and the seed is fixed.
    """
    freedom = len(counts) - 1
    expected = sum(counts) / len(counts)
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def straggler_tasks(plan: Plan, num_rounds: int) -> list:
    return [task for t in range(1, num_rounds + 1) for task in plan.tasks(t) if task.is_straggler]


# The plan is a function of settings, seed and round


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_rounds_tasks_depend_on_settings_and_round_only(protocol):
    # Neither the algorithm nor mu is a setting of the plan: so FedAvg and FedProx meet the same clients.
    plan, fresh = make_plan(protocol=protocol), make_plan(protocol=type(protocol)())
    state = np.random.get_state()
    forward = {t: plan.tasks(t) for t in range(1, 31)}
    assert {t: fresh.tasks(t) for t in range(30, 0, -1)} == forward
    assert plan.tasks(5) == forward[5]
    assert all(np.array_equal(old, new) for old, new in zip(state, np.random.get_state(), strict=True))


def test_rounds_seeds_and_repetitions_differ():
    plan = make_plan()
    variants = [plan.tasks(1), plan.tasks(2), make_plan(seed=1).tasks(1), make_plan(repetition=1).tasks(1)]
    cohorts = {tuple(task.client for task in tasks) for tasks in variants}
    assert len(cohorts) == 4
    # If all clients are in the cohort, the stragglers still differ.
    all_in = {"client_sizes": np.full(10, 50), "stragglers_fraction": 0.5}
    marks = {
        frozenset(task.client for task in make_plan(**all_in, repetition=rep).tasks(t) if task.is_straggler)
        for rep in range(3)
        for t in range(1, 4)
    }
    assert len(marks) > 5  # nine independent choices among 252 sets: five or fewer distinct are out of reach


# The cohort


@settings(max_examples=50, deadline=None)
@given(
    num_clients=st.integers(1, 50),
    share=st.floats(0, 1),
    fraction=st.floats(0, 1),
    num_epochs=st.integers(1, 20),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    round_num=st.integers(1, 10_000),
    protocol=st.sampled_from(PROTOCOLS),
    sampling=st.sampled_from(["uniform", "proportional"]),
)
def test_every_plan_is_within_its_bounds(
    num_clients, share, fraction, num_epochs, batch_size, seed, round_num, protocol, sampling
):
    sizes = np.random.default_rng(seed).integers(1, 100, num_clients)
    per_round = max(1, round(share * num_clients))
    plan = Plan(sizes, per_round, num_epochs, batch_size, fraction, protocol, seed, sampling=sampling)
    tasks = plan.tasks(round_num)
    clients = [task.client for task in tasks]
    assert len(clients) == per_round
    assert len({(task.client, task.draw) for task in tasks}) == per_round
    assert sampling == "proportional" or len(set(clients)) == per_round
    assert set(clients) <= set(range(num_clients))
    if isinstance(protocol, PaperProtocol):
        assert sum(task.is_straggler for task in tasks) == round(per_round * fraction)
    for task in tasks:
        num_batches = math.ceil(sizes[task.client] / batch_size)
        assert 1 <= task.num_epochs <= num_epochs
        assert (task.num_epochs - 1) * num_batches < task.num_steps <= task.num_epochs * num_batches
        assert task.is_straggler or task.num_steps == num_epochs * num_batches
        assert task.batch_key == (seed, 0, round_num, task.client, *([task.draw] if task.draw else []))
        if num_epochs > 1:
            assert task.num_steps == task.num_epochs * num_batches  # whole epochs


def test_each_client_is_chosen_equally_often():
    # Over T rounds a client's count is binomial(T, K / N): deviation sqrt(T p (1 - p)). Of 20 clients none
    # is 5 deviations away; the probability of a false alarm is below 20 * 6e-7.
    num_rounds, num_clients, per_round = 2000, 20, 5
    plan = make_plan(client_sizes=np.full(num_clients, 10), clients_per_round=per_round)
    counts = Counter(task.client for t in range(1, num_rounds + 1) for task in plan.tasks(t))
    p = per_round / num_clients
    bound = 5 * math.sqrt(num_rounds * p * (1 - p))
    assert sum(counts.values()) == num_rounds * per_round
    assert all(abs(counts[client] - num_rounds * p) < bound for client in range(num_clients))


def test_selection_does_not_depend_on_sizes_stragglers_epochs_or_protocol():
    plan = make_plan()
    others = [
        make_plan(client_sizes=np.full(1000, 3)),
        make_plan(stragglers_fraction=0.0),
        make_plan(num_epochs=2),
        make_plan(protocol=FlowerProtocol()),
    ]
    cohort = [task.client for task in plan.tasks(4)]
    assert all([task.client for task in other.tasks(4)] == cohort for other in others)


# sampling=poisson


def test_each_client_takes_part_independently_with_the_same_probability():
    num_clients, num_rounds, q = 6, 5_000, 2 / 6
    plan = make_plan(client_sizes=np.array([1, 2, 3, 4, 10, 80]), clients_per_round=2, sampling="poisson")
    cohorts = [[task.client for task in plan.tasks(t)] for t in range(1, num_rounds + 1)]
    assert all(cohort == sorted(set(cohort)) for cohort in cohorts)
    takes_part = np.array([np.isin(np.arange(num_clients), cohort) for cohort in cohorts])
    error = np.sqrt(q * (1 - q) / num_rounds)
    assert np.abs(takes_part.mean(axis=0) - q).max() < 5 * error
    pairs = np.cov(takes_part.T.astype(float)) / (q * (1 - q))  # correlations, of standard error 1 / sqrt(T)
    assert np.abs(pairs - np.eye(num_clients)).max() < 5 / np.sqrt(num_rounds) + 5 * error
    assert {0, 1, 2, 3} <= {len(cohort) for cohort in cohorts}


def test_everybody_takes_part_if_all_are_asked():
    plan = make_plan()
    whole = make_plan(sampling="poisson", clients_per_round=len(plan.client_sizes))
    assert [task.client for task in whole.tasks(3)] == list(range(len(plan.client_sizes)))


# sampling=proportional


SKEWED = np.array([1, 2, 3, 4, 10, 80])


@pytest.mark.parametrize("stream", [Stream.COHORT, Stream.GRADIENTS])
@pytest.mark.parametrize("per_round", [1, 4, 6])
def test_the_expected_weight_of_a_client_is_its_share_of_the_examples(stream, per_round):
    # In a simple mean over K draws a client weighs count / K. Of T K independent draws with p_k, the share that falls
    # on client k has the standard error sqrt(p_k (1 - p_k) / (T K)). Drawn without replacement, the client with
    # 80 of 100 examples would weigh at most 1 / K.
    num_rounds, shares = 10_000, SKEWED / SKEWED.sum()
    plan = make_plan(client_sizes=SKEWED, clients_per_round=per_round, sampling="proportional")
    drawn = np.concatenate([plan._cohort(stream, t) for t in range(1, num_rounds + 1)])
    weights = np.bincount(drawn, minlength=len(SKEWED)) / len(drawn)
    errors = np.sqrt(shares * (1 - shares) / (num_rounds * per_round))
    assert (np.abs(weights - shares) < 3 * errors).all(), (weights - shares) / errors


def proportional_tasks(num_rounds: int = 200, **changes) -> list[ClientTask]:
    plan = make_plan(client_sizes=SKEWED, clients_per_round=4, sampling="proportional", **changes)
    return [task for t in range(1, num_rounds + 1) for task in plan.tasks(t)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_draw_of_a_client_is_a_task_with_its_own_batches_and_work(protocol):
    plan = make_plan(
        client_sizes=SKEWED, clients_per_round=4, sampling="proportional", stragglers_fraction=0.5, protocol=protocol
    )
    rounds = [plan.tasks(t) for t in range(1, 101)]
    repeated = 0
    for tasks in rounds:
        for client in {task.client for task in tasks}:
            of_client = [task for task in tasks if task.client == client]
            assert [task.draw for task in of_client] == list(range(len(of_client)))
            size = int(SKEWED[client])
            orders = {tuple(epoch_orders(replace(task, num_epochs=1), size)[0].tolist()) for task in of_client}
            if size > 10:  # of 80! orders
                assert len(orders) == len(of_client)
                repeated += len(of_client) > 1
    assert repeated > 90  # the client with p = 0.8 comes twice or more in 97% of rounds
    largest = [[task for task in tasks if task.client == 5] for tasks in rounds]
    assert any(len({task.is_straggler for task in tasks}) == 2 for tasks in largest)
    work = [{task.num_steps for task in tasks if task.is_straggler} for tasks in largest]
    assert any(len(steps) > 1 for steps in work)


def test_a_first_draw_has_the_random_numbers_of_uniform_sampling():
    for task in proportional_tasks(20):
        _, _, round_num, client, *_ = task.batch_key
        uniform = make_plan(client_sizes=SKEWED, clients_per_round=6, stragglers_fraction=1.0).tasks(round_num)
        (same,) = (each for each in uniform if each.client == client)
        if task.is_straggler and not task.draw:
            assert task == same


def test_dropped_stragglers_are_dropped_draw_by_draw():
    tasks = proportional_tasks(stragglers_fraction=0.5, drops_stragglers=True)
    assert all(task.is_dropped == task.is_straggler for task in tasks)
    assert sum(task.is_dropped for task in tasks) == 2 * 200


def test_the_second_cohort_changes_nothing_in_the_first():
    asked, fresh = make_plan(), make_plan()
    asked.gradient_clients(1)
    assert asked.tasks(1) == fresh.tasks(1)
    assert asked.gradient_clients(1) == fresh.gradient_clients(1)


# protocol=paper


@pytest.mark.parametrize(
    ("per_round", "fraction", "expected"),
    [(10, 0.0, 0), (10, 1.0, 10), (10, 0.34, 3), (10, 0.36, 4), (1, 0.9, 1)],
)
def test_paper_marks_exactly_the_rounded_share_in_every_round(per_round, fraction, expected):
    plan = make_plan(clients_per_round=per_round, stragglers_fraction=fraction)
    assert {sum(task.is_straggler for task in plan.tasks(t)) for t in range(1, 101)} == {expected}


@pytest.mark.parametrize(("protocol", "num_epochs"), [(PaperProtocol(), 5), (FlowerProtocol(), 6)])
def test_epochs_of_stragglers_are_drawn_uniformly_from_1_to_5(protocol, num_epochs):
    # paper: 1 .. E, flower: 1 .. E - 1
    tasks = straggler_tasks(make_plan(protocol=protocol, num_epochs=num_epochs), 200)
    counts = Counter(task.num_epochs for task in tasks)
    assert set(counts) == {1, 2, 3, 4, 5}
    assert_uniform([counts[epochs] for epochs in range(1, 6)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_one_epoch_a_stragglers_steps_are_drawn_uniformly_from_1_to_the_number_of_batches(protocol):
    # 35 examples in batches of 10: four batches, the last one short.
    plan = make_plan(client_sizes=np.full(1000, 35), num_epochs=1, protocol=protocol)
    tasks = straggler_tasks(plan, 200)
    assert {task.num_epochs for task in tasks} == {1}
    counts = Counter(task.num_steps for task in tasks)
    assert set(counts) == {1, 2, 3, 4}
    assert_uniform([counts[steps] for steps in range(1, 5)])


# protocol=flower


def test_flower_marks_each_place_independently_with_the_given_probability():
    # The number of stragglers in a round is binomial(10, p): mean 10 p, variance 10 p (1 - p). Dependence
    # between places would show in the variance. Bounds: 5 deviations of the estimators; the variance's is
    # var * sqrt(2 / T) to first order (the binomial's fourth moment adds less than 10% here, kept in the 6).
    num_rounds, p = 2000, 0.6
    plan = make_plan(protocol=FlowerProtocol(), stragglers_fraction=p)
    counts = np.array([sum(task.is_straggler for task in plan.tasks(t)) for t in range(1, num_rounds + 1)])
    variance = 10 * p * (1 - p)
    assert abs(counts.mean() - 10 * p) < 5 * math.sqrt(variance / num_rounds)
    assert abs(counts.var() - variance) < 6 * variance * math.sqrt(2 / num_rounds)


@pytest.mark.parametrize(("num_epochs", "fraction", "expected"), [(1, 0.1, 1), (1, 0.0, 0), (2, 0.1, 0)])
def test_flower_logs_once_that_a_straggler_does_part_of_an_epoch(num_epochs, fraction, expected, caplog):
    changes = {"num_epochs": num_epochs, "stragglers_fraction": fraction}
    settings = {name: value for name, value in vars(make_plan(**changes)).items() if name != "protocol"}
    with caplog.at_level(logging.INFO, "fedprox"):
        plan = FlowerProtocol().plan(client_ids=(), **settings)
        for t in range(1, 4):
            plan.tasks(t)
    assert ["part of the epoch" in line for line in caplog.messages] == [True] * expected


# Both


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=30, deadline=None)
@given(fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)), round_num=st.integers(1, 1000))
def test_fewer_stragglers_are_a_subset_of_more(protocol, fractions, round_num):
    fewer, more = (
        {
            task.client
            for task in make_plan(protocol=protocol, stragglers_fraction=fraction).tasks(round_num)
            if task.is_straggler
        }
        for fraction in sorted(fractions)
    )
    assert fewer <= more


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stragglers_work_does_not_depend_on_the_number_of_stragglers(protocol):
    plan = make_plan(protocol=protocol, stragglers_fraction=1.0)
    num_shared = 0
    for round_num in range(1, 21):
        work = {task.client: task for task in plan.tasks(round_num)}
        for fraction in (0.2, 0.5, 0.9):
            fewer = replace(plan, stragglers_fraction=fraction).tasks(round_num)
            shared = [task for task in fewer if task.is_straggler]
            assert all(task == work[task.client] for task in shared)
            num_shared += len(shared)
    assert num_shared > 200  # of 20 * (2 + 5 + 9) = 320 expected


@pytest.mark.parametrize(("last_batch", "num_batches"), [("keep", [1, 1, 2, 3]), ("drop", [1, 1, 1, 2])])
def test_work_is_counted_in_the_batches_of_the_setting(last_batch, num_batches):
    # Of 4, 10, 19 and 27 examples in batches of 10.
    for num_epochs in (1, 3):
        plan = make_plan(
            client_sizes=np.array([4, 10, 19, 27]), clients_per_round=4, num_epochs=num_epochs, last_batch=last_batch
        )
        for task in (task for t in range(1, 41) for task in plan.tasks(t)):
            most = num_batches[task.client]
            assert task.num_steps == task.num_epochs * most or (num_epochs == 1 and 1 <= task.num_steps < most)


# Batch orders


@settings(max_examples=50, deadline=None)
@given(
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 99), st.integers(0, 999), st.integers(0, 999)),
    num_examples=st.integers(1, 200),
    num_epochs=st.integers(0, 5),
)
def test_every_epochs_order_is_a_permutation(key, num_examples, num_epochs):
    orders = list(orders_of(key, num_examples, num_epochs))
    assert len(orders) == num_epochs
    assert all(sorted(order.tolist()) == list(range(num_examples)) for order in orders)


def test_orders_differ_between_epochs_and_in_each_part_of_the_key():
    keys = [(0, 0, 1, 2), (1, 0, 1, 2), (0, 1, 1, 2), (0, 0, 2, 2), (0, 0, 1, 3), (0, 0, 2, 1)]
    orders = {tuple(order.tolist()) for key in keys for order in orders_of(key, 30, 3)}
    assert len(orders) == len(keys) * 3


def test_without_a_key_the_orders_continue_where_the_client_stopped():
    # As in the authors' program, where its arrays stay shuffled: 3 epochs after 2 are the last 3 of 5.
    def orders(num_epochs: int, epochs_before: int) -> list[list[int]]:
        task = ClientTask(4, num_epochs, num_epochs * 2, False, batch_key=(), epochs_before=epochs_before)
        return [order.tolist() for order in epoch_orders(task, 17)]

    assert orders(3, 2) == orders(5, 0)[2:]
    assert orders(3, 2) != orders(3, 0)


# Pinned draws: all published results depend on them.


def test_pinned_orders():
    assert [order.tolist() for order in orders_of((0, 0, 1, 2), 5, 3)] == [
        [3, 0, 2, 4, 1],
        [4, 3, 1, 2, 0],
        [4, 2, 1, 3, 0],
    ]


COHORTS = [
    [898, 902, 395, 964, 691, 53, 100, 968, 382, 185],
    [675, 714, 701, 555, 348, 191, 892, 472, 691, 275],
    [713, 356, 574, 401, 305, 403, 639, 845, 824, 142],
]


def test_pinned_rounds_of_the_papers_protocol():
    plan = make_plan(num_epochs=20, stragglers_fraction=0.5)
    rounds = [plan.tasks(t) for t in (1, 2, 3)]
    assert [[task.client for task in tasks] for tasks in rounds] == COHORTS
    assert [[int(task.is_straggler) for task in tasks] for tasks in rounds] == [
        [0, 1, 0, 1, 0, 1, 0, 0, 1, 1],
        [0, 0, 0, 1, 0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 0, 1, 0, 1, 0],
    ]
    assert [[task.num_epochs for task in tasks] for tasks in rounds] == [
        [20, 15, 20, 16, 20, 16, 20, 20, 1, 20],
        [20, 20, 20, 18, 20, 20, 17, 1, 18, 16],
        [20, 20, 15, 17, 18, 20, 19, 20, 15, 20],
    ]


def test_pinned_rounds_of_the_flower_protocol():
    plan = make_plan(protocol=FlowerProtocol(), stragglers_fraction=0.5)
    rounds = [plan.tasks(t) for t in (1, 2, 3)]
    assert [[task.client for task in tasks] for tasks in rounds] == COHORTS
    assert [[int(task.is_straggler) for task in tasks] for tasks in rounds] == [
        [0, 1, 0, 0, 1, 1, 1, 1, 0, 1],
        [0, 1, 0, 0, 1, 0, 0, 1, 1, 1],
        [1, 0, 0, 1, 0, 1, 0, 1, 1, 1],
    ]
    assert [[task.num_epochs for task in tasks] for tasks in rounds] == [
        [10, 7, 10, 10, 2, 7, 5, 6, 10, 9],
        [10, 4, 10, 10, 9, 10, 10, 1, 8, 7],
        [9, 10, 10, 8, 10, 5, 10, 3, 7, 6],
    ]
    # Client 898 has 899 examples, 90 batches, 10 epochs; the straggler 902 has 91 batches, 7 epochs.
    assert [task.num_steps for task in rounds[0][:2]] == [900, 637]
