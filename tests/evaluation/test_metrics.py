"""Accuracy per class and its spread over clients, by hand and against a loop."""

from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.evaluation.metrics import ClassAccuracy, ClientSpread, among_clients, by_class


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def test_each_class_has_its_examples_and_their_accuracy():
    # Class 0 holds the first and third example, of which one is correct; class 2 the others, of which two are.
    found = by_class(flags(1, 0, 0, 1, 1), np.array([0, 2, 0, 2, 2]), num_classes=4)
    assert found == (
        ClassAccuracy(0, 2, 1 / 2),
        ClassAccuracy(1, 0, None),
        ClassAccuracy(2, 3, 2 / 3),
        ClassAccuracy(3, 0, None),
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
def test_the_classes_together_are_the_test_set(examples):
    labels, is_correct = (np.array(column) for column in zip(*examples, strict=True))
    found = by_class(is_correct, labels, num_classes=5)
    assert sum(each.num_examples for each in found) == len(examples)
    num_correct = sum(each.num_examples * each.accuracy for each in found if each.accuracy is not None)
    assert num_correct == pytest.approx(is_correct.sum(), rel=1e-12)


def test_every_client_counts_the_same():
    # Accuracies 1/2 of two examples, 1 of one, 0 of three: the mean is 1/2, squares of distances are 0, 1/4, 1/4.
    found = among_clients(flags(1, 0, 1, 0, 0, 0), np.array([2, 1, 3]))
    assert found == ClientSpread(std=pytest.approx((1 / 6) ** 0.5), worst=0.0, best=1.0)


@pytest.mark.parametrize(("num_clients", "tenth"), [(1, 1), (10, 1), (11, 2), (100, 10)])
def test_the_worst_and_the_best_tenth_are_rounded_up(num_clients, tenth):
    # Client k has 100 examples and k of them correct, in another order than that of the accuracies.
    order = np.random.default_rng(0).permutation(num_clients)
    found = among_clients(np.concatenate([np.arange(100) < k for k in order]), np.full(num_clients, 100))
    # Of 0, 1 .. n - 1 hundredths the lowest m have the mean (m - 1) / 2, the highest n - 1 - (m - 1) / 2.
    assert found.worst == pytest.approx((tenth - 1) / 200)
    assert found.best == pytest.approx((num_clients - 1) / 100 - (tenth - 1) / 200)
    # and all of them the variance (n^2 - 1) / 12.
    assert found.std == pytest.approx(((num_clients**2 - 1) / 12) ** 0.5 / 100)


@given(st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=30).filter(any))
def test_the_spread_is_that_of_a_loop_over_clients(clients):
    found = among_clients(np.array([flag for client in clients for flag in client]), np.array(list(map(len, clients))))
    accuracies = sorted(fmean(client) for client in clients if client)
    tenth = (len(accuracies) + 9) // 10
    expected = (pstdev(accuracies), fmean(accuracies[:tenth]), fmean(accuracies[-tenth:]))
    assert (found.std, found.worst, found.best) == pytest.approx(expected, abs=1e-12)
