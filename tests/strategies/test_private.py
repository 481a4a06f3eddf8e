"""The private mean: McMahan et al.'s formula, bounded sensitivity, noise of the right size, an adaptive clip."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.engines.identity import act_as_server
from fedprox.federation.messages import node_id
from fedprox.strategies.averaging import weighted_average
from fedprox.strategies.private import AdaptiveClip, PrivateMean
from tests.strategies.test_robust import START, aggregate, noisy, replies_of

NAMES = list(START)


def mean(clip: float = 1e9, noise: float = 0.0, num_clients: int = 4, probability: float = 1.0, **more) -> PrivateMean:
    return PrivateMean(NAMES, clip, noise, probability, num_clients, **more)


def vector(model: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([model[name].ravel() for name in NAMES])


def test_without_clip_and_noise_it_is_the_simple_mean():
    models = noisy(4)
    expected = weighted_average(replies_of(models), weighted_by=None)
    for name, array in aggregate(mean(), models).items():
        assert array == pytest.approx(expected[name].numpy(), abs=1e-12)


def test_updates_are_clipped_and_divided_by_the_expected_cohort():
    # Updates (3, 4) and (0.3, 0.4) of norms 5 and 0.5, C = 1: (0.6 + 0.3, 0.8 + 0.4) / (q N = 0.5 * 6).
    start = {"w": np.array([10.0, 20.0])}
    strategy = PrivateMean(["w"], 1.0, 0.0, 0.5, 6)
    made = aggregate(strategy, [{"w": start["w"] + [3.0, 4.0]}, {"w": start["w"] + [0.3, 0.4]}], start)
    assert made["w"] == pytest.approx([10.3, 20.4], abs=1e-12)
    assert strategy.is_clipped == {node_id(0): True, node_id(1): False}


@settings(max_examples=30)
@given(st.integers(1, 6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_one_client_changes_the_sum_by_at_most_the_clip(others, clip, scale, seed):
    models = noisy(others + 1, seed)
    models[-1] = {name: START[name] + scale * (value - START[name]) for name, value in models[-1].items()}
    with_it, without = (vector(aggregate(mean(clip, num_clients=10), each)) for each in (models, models[:-1]))
    assert np.linalg.norm(10 * (with_it - without)) <= clip * (1 + 1e-9)


def test_noise_has_the_clip_as_its_unit_and_comes_from_the_seed():
    size = 40_000
    start = {"w": np.zeros(size)}

    def made(**more) -> np.ndarray:
        strategy = PrivateMean(["w"], 0.5, 2.0, 0.1, 50, **more)
        return aggregate(strategy, [start, start], start)["w"]

    # sd z C / (q N) = 2 * 0.5 / 5 = 0.2; the sum of squares over sd^2 is chi^2 with d degrees, of variance 2 d.
    for noise, sd in ((made(), 0.2), (made(noise_factor=0.1), 0.02)):
        assert abs(np.square(noise / sd).sum() - size) < 5 * math.sqrt(2 * size)
        assert abs(noise.mean()) < 5 * sd / math.sqrt(size)
    assert made().tolist() == made().tolist()
    assert made().tolist() != made(seed=1).tolist() != made(repetition=1).tolist()


def test_a_round_without_clients_adds_noise_and_is_spent():
    strategy = mean(1.0, 1.0, probability=0.25)
    start = {name: array.copy() for name, array in START.items()}
    made = aggregate(strategy, [], start)
    assert not np.any(vector(made) == vector(start))
    assert strategy.ledger.spendings == [(1.0, 0.25, 1)]
    aggregate(strategy, noisy(2), start, round_num=2)
    assert strategy.ledger.spendings == [(1.0, 0.25, 2)]


def test_arrays_that_nobody_updates_get_no_noise():
    strategy = PrivateMean(["bias"], 1.0, 1.0, 1.0, 2)
    made = aggregate(strategy, [START, START])
    assert made["weight"].tolist() == START["weight"].tolist()
    assert made["bias"] != START["bias"]


def test_noise_on_updates_pays_for_that_on_the_count():
    # z = 1, sigma_b = 5: (1 - 1 / 100)^(-1/2) (Andrew et al. 2021, theorem 1)
    assert AdaptiveClip(0.5, 0.2, 5.0).noise_on_updates(1.0) == pytest.approx(1.00504, abs=1e-5)
    assert AdaptiveClip(0.5, 0.2, 5.0).noise_on_updates(0.0) == 0.0


def test_an_adaptive_clip_stays_where_its_quantile_is_and_moves_there():
    clip = AdaptiveClip(quantile=0.5, rate=0.2, count_noise=1.0)
    assert clip.next(1.0, [0.5, 2.0], 2, noise=0.0) == 1.0
    assert clip.next(1.0, [2.0, 2.0], 2, noise=0.0) == pytest.approx(math.exp(0.1))  # b = 0
    assert clip.next(1.0, [0.5, 0.5], 2, noise=0.0) == pytest.approx(math.exp(-0.1))  # b = 1
    # Two of an expected four replies count like one above and one below for those that are missing.
    assert clip.next(1.0, [0.5, 2.0], 4, noise=0.0) == 1.0
    assert clip.next(1.0, [0.5, 2.0], 2, noise=1.0) == pytest.approx(math.exp(-0.1))


def test_a_state_holds_what_was_spent_and_an_adaptive_clip():
    adaptive = AdaptiveClip(0.5, 0.2, 1.0)
    first, second, whole = (mean(0.1, 1.0, adaptive=adaptive) for _ in range(3))
    models = noisy(4)
    aggregate(first, models)
    second.load_state_dict(first.state_dict())
    assert first.clip != 0.1
    for round_num in (1, 2):
        expected = aggregate(whole, models, round_num=round_num)
    made = aggregate(second, models, round_num=2)
    assert vector(made).tolist() == vector(expected).tolist()
    assert second.state_dict() == whole.state_dict() == {"spent": [[1.0, 1.0, 2]], "clip": whole.clip}
    act_as_server()
