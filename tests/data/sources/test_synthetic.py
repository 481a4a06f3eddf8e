"""Synthetic(alpha, beta) and its IID version."""

import math

import numpy as np
import pytest

from fedprox.data.sources.synthetic import synthetic
from fedprox.errors import UserError


def test_seed_0_is_not_the_test_file_that_the_authors_published():
    # Theirs (data/synthetic_1_1/data/test/mytest.json) has 1,084 examples, 662 of them on one device.
    sizes = synthetic(30, seed=0).held_out.sizes
    assert (sizes.sum(), sizes.max()) == (2248, 517)


def test_sizes_are_log_normal_plus_50_and_a_tenth_is_held_out():
    # The first draw of the authors' generator, with seed 0.
    sizes = np.random.RandomState(0).lognormal(4, 2, 30).astype(int) + 50
    data = synthetic(30, seed=0)
    assert sizes[:3].tolist() == [1909, 171, 436]
    assert data.train.sizes.tolist() == [int(0.9 * size) for size in sizes]
    assert (data.train.sizes + data.held_out.sizes).tolist() == sizes.tolist()
    assert data.num_left_over == 0
    assert data.client_ids[:3] == ("f_00000", "f_00001", "f_00002")  # as in the authors' files


def test_a_client_holds_only_the_examples_drawn_for_it():
    data = synthetic(5, seed=3)
    first = 0
    for client in range(5):
        both = np.concatenate([data.train[client], data.held_out[client]])
        assert sorted(both.tolist()) == list(range(first, first + len(both)))
        assert both.tolist() != sorted(both.tolist())
        first += len(both)


def legacy_draws(seed: int, num_clients: int) -> tuple[np.random.RandomState, np.ndarray]:
    """Return a generator that has drawn the sizes, and the sizes."""
    rng = np.random.RandomState(seed)
    return rng, rng.lognormal(4, 2, num_clients).astype(int) + 50


def test_the_iid_version_has_one_model_for_all_clients_and_inputs_around_zero():
    # Draw order: sizes, the common W and b, then each client's inputs; Sigma = diag(j^-1.2).
    rng, sizes = legacy_draws(7, 4)
    weights, bias = rng.normal(0, 1, (60, 10)), rng.normal(0, 1, 10)
    covariance = np.diag([j**-1.2 for j in range(1, 61)])
    features = np.concatenate([rng.multivariate_normal(np.zeros(60), covariance, size) for size in sizes])
    data = synthetic(4, seed=7, iid=True).examples
    np.testing.assert_allclose(data.features, features, atol=1e-6)  # float32 of numbers up to about 4
    assert data.labels.tolist() == np.argmax(features @ weights + bias, axis=1).tolist()


def test_beta_scales_the_clients_offsets():
    # v_k = B_k + noise with B_k = beta * z_k: the features of beta = 3 minus those of beta = 1 are 2 z_k.
    rng, sizes = legacy_draws(5, 6)
    rng.normal(size=6)
    z = np.repeat(rng.normal(size=6), sizes)[:, None]
    near, far = synthetic(6, seed=5, alpha=2.0, beta=1.0).examples, synthetic(6, seed=5, alpha=2.0, beta=3.0).examples
    np.testing.assert_allclose(far.features - near.features, np.broadcast_to(2 * z, (len(z), 60)), atol=2e-6)


def test_alpha_changes_no_example_because_it_shifts_all_ten_logits_equally():
    # x (W + u) + b + u = x W + b + u * (sum(x) + 1): the same u * (sum(x) + 1) in each of the ten.
    without, large = synthetic(6, seed=5, alpha=0.0).examples, synthetic(6, seed=5, alpha=4.0).examples
    assert (without.features == large.features).all()
    assert (without.labels == large.labels).all()


def test_global_generators_are_neither_read_nor_changed():
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    first = synthetic(2, seed=0)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    again = synthetic(2, seed=0)
    assert (again.examples.features == first.examples.features).all()
    assert (again.train.indices == first.train.indices).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha must be finite and >= 0, got -0.1"),
        ({"beta": math.nan}, "beta must be finite and >= 0, got nan"),
        ({"num_clients": 0}, "num_clients must be between 1 and 100000, got 0"),
        ({"seed": -1}, "seed must be between 0 and 2"),
        ({"seed": 2**32}, "got 4294967296"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_rule(settings, message):
    with pytest.raises(UserError) as caught:
        synthetic(**{"num_clients": 2, "seed": 0, **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alpha_and_beta_may_be_zero_and_a_seed_the_largest_of_32_bits():
    data = synthetic(2, seed=2**32 - 1, alpha=0.0, beta=0.0)
    assert data.num_clients == 2
    assert min(data.train.sizes) >= 45  # int(0.9 * 50)
