"""Shapes and statistics of the benchmarks' data sets."""

import numpy as np
import pytest

from benchmarks.federations import cifar_shaped, dirichlet, mnist_shaped


def test_cifar_shaped_images_are_bytes_and_have_mean_0_and_standard_deviation_1_for_the_model():
    data = cifar_shaped(num_examples=500, num_test=20)
    assert data.features.shape == (500, 3, 32, 32)
    assert (data.features.dtype, data.test_features.shape) == (np.uint8, (20, 3, 32, 32))
    inputs = data.model_input(data.features)
    assert inputs.dtype == np.float32
    assert abs(inputs.mean()) < 0.01  # the mean of 1.5 million numbers has a standard deviation of 1e-3
    assert abs(inputs.std() - 1) < 0.01


@pytest.mark.parametrize("num_clients", [3, 1000])
def test_mnist_shaped_clients_have_62_examples_each(num_clients):
    data = mnist_shaped(num_clients)
    assert data.num_clients == len(data.held_out) == num_clients
    assert set(data.train.sizes) == {62}
    features, labels = data.client_examples(num_clients - 1)
    assert (features.shape, labels.shape) == ((62, 28, 28), (62,))
    assert not data.examples.features.any()  # black images take no memory


def test_dirichlet_gives_every_example_to_one_client_and_unequal_parts_for_a_small_alpha():
    labels = np.arange(10_000) % 10
    parts = dirichlet(labels, 20, np.random.default_rng(0), alpha=0.3)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(10_000))
    counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    assert counts.sum(axis=0).tolist() == [1000] * 10
    # Share of a client in a class: Beta(a, 19 a), variance (1/20)(19/20) / (20 a + 1); with a = 0.3: std 0.0824.
    assert counts.std() == pytest.approx(82.4, rel=0.2)
    even = dirichlet(labels, 20, np.random.default_rng(0), alpha=1e6)
    assert {len(part) for part in even} <= set(range(490, 511))
