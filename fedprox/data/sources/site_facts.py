"""What sites tell about their data, and what the server agrees on: the same simulated and in a federation.

A site tells facts about its examples (`facts`): how many there are, their shape, the names of their classes, sums by
channel or feature, but no example. From the facts of all sites the server agrees on classes and normalisation
(`agree`), or refuses a site by its name. Each site numbers its classes and normalises its examples accordingly
(`federated`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fedprox.data.checks import MAX_CLASSES
from fedprox.data.facts import Facts
from fedprox.data.federated import ClientIndex, Features, FederatedData, Floats, Integers, LabelledData
from fedprox.data.fingerprint import digest
from fedprox.data.sources.categories import in_order
from fedprox.data.sources.channels import concatenated
from fedprox.data.sources.normalisation import Doubles, moments, shaped, std_of, values_of_one
from fedprox.errors import UserError, printable

FEWEST = 10  # examples whose sums by feature are told, and the smallest count by class: fewer could reveal one
MAX_NAME = 64  # characters of a site's name
EXAMPLES = 3  # random ones, to try a model on
SHOWN = 5  # classes or columns that an error lists
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SiteError(UserError):
    """A refusal of a site, in one line that names it and holds no value of its data: it may be told to the server."""


@dataclass(frozen=True)
class Site:
    """One site's examples.

    Attributes:
        name: Its name, which is its client's id.
        examples: Its training examples; its held-out ones are the test set. Labels are positions in its own
            `class_names`.
        columns: Names of the features of a .csv file, in order.
        white: The value that became 255 in its images of 16 bits; 0 without such.
    """

    name: str
    examples: LabelledData
    columns: tuple[str, ...] = ()
    white: int = 0


@dataclass(frozen=True)
class SiteFacts:
    """What a site tells the server about its data.

    Attributes:
        name: Its name.
        num_examples: Number of training examples (n_k).
        num_held_out: Number of held-out examples.
        input_shape: Shape of an example.
        dtype: "uint8", "float32" or "int64" (tokens).
        classes: Names of the classes of its examples.
        columns: Names of its features, if they have any.
        white: The value that became 255 in its images of 16 bits; 0 without such.
        mean: By channel, or by feature of examples with one axis: the mean of its training examples, in float64.
            Empty for tokens and without normalisation.
        squares: The same for the sum of (x - mean)^2.
        counts: Training examples of each of `classes`, numbers below FEWEST as 0, if the site shares them.
        fingerprint: SHA-256 of its examples, by which a resumed run recognises them; "" in a simulation.
    """

    name: str
    num_examples: int
    num_held_out: int
    input_shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    white: int = 0
    mean: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class Agreement:
    """What the server makes of all sites' facts.

    Attributes:
        classes: Names of all classes; a class's position is its number.
        mean: Subtracted from the features; float32, broadcasts over the input shape.
        std: Divides them after that; the same.
    """

    classes: tuple[str, ...]
    mean: Floats = field(default_factory=lambda: np.zeros((), np.float32))
    std: Floats = field(default_factory=lambda: np.ones((), np.float32))

    @classmethod
    def of(cls, classes: Sequence[str], mean: Any, std: Any, input_shape: tuple[int, ...]) -> Self:
        """Return an agreement of numbers by channel or feature; without numbers, examples stay as they are."""
        if not len(mean):
            return cls(tuple(classes))
        return cls(tuple(classes), shaped(mean, input_shape), shaped(std, input_shape))


def check_name(name: str) -> None:
    """Raise SiteError unless a site's name is letters, digits, ., _ and -: names are in errors, tables and paths."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise SiteError(
            f"site {printable(name)[:MAX_NAME]!r} must have a name of at most {MAX_NAME} letters, digits, '.', '_' and "
            "'-' that begins with a letter or a digit; rename it"
        )


