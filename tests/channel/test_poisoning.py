"""Attacks on training data: which examples change, and how."""

import numpy as np
import pytest

from fedprox.channel.attacks import Cohort
from fedprox.channel.poisoning import Backdoor, LabelFlip
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.errors import UserError

ATTACKERS = np.array([False, True, False])


def images(shape: tuple[int, ...] = (5, 4), num_tests: int = 6) -> FederatedData:
    """Return three clients with four training examples and two held-out ones each, of three classes."""
    rng = np.random.default_rng(0)
    features, labels = rng.integers(0, 200, (18, *shape)).astype(np.uint8), np.arange(18) % 3
    examples = LabelledData(features, labels, features[:num_tests], labels[:num_tests], 3, 0.0, 2.0)
    train = ClientIndex.from_lists([range(start, start + 4) for start in (0, 6, 12)])
    held_out = ClientIndex.from_lists([range(start, start + 2) for start in (4, 10, 16)])
    return FederatedData(examples, train, held_out)


def changed(before: np.ndarray, after: np.ndarray) -> list[int]:
    differs = (before != after).reshape(len(before), -1).any(axis=1)
    return np.flatnonzero(differs).tolist()


def test_flipped_labels_are_counted_from_the_other_end_for_attackers_training_examples_only():
    before = images()
    after = LabelFlip(0.3).poison(before, ATTACKERS)
    theirs = before.train[1]
    assert after.examples.labels[theirs].tolist() == (2 - before.examples.labels[theirs]).tolist()
    assert set(changed(before.examples.labels, after.examples.labels)) <= set(theirs.tolist())
    assert after.held_out_examples()[1].tolist() == before.held_out_examples()[1].tolist()
    assert after.examples.test_labels.tolist() == before.examples.test_labels.tolist()


def test_a_backdoor_stamps_a_share_of_the_attackers_images_and_calls_them_the_target():
    before = images()
    after = Backdoor(0.3, target=2, share=0.5).poison(before, ATTACKERS)
    stamped = changed(before.examples.features, after.examples.features)
    assert stamped == [6, 9]  # two of the attacker's four, evenly spaced
    assert after.examples.labels[stamped].tolist() == [2, 2]
    white = before.examples.features.max()
    assert (after.examples.features[stamped][:, -3:, -3:] == white).all()
    assert (after.examples.features[stamped][:, :-3] == before.examples.features[stamped][:, :-3]).all()


def test_the_data_that_are_given_stay_as_they_are():
    data = images()
    before = data.examples.features.copy(), data.examples.labels.copy()
    for attack in (LabelFlip(0.3), Backdoor(0.3)):
        attack.poison(data, ATTACKERS)
    assert np.array_equal(data.examples.features, before[0])
    assert np.array_equal(data.examples.labels, before[1])


@pytest.mark.parametrize("num_tests", [0, 6])
def test_a_backdoor_is_tried_on_test_images_of_other_classes(num_tests):
    data = images(num_tests=num_tests)
    _, labels = data.test_examples()
    features, targets = Backdoor(0.3, target=1).trial(data)
    assert targets.tolist() == [1] * int((labels != 1).sum())
    assert (features[:, -3:, -3:] == data.examples.features.max() / 2).all()  # model input: std is 2


def test_a_scaled_update_replaces_the_mean_of_others_that_cancel_out():
    cohort, own = Cohort(4, 1, np.zeros(2), np.zeros(2)), np.array([0.5, -1.0])
    sent = Backdoor(0.3, scale=4.0).forge(own, cohort, np.random.default_rng(0))
    assert (np.array([sent, [1, 1], [-1, 0], [0, -1]]).mean(axis=0) == own).all()
    assert not Backdoor(0.3).changes_updates


@pytest.mark.parametrize(
    ("attempt", "rule"),
    [
        (lambda: Backdoor(0.3, share=1.5), "attack.share must be between 0 and 1"),
        (lambda: Backdoor(0.3, scale=0.0), "attack.scale must be finite and > 0"),
        (lambda: Backdoor(0.3, target=3).poison(images(), ATTACKERS), "attack.target must be a class between 0 and 2"),
        (
            lambda: Backdoor(0.3).poison(images((7,)), ATTACKERS),
            r"at least 3 x 3 pixels, got examples of \(7,",
        ),
        (lambda: Backdoor(0.3).poison(images((2, 9)), ATTACKERS), "images of at least 3 x 3 pixels"),
    ],
)
def test_what_makes_no_backdoor_is_refused(attempt, rule):
    with pytest.raises(UserError, match=rule):
        attempt()
