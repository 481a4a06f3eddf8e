"""Own rows become data: who holds them, which are for testing, what the classes are called."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.data.federated import FederatedData, LabelledData
from fedprox.data.sources.categories import Categories
from fedprox.data.sources.own_rows import Rows, Sides, assembled, joined, sides_of
from fedprox.errors import UserError


def categories(names) -> Categories:
    return Categories.of(np.arange(len(names)), names)


def rows_of(clients=None, *, labels=None, sides=None, source="t.csv") -> Rows:
    """Return rows whose only feature is their number."""
    num = len(labels.codes if clients is None else clients)
    labels = Categories.of(np.arange(num) % 2, ["b", "a"]) if labels is None else labels
    features = np.arange(num, dtype=np.float32)[:, None]
    return Rows(source, features, labels, clients=clients and categories(clients), sides=sides)


def numbers(data: FederatedData, positions) -> list[int]:
    return data.examples.features[positions, 0].astype(int).tolist()


@given(st.lists(st.sampled_from("abc"), min_size=1), st.floats(0.01, 0.99), st.integers(0, 3))
def test_every_row_is_held_by_its_client_for_training_or_for_testing(names, fraction, seed):
    clients = [name for name in names for _ in range(2)]  # no client has one row
    data = assembled(rows_of(clients), seed=seed, test_fraction=fraction)
    assert data.client_ids == tuple(sorted(set(clients)))
    for client, name in enumerate(data.client_ids):
        own = [row for row, each in enumerate(clients) if each == name]
        train, held_out = numbers(data, data.train[client]), numbers(data, data.held_out[client])
        assert sorted(train + held_out) == own
        assert len(train) == max(1, int((1 - fraction) * len(own)))
    assert len(data.examples.test_labels) == 0


def test_a_clients_test_rows_are_drawn_by_the_seed_whatever_the_other_clients_are():
    one = assembled(rows_of(["a"] * 20 + ["b"] * 20), seed=1)
    without_b = assembled(rows_of(["a"] * 20 + ["c"] * 9), seed=1)
    other_seed = assembled(rows_of(["a"] * 20 + ["b"] * 20), seed=2)
    assert numbers(one, one.held_out[0]) == numbers(without_b, without_b.held_out[0])
    assert numbers(one, one.held_out[0]) != numbers(other_seed, other_seed.held_out[0])
    assert [row + 20 for row in numbers(one, one.held_out[0])] != numbers(one, one.held_out[1])


def test_without_clients_a_share_of_the_rows_is_the_test_set_and_the_others_normalise():
    data = assembled(rows_of(labels=categories(["no", "yes"] * 50)), seed=0, test_fraction=0.25)
    assert isinstance(data, LabelledData)
    test = data.test_features[:, 0].astype(int).tolist()
    train = data.features[:, 0].astype(int).tolist()
    assert (len(test), sorted(test + train)) == (25, list(range(100)))
    assert data.mean == pytest.approx(np.mean(train))
    assert data.std == pytest.approx(np.std(train))
    assert data.class_names == ("no", "yes")
    assert data.labels.tolist() == [row % 2 for row in train]
    raw = assembled(rows_of(labels=categories(["no", "yes"] * 50)), seed=0, normalise=False)
    assert (float(raw.mean), float(raw.std)) == (0, 1)


def test_a_column_says_which_rows_are_for_what_and_val_is_for_testing_if_nothing_else_is():
    column = categories(["Train", "TEST", "val", "training", "test"])
    assert [side.tolist() for side in sides_of("t.csv", column)] == [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1]]
    data = assembled(rows_of(["a", "a", "a", "b", "b"], sides=sides_of("t.csv", column)), seed=0)
    assert [numbers(data, data.train[client]) for client in (0, 1)] == [[0], [3]]
    assert [numbers(data, data.held_out[client]) for client in (0, 1)] == [[1], [4]]
    assert data.num_left_over == 1
    without_test = sides_of("t.csv", categories(["train", "valid"]))
    assert without_test.test.tolist() == [False, True]


def test_a_second_file_is_held_out_by_its_clients_or_without_them_the_global_test_set():
    first, second = ["a", "b", "a"], ["b", "a"]
    labels = categories(["x", "y"])
    data = assembled(joined(rows_of(first), rows_of(second)), seed=0)
    assert [data.held_out[client].tolist() for client in (0, 1)] == [[4], [3]]
    data = assembled(joined(rows_of(first), rows_of(labels=labels)), seed=0)
    assert data.held_out.sizes.tolist() == [0, 0]
    assert data.examples.test_features.tolist() == [[0], [1]]
    assert data.examples.class_names == ("a", "b", "x", "y")
    assert data.examples.test_labels.tolist() == [2, 3]
    data = assembled(joined(rows_of(labels=labels), rows_of(labels=labels)), seed=0)
    assert (data.features.tolist(), data.test_features.tolist()) == ([[0], [1]], [[0], [1]])


def test_numbers_to_predict_have_as_many_outputs_as_columns():
    targets = np.array([[0.5, 1], [-1, 0], [2, 2]], dtype=np.float32)
    rows = Rows("t.csv", np.arange(3, dtype=np.float32)[:, None], targets, ("u", "v"))
    data = assembled(rows, seed=0, test_fraction=0, task="regression")
    assert (data.num_classes, data.class_names, data.labels.tolist()) == (2, ("u", "v"), targets.tolist())


def test_labels_that_are_true_together_are_0_or_1():
    labels = np.array([[0, 1], [1, 0.5]], dtype=np.float32)
    rows = Rows("t.csv", np.zeros((2, 1), np.float32), labels, ("u", "v"))
    with pytest.raises(UserError, match=r"t.csv: v in row 2 must be 0 or 1"):
        assembled(rows, seed=0, task="multilabel")
    with pytest.raises(UserError, match=r"t.npz: y\[:, 0\] in row 1 must be 0 or 1"):
        assembled(Rows("t.npz", rows.features, labels[:, 1], first_row=0), seed=0, task="multilabel")


IS_TRAIN = np.array([True, False, False, False])
MANY = [str(number) for number in range(150)]
WRONG = {
    "a client with one row": (
        rows_of(["a", "a", "b", "c"]),
        {},
        "client b has one row, 3, .*2 such clients.*dataset.split",
    ),
    "a client that does not train": (
        rows_of(["a", "a", "b", "b"], sides=Sides(IS_TRAIN, ~IS_TRAIN)),
        {},
        "client b has no row for training",
    ),
    "one class": (rows_of(labels=categories(["a", "a"])), {}, "two classes or more, got one"),
    "numbers as classes": (rows_of(labels=categories(MANY)), {}, "150 different values in 150 rows.*loss=mse"),
    "nothing to test clients on": (rows_of(["a", "a"]), {"test_fraction": 0}, "test_fraction must be above 0"),
    "nothing to train on": (
        rows_of(["a", "a"]),
        {"test_fraction": 1},
        "test_fraction must be above 0 and below 1, got 1",
    ),
    "a share of what is divided": (
        rows_of(labels=categories(["a", "b", "a", "b"]), sides=Sides(IS_TRAIN, ~IS_TRAIN)),
        {"test_fraction": 0.5},
        "test_fraction=0.5 draws a test set, but t.csv has one",
    ),
}


@pytest.mark.parametrize(("rows", "settings", "says"), WRONG.values(), ids=WRONG)
def test_rows_that_cannot_be_trained_and_tested_on_are_refused(rows, settings, says):
    with pytest.raises(UserError, match=says):
        assembled(rows, seed=0, **settings)


def test_other_words_in_the_column_of_sides_one_side_alone_and_no_rows_are_refused():
    with pytest.raises(UserError, match="must be train, val or test, but is none of them in row 2"):
        sides_of("t.csv", categories(["train", "other"]))
    with pytest.raises(UserError, match="into train and test, but all are train"):
        sides_of("t.csv", categories(["train", "Training"]))
    with pytest.raises(UserError, match="at least one row, got none"):
        rows_of([])
    with pytest.raises(UserError, match=r"u\.npz must have examples of the shape \(1,\) like t.csv, got \(2,\)"):
        joined(rows_of(["a"]), Rows("u.npz", np.zeros((1, 2), np.float32), categories(["a"])))