def facts(site: Site, *, normalise: bool = True, with_counts: bool = False) -> SiteFacts:
    """Return what a site tells the server.

    Args:
        site: The site.
        normalise: Whether model input is normalised, which needs the sums.
        with_counts: Whether it also tells how many training examples of each class it has.

    Raises:
        SiteError: If it has so few examples that their sums by feature could reveal one.
    """
    own, mean, squares = site.examples, (), ()
    features, shape = own.features, own.features.shape[1:]
    if normalise and features.dtype != np.int64:
        if len(shape) == 1 and len(features) < FEWEST:
            raise SiteError(
                f"site {site.name}: it has {len(features)} training examples, and sums by feature over fewer than "
                f"{FEWEST} could reveal one; leave the site out, or set dataset.normalise=false"
            )
        mean, squares = (tuple(each.tolist()) for each in moments(features))
    counts = np.bincount(own.labels, minlength=own.num_classes)
    return SiteFacts(
        name=site.name,
        num_examples=len(own.labels),
        num_held_out=len(own.test_labels),
        input_shape=shape,
        dtype=str(features.dtype),
        classes=own.class_names,
        columns=site.columns,
        white=site.white,
        mean=mean,
        squares=squares,
        counts=tuple(np.where(counts < FEWEST, 0, counts).tolist()) if with_counts else (),
    )


def agree(told: Sequence[SiteFacts], classes: Sequence[str] | None = None) -> Agreement:
    """Return the classes and the normalisation of all sites; mean and std are computed in float64, site by site.

    Args:
        told: The facts of all sites in the order of the clients.
        classes: The classes' names in the order of their numbers; None for the sorted union of the sites'.

    Raises:
        SiteError: If two sites have one name, or a site does not fit to the first one or has another class; it names
            the site.
    """
    first, seen = told[0], set()
    for each in told:
        if each.name in seen:
            raise SiteError(f"site {each.name}: two sites have this name; give each site its own")
        seen.add(each.name)
        _check_fits(each, first)
    found = {name for each in told for name in each.classes}
    names = in_order(found) if classes is None else tuple(map(str, classes))
    for each in told:
        _check_known(each.name, each.classes, names)
    if not 2 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise UserError(
            f"dataset=sites needs two different classes or more, and at most {MAX_CLASSES:,}, got {len(names)}: "
            f"{_listed(names)}; check dataset.format, dataset.label and dataset.classes"
        )
    if not first.mean:
        return Agreement(names)
    return Agreement.of(names, *_pooled(told), first.input_shape)


def _check_fits(site: SiteFacts, first: SiteFacts) -> None:
    """Raise SiteError unless a site's examples are of the first site's form."""
    for what, own, other, remedy in (
        ("shape", site.input_shape, first.input_shape, "prepare all sites alike; for images set dataset.size and "
         "dataset.channels"),
        ("type", site.dtype, first.dtype, "prepare all sites alike; write numbers that are not tokens as 5.0, not 5"),
    ):  # fmt: skip
        if own != other:
            raise SiteError(
                f"site {site.name}: its examples have the {what} {own}, but those of {first.name} {other}; {remedy}"
            )
    if site.columns != first.columns:
        differing = sorted(set(site.columns) ^ set(first.columns))
        why = f"without {_listed(differing)} in one of them" if differing else "in another order"
        raise SiteError(
            f"site {site.name}: its columns must be those of {first.name}, but are {why}; export both alike"
        )
    if site.white and first.white and site.white != first.white:
        raise SiteError(
            f"site {site.name}: its images of 16 bits have the range 0 to {site.white}, but those of {first.name} 0 to "
            f"{first.white}; save all sites' images with 8 bits"
        )


def _check_known(name: str, own: Sequence[str], classes: Sequence[str]) -> None:
    """Raise SiteError if a site has a class that is not one of `classes`."""
    if unknown := [each for each in own if each not in classes]:
        raise SiteError(
            f"site {name}: it has the unknown class {_listed(unknown)}, and the classes are {_listed(classes)}; rename "
            "it at the site, or add it to dataset.classes"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:SHOWN])) + ", ..." * (len(names) > SHOWN)


def _pooled(told: Sequence[SiteFacts]) -> tuple[Doubles, Doubles]:
    """Return mean and std over all sites' training examples, site by site; std is 1 for what never varies.

    With N_k values at site k, of mean m_k and sum of squares q_k around it, the mean is m = sum N_k m_k / N and the
    variance sum (q_k + N_k (m_k - m)^2) / N (Chan et al. 1979), in which large means do not cancel.
    """
    values = values_of_one(told[0].input_shape)
    counts = [site.num_examples * values for site in told]
    mean, squares = np.zeros(len(told[0].mean)), np.zeros(len(told[0].mean))
    for site, count in zip(told, counts, strict=True):
        mean += count * np.array(site.mean)
    mean /= sum(counts)
    for site, count in zip(told, counts, strict=True):
        squares += np.array(site.squares) + count * np.square(np.array(site.mean) - mean)
    return mean, std_of(squares, sum(counts))


