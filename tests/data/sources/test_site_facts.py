"""Facts: what sites tell, that the server's numbers are those of all examples together, and whom it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from fedprox.data.federated import LabelledData
from fedprox.data.sources.categories import in_order
from fedprox.data.sources.site_facts import (
    Agreement,
    Site,
    SiteError,
    agree,
    check_name,
    facts,
    federated,
    shared_counts,
)
from fedprox.errors import UserError


def site(name, features, labels=None, classes=("a", "b"), **more):
    """Return a site with these training examples, of which the first is also held out."""
    features = np.asarray(features)
    labels = np.arange(len(features)) % len(classes) if labels is None else np.asarray(labels)
    zero, one = np.float32(0), np.float32(1)
    data = LabelledData(features, labels, features[:1], labels[:1], len(classes), zero, one, classes)
    return Site(name, data, **more)


def rows(num, seed, shape=(3,), scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(num, *shape)) * scale + shift).astype(np.float32)


def agreed(*sites):
    return agree([facts(each) for each in sites])


@pytest.mark.parametrize(
    ("shape", "axes", "broadcast"),
    [
        ((3,), 0, (3,)),  # by feature
        ((2, 4, 5), (0, 2, 3), (2, 1, 1)),  # by channel
        ((4, 5), (0, 1, 2), (1, 1)),  # one channel
    ],
)
def test_mean_and_std_are_those_of_all_sites_training_examples_together(shape, axes, broadcast):
    parts = [rows(12, 1, shape, 2.0), rows(30, 2, shape, 0.1, 5.0), rows(11, 3, shape, 1.0, -4.0)]
    agreement = agreed(*(site(name, part) for name, part in zip("xyz", parts, strict=True)))
    whole = np.concatenate(parts).astype(np.float64)
    assert agreement.mean.shape == agreement.std.shape == broadcast
    np.testing.assert_allclose(agreement.mean.ravel(), whole.mean(axis=axes).ravel(), rtol=1e-6)
    np.testing.assert_allclose(agreement.std.ravel(), whole.std(axis=axes).ravel(), rtol=1e-6)


def test_bytes_give_the_same_as_numbers_with_channels_first_and_last():
    images = np.random.default_rng(0).integers(0, 256, size=(20, 4, 5, 3), dtype=np.uint8)
    whole = images.astype(np.float64)
    for stored in (images.transpose(0, 3, 1, 2), np.ascontiguousarray(images.transpose(0, 3, 1, 2))):
        agreement = agreed(site("x", stored[:13]), site("y", stored[13:]))
        np.testing.assert_allclose(agreement.mean.ravel(), whole.mean(axis=(0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(agreement.std.ravel(), whole.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_large_mean_does_not_cancel_the_standard_deviation():
    # Around 1e6 float32 has steps of 1/16, and sums of x^2 would lose all of the variance in float32.
    parts = [rows(40, seed, scale=2.0, shift=1e6) for seed in (1, 2)]
    whole = np.concatenate(parts).astype(np.float64)
    agreement = agreed(*(site(name, part) for name, part in zip("xy", parts, strict=True)))
    np.testing.assert_allclose(agreement.std, whole.std(axis=0), rtol=1e-6)


def test_what_never_varies_has_std_1_and_tokens_stay_as_they_are():
    constant = np.full((10, 2), 7.0, dtype=np.float32)
    assert agreed(site("x", constant), site("y", constant)).std.tolist() == [1.0, 1.0]
    tokens = np.arange(40).reshape(20, 2)
    told = facts(site("x", tokens))
    assert (told.mean, told.squares, told.dtype) == ((), (), "int64")
    assert (agree([told]).mean, agree([told]).std) == (0, 1)
    told = facts(site("x", constant), normalise=False)
    assert (told.mean, told.squares) == ((), ())


def test_a_site_tells_sizes_shape_and_classes():
    told = facts(site("x", rows(25, 0, (2, 4, 4)), classes=("cat", "dog", "owl")))
    assert (told.name, told.num_examples, told.num_held_out) == ("x", 25, 1)
    assert (told.input_shape, told.dtype, told.classes) == ((2, 4, 4), "float32", ("cat", "dog", "owl"))
    assert told.counts == ()
    assert len(told.mean) == len(told.squares) == 2


def test_counts_below_ten_are_told_as_0_and_only_if_the_site_shares_them():
    own = site("x", rows(30, 0), [0] * 9 + [1] * 10 + [2] * 11, ("a", "b", "c"))
    assert facts(own).counts == ()
    assert facts(own, with_counts=True).counts == (0, 10, 11)


def test_shared_counts_are_put_under_their_classes_and_missing_ones_are_refused_by_name():
    one = replace(X, classes=("b", "c"), counts=(12, 0))
    other = replace(X, name="y", classes=("a", "b"), counts=(10, 11))
    assert shared_counts([one, other], ("a", "b", "c")).tolist() == [[0, 12, 0], [10, 11, 0]]
    with pytest.raises(UserError, match=r'site y: it does not share .* share="classes"'):
        shared_counts([one, replace(other, counts=())], ("a", "b", "c"))
    with pytest.raises(UserError, match="site y: it has fewer than 10 training examples of every class"):
        shared_counts([one, replace(other, counts=(0, 0))], ("a", "b", "c"))


def test_sums_by_feature_of_fewer_than_ten_examples_are_not_told():
    with pytest.raises(SiteError, match=r"site x: it has 9 training examples, .* fewer than 10 could reveal one"):
        facts(site("x", rows(9, 0)))
    assert facts(site("x", rows(10, 0))).mean
    assert facts(site("x", rows(9, 0)), normalise=False).mean == ()
    assert facts(site("x", rows(9, 0, (1, 4, 4)))).mean  # one number for 144 pixels


def test_classes_are_the_sorted_union_as_numbers_if_all_are():
    one, two = site("x", rows(10, 0), classes=("10", "9")), site("y", rows(10, 0), classes=("9", "100"))
    assert agreed(one, two).classes == ("9", "10", "100")
    assert agreed(one, site("y", rows(10, 0), classes=("cat", "9"))).classes == ("10", "9", "cat")
    assert in_order({"-1", "1", "0"}) == ("-1", "0", "1")


def test_labels_become_the_numbers_of_the_agreed_classes_and_held_out_examples_come_last():
    x, y = rows(10, 1), rows(11, 2)
    sites = site("x", x, classes=("9", "10")), site("y", y, classes=("8", "9"))
    data = federated(sites, agreed(*sites))
    assert data.examples.class_names == ("8", "9", "10")
    np.testing.assert_array_equal(data.examples.features, np.concatenate([x, y, x[:1], y[:1]]))
    assert data.examples.labels[data.train[0]].tolist() == [1, 2] * 5
    assert data.examples.labels[data.train[1]].tolist() == [0, 1] * 5 + [0]
    assert [data.examples.labels[data.held_out[client]].tolist() for client in (0, 1)] == [[1], [0]]
    assert data.client_ids == ("x", "y")


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)])
def test_a_site_alone_has_the_examples_that_it_has_among_all(shape):
    sites = [site(name, rows(10 + seed, seed, shape)) for seed, name in enumerate("xyz")]
    agreement = agreed(*sites)
    together = federated(sites, agreement)
    for client, own in enumerate(sites):
        alone = federated([own], agreement, client)
        for got, expected in zip(alone.client_examples(client), together.client_examples(client), strict=True):
            np.testing.assert_array_equal(got, expected)
        held_out = together.held_out[client]
        np.testing.assert_array_equal(
            alone.held_out_examples()[0], together.examples.model_input(together.examples.features[held_out])
        )
        assert alone.train.sizes.tolist() == [0] * client + [10 + client]


def test_an_agreement_is_the_same_after_a_journey_as_lists():
    sites = [site(name, rows(10, seed, (2, 4, 4))) for seed, name in enumerate("xy")]
    agreement = agreed(*sites)
    again = Agreement.of(agreement.classes, agreement.mean.ravel().tolist(), agreement.std.ravel().tolist(), (2, 4, 4))
    for one, other in ((agreement.mean, again.mean), (agreement.std, again.std)):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one, other)
    assert Agreement.of(("a", "b"), [], [], (3,)) == Agreement(("a", "b"))


X = facts(site("x", rows(10, 0)))
REFUSED = {
    "shape": (replace(X, name="y", input_shape=(4,)), ["the shape (4,)", "those of x (3,)"]),
    "type": (replace(X, name="y", dtype="uint8"), ["the type uint8", "those of x float32"]),
    "columns": (replace(X, name="y", columns=("age",)), ["without age in one of them"]),
    "name": (X, ["two sites have this name"]),
}


@pytest.mark.parametrize(("told", "says"), REFUSED.values(), ids=REFUSED)
def test_a_site_that_does_not_fit_the_first_is_refused_by_name(told, says):
    with pytest.raises(SiteError) as refused:
        agree([X, told])
    line = str(refused.value)
    assert line.startswith(f"site {told.name}: ")
    assert [words for words in says if words not in line] == [], line


def test_columns_in_another_order_are_refused():
    one, other = (replace(X, name=name, columns=columns) for name, columns in (("x", ("a", "b")), ("y", ("b", "a"))))
    with pytest.raises(SiteError, match="site y: its columns must be those of x, but are in another order"):
        agree([one, other])


def test_images_of_16_bits_with_another_range_are_refused_but_8_bits_are_not():
    first, second = replace(X, white=4095), replace(X, name="y", white=1023)
    with pytest.raises(
        SiteError, match="site y: its images of 16 bits have the range 0 to 1023, but those of x 0 to 4"
    ):
        agree([first, second])
    agree([first, replace(second, white=0)])


def test_a_class_that_is_not_among_the_given_ones_is_refused_by_the_sites_name():
    other = replace(X, name="y", classes=("a", "zebra"))
    with pytest.raises(SiteError, match="site y: it has the unknown class zebra, and the classes are b, a"):
        agree([X, other], ["b", "a"])
    assert agree([X, X.__class__(**{**X.__dict__, "name": "y"})], ["b", "a", "c"]).classes == ("b", "a", "c")
    with pytest.raises(SiteError, match="site y: it has the unknown class zebra"):
        federated([site("y", rows(10, 0), classes=("a", "zebra"))], Agreement(("a", "b")))


def test_one_class_in_all_is_refused():
    with pytest.raises(UserError, match="needs two different classes or more"):
        agree([replace(X, classes=("a",))])
    with pytest.raises(UserError, match="needs two different classes or more"):
        agree([X], ["a", "b", "a"])


@pytest.mark.parametrize("name", ["", "a b", "ä", ".x", "a/b", "../a", "a\n", "a" * 65, "-x"])
def test_a_name_that_is_no_plain_word_is_refused(name):
    with pytest.raises(SiteError, match="must have a name"):
        check_name(name)


def test_plain_names_pass():
    for name in ("hospital_a", "St.Mary-2", "7", "a" * 64):
        check_name(name)
