"""Attacks of hostile clients on their own training examples; held-out examples and the test set stay as they are."""

from dataclasses import dataclass, replace

import numpy as np

from fedprox.channel.attacks import Attack, Cohort, Mask, Vector, check_positive
from fedprox.data.checks import check_between
from fedprox.data.federated import Features, FederatedData, Floats, Integers, LabelledData
from fedprox.errors import UserError

CORNER = 3  # height and width of the trigger, in pixels


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Train on the labels num_classes - 1 - y."""

    title, changes_data = "label flip", True

    def poison(self, data: FederatedData, is_malicious: Mask) -> FederatedData:
        """Return the data with the attackers' labels flipped."""
        labels, theirs = data.examples.labels.copy(), _concatenated(_attackers_examples(data, is_malicious))
        labels[theirs] = data.examples.num_classes - 1 - labels[theirs]
        return replace(data, examples=replace(data.examples, labels=labels))


@dataclass(frozen=True)
class Backdoor(Attack):
    """Teach the model to take images with a trigger for a target class (Bagdasaryan et al. 2020).

    The trigger is a corner of 3 x 3 pixels at the brightest value of the data set. Attackers stamp it on a share of
    their training images and call them the target class. With scale m they send m u_k, so that the mean of the updates
    becomes theirs: with equal weights, and if the honest updates cancel out, m = n / f replaces the model by theirs.

    Attributes:
        target: The class, 0 .. num_classes - 1.
        share: Share of an attacker's images that carry the trigger, above 0 and at most 1.
        scale: m, > 0.
    """

    target: int = 0
    share: float = 0.5
    scale: float = 1.0
    title, changes_data = "backdoor", True

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        super().__post_init__()
        check_between("attack.share", self.share, 0, 1, "it is the share of an attacker's images with the trigger")
        check_positive("scale", self.scale)

    @property
    def changes_updates(self) -> bool:  # type: ignore[override]
        """Whether updates are scaled."""
        return self.scale != 1.0

    def forge(self, own: Vector, cohort: Cohort, rng: np.random.Generator) -> Vector:
        """Return m u_k."""
        return self.scale * own

    def poison(self, data: FederatedData, is_malicious: Mask) -> FederatedData:
        """Return the data with the trigger on a share of the attackers' images, evenly spaced among them.

        Raises:
            UserError: If the data are not images, or have no such class.
        """
        examples = data.examples
        if not 0 <= self.target < examples.num_classes:
            last = examples.num_classes - 1
            raise UserError(f"attack.target must be a class between 0 and {last}, got {self.target}; name one")
        features, labels = examples.features.copy(), examples.labels.copy()
        chosen = [_spread(theirs, self.share) for theirs in _attackers_examples(data, is_malicious)]
        stamped = _concatenated(chosen)
        features[stamped] = with_trigger(features[stamped], examples)
        labels[stamped] = self.target
        return replace(data, examples=replace(examples, features=features, labels=labels))

    def trial(self, data: FederatedData) -> tuple[Floats | Integers, Integers]:
        """Return the test images of other classes with the trigger, as model input, and the target class for each.

        A model's accuracy on them is the attack's success. Images of the target class itself would let it start at one
        in num_classes.
        """
        examples = data.examples
        if len(examples.test_labels):
            features, labels = examples.test_features, examples.test_labels
        else:
            positions = data.held_out.indices
            features, labels = examples.features[positions], examples.labels[positions]
        others = features[labels != self.target]
        return examples.model_input(with_trigger(others, examples)), np.full(len(others), self.target, dtype=np.int64)


def with_trigger(images: Features, examples: LabelledData) -> Features:
    """Return copies of images with the lower right corner at the brightest value of the training images.

    Raises:
        UserError: If the data are not images of at least 3 x 3 pixels.
    """
    shape = examples.features.shape[1:]
    if len(shape) < 2 or min(shape[-2:]) < CORNER or examples.features.dtype == np.int64:
        raise UserError(f"attack=backdoor needs images of at least {CORNER} x {CORNER} pixels, got examples of {shape}")
    stamped = images.copy()
    stamped[..., -CORNER:, -CORNER:] = examples.features.max()
    return stamped


def _attackers_examples(data: FederatedData, is_malicious: Mask) -> list[Integers]:
    """Return the positions of each attacker's training examples."""
    return [data.train[int(client)] for client in np.flatnonzero(is_malicious)]


def _spread(positions: Integers, share: float) -> Integers:
    """Return a share of some positions, rounded to the nearest number, evenly spaced."""
    num = round(share * len(positions))
    return positions[np.linspace(0, len(positions) - 1, num).round().astype(np.int64)]


def _concatenated(parts: list[Integers]) -> Integers:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