def federated(read: Sequence[Site], agreement: Agreement, first_client: int = 0) -> FederatedData:
    """Return sites as the clients of a run: classes numbered and examples normalised as agreed.

    Args:
        read: The sites, in the order of the clients.
        agreement: From all sites' facts.
        first_client: Number of the first of them. The clients before it are at other places: here they have no
            examples.

    Raises:
        SiteError: If a site has a class that was not agreed on.
    """
    numbers = {name: number for number, name in enumerate(agreement.classes)}
    features, labels = [], []
    for side in ("", "test_"):
        for site in read:
            own = site.examples
            _check_known(site.name, own.class_names, agreement.classes)
            features.append(getattr(own, f"{side}features"))
            of_class = np.array([numbers[name] for name in own.class_names], dtype=np.int64)
            labels.append(of_class[getattr(own, f"{side}labels")])
    examples = LabelledData.without_test_set(
        concatenated(features),
        np.concatenate(labels),
        len(agreement.classes),
        mean=agreement.mean,
        std=agreement.std,
        class_names=agreement.classes,
    )
    sizes = np.array([len(each) for each in labels], dtype=np.int64).reshape(2, len(read))
    train, held_out = (np.concatenate([np.zeros(first_client + 1, np.int64), np.cumsum(side)]) for side in sizes)
    return FederatedData(
        examples,
        ClientIndex(np.arange(train[-1]), train),
        ClientIndex(np.arange(train[-1], len(examples.labels)), held_out),
        () if first_client else tuple(site.name for site in read),
    )


def known(told: Sequence[SiteFacts], agreement: Agreement) -> Facts:
    """Return what the server knows of all clients' data; its examples are random, for trials of the model.

    Args:
        told: The facts of all sites in the order of the clients.
        agreement: What it made of them.
    """
    first, num_classes = told[0], len(agreement.classes)
    rng, shape = np.random.default_rng(0), (EXAMPLES, *first.input_shape)
    features: Features = np.zeros(shape, dtype=np.int64)  # tokens, of which any model has the first
    if first.dtype == "uint8":
        features = rng.integers(0, 256, size=shape, dtype=np.uint8)
    elif first.dtype == "float32":
        features = (agreement.mean + agreement.std * rng.normal(size=shape)).astype(np.float32)
    examples = LabelledData.without_test_set(
        features,
        np.arange(EXAMPLES) % num_classes,
        num_classes,
        mean=agreement.mean,
        std=agreement.std,
        class_names=agreement.classes,
    )
    held_out = np.array([site.num_held_out for site in told], dtype=np.int64)
    names = tuple(site.name for site in told)
    agreed = {"mean": agreement.mean, "std": agreement.std}
    data = digest(agreed, json.dumps([agreement.classes, [site.fingerprint for site in told]]))
    sizes = [[site.name, site.num_examples, site.num_held_out] for site in told]
    return Facts(
        examples=examples,
        sizes=np.array([site.num_examples for site in told], dtype=np.int64),
        held_out_sizes=held_out,
        client_ids=names,
        num_tested=int(held_out.sum()),
        num_left_over=0,
        fingerprint=lambda: {"data": data[:32], "partition": digest({}, json.dumps(sizes))[:32]},
    )


def shared_counts(told: Sequence[SiteFacts], classes: Sequence[str]) -> Integers:
    """Return the training examples of each class at each site, shape (num_sites, num_classes).

    Args:
        told: The facts of all sites.
        classes: Names of all classes.

    Raises:
        UserError: If a site does not share its counts, or all of them are below FEWEST and so not told.
    """
    counts = np.zeros((len(told), len(classes)), dtype=np.int64)
    for row, site in zip(counts, told, strict=True):
        if not site.counts:
            raise UserError(
                f"site {site.name}: it does not share how many examples of each class it has; it would with "
                'share="classes" in the node config of its SuperNode (share=classes start.sh)'
            )
        if not any(site.counts):
            raise UserError(
                f"site {site.name}: it has fewer than {FEWEST} training examples of every class, so it shares no number"
            )
        row[[classes.index(name) for name in site.classes]] = site.counts
    return counts
