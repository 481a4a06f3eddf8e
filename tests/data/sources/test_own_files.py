"""Own files: the same examples from .csv, .npz and .parquet, with and without clients and a test set."""

import csv as csv_files

import numpy as np
import pytest

from fedprox.data.federated import FederatedData
from fedprox.data.sources.own_files import csv, npz, parquet
from fedprox.errors import UserError

NUM = 40
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM, 3)).astype(np.float32)
Y = RNG.choice(["ill", "well"], NUM)
CLIENT = np.array(["north", "south"])[np.arange(NUM) % 2]


def write_table(file, columns):
    with file.open("w", newline="") as opened:
        writer = csv_files.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(each).tolist() for each in columns.values()), strict=True))
    return str(file)


def columns(rows=slice(None), **more):
    return {f"f{place}": X[rows, place] for place in range(3)} | {"outcome": Y[rows]} | more


def test_a_table_and_arrays_give_the_same_examples(tmp_path):
    table = write_table(tmp_path / "t.csv", columns(hospital=CLIENT))
    np.savez(tmp_path / "t.npz", x=X, y=Y, client=CLIENT)
    data = csv(table, 3, label="outcome", client="hospital")
    assert isinstance(data, FederatedData)
    assert data.client_ids == ("north", "south")
    assert np.array_equal(data.examples.features, X)
    assert data.examples.class_names == ("ill", "well")
    assert data.examples.labels.tolist() == [int(each == "well") for each in Y]
    assert npz(str(tmp_path / "t.npz"), 3).fingerprint == data.fingerprint


def test_so_does_a_parquet_file(tmp_path):
    pa, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = write_table(tmp_path / "t.csv", columns(hospital=CLIENT))
    files.write_table(pa.table(columns(hospital=CLIENT)), tmp_path / "t.parquet")
    data = parquet(str(tmp_path / "t.parquet"), 3, label="outcome", client="hospital")
    assert data.fingerprint == csv(table, 3, label="outcome", client="hospital").fingerprint


def test_two_files_one_column_and_two_sets_of_arrays_give_the_same_test_set(tmp_path):
    train, test = slice(0, 30), slice(30, None)
    first = write_table(tmp_path / "a.csv", columns(train))
    second = write_table(tmp_path / "b.csv", dict(reversed(columns(test).items())) | {"more": Y[test]})
    whole = write_table(tmp_path / "c.csv", columns(part=["train"] * 30 + ["test"] * 10))
    np.savez(tmp_path / "d.npz", x_train=X[train], y_train=Y[train], x_test=X[test], y_test=Y[test])
    np.savez(tmp_path / "e.npz", features=X[train], labels=Y[train])
    np.savez(tmp_path / "f.npz", x=X[test], y=Y[test])
    made = [
        csv(first, 0, label="outcome", test_path=second),
        csv(whole, 0, label="outcome", split="part"),
        npz(str(tmp_path / "d.npz"), 0),
        npz(str(tmp_path / "e.npz"), 0, test_path=str(tmp_path / "f.npz")),
    ]
    assert np.array_equal(made[0].test_features, X[test])
    assert {each.fingerprint for each in made} == {made[0].fingerprint}


def test_images_have_their_channels_first_and_stay_bytes(tmp_path):
    images = RNG.integers(0, 256, size=(8, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(8) % 2
    for file, given in {"last": images, "first": images.transpose(0, 3, 1, 2)}.items():
        np.savez(tmp_path / f"{file}.npz", x=given, y=labels)
        data = npz(str(tmp_path / f"{file}.npz"), 0, test_fraction=0)
        assert data.features.dtype == np.uint8
        assert np.array_equal(np.sort(data.features, axis=0), np.sort(images.transpose(0, 3, 1, 2), axis=0))
        assert data.mean.shape == data.std.shape == (3, 1, 1)
        assert data.mean.ravel() == pytest.approx(images.mean(axis=(0, 1, 2)), rel=1e-6)
    np.savez(tmp_path / "grey.npz", x=images[..., 0], y=labels)
    assert npz(str(tmp_path / "grey.npz"), 0).features.shape[1:] == (6, 5)


def test_labels_are_numbers_if_the_task_says_so(tmp_path):
    table = write_table(tmp_path / "t.csv", columns(u=X[:, 0], v=np.arange(NUM) % 2))
    data = csv(table, 0, label=["v", "u"], ignore=["outcome"], test_fraction=0, task="regression")
    assert (data.task, data.num_classes, data.class_names) == ("regression", 2, ("v", "u"))
    assert np.array_equal(data.labels, np.stack([np.arange(NUM) % 2, X[:, 0]], axis=1))
    data = csv(table, 0, label="v", ignore=["outcome"], test_fraction=0, task="multilabel")
    assert (data.task, data.labels.shape) == ("multilabel", (NUM, 1))
    np.savez(tmp_path / "t.npz", x=X, y=X[:, :2])
    data = npz(str(tmp_path / "t.npz"), 0, test_fraction=0, task="regression")
    assert (data.num_classes, data.labels.shape) == (2, (NUM, 2))


WRONG = {
    "rows": ({"x": X, "y": Y[:-1]}, "t.npz: y must have 40 rows, as x has, got (39,)"),
    "clients": ({"x": X, "y": Y, "client": CLIENT[:3]}, "t.npz: client must have 40 rows"),
    "one axis": ({"x": X[:, 0], "y": Y}, "t.npz: x must be numbers of shape (n, *input_shape), got (40,)"),
    "text": ({"x": X.astype(str), "y": Y}, "t.npz: x must be numbers"),
    "nan": ({"x": np.where(X[2, 1] == X, np.nan, X), "y": Y}, "t.npz: x must be finite in float32, got nan in row 2"),
    "fractions as classes": ({"x": X, "y": X[:, 0]}, "t.npz must have whole numbers or text as labels, got float32"),
    "no labels": ({"x": X}, "t.npz must hold the arrays x_train and y_train and x_test and y_test, or x and y"),
    "objects": ({"x": X, "y": np.array([{}] * NUM)}, "without pickled objects"),
    "unclear channels": ({"x": np.zeros((NUM, 3, 8, 3)), "y": Y}, "may have its channels first or last"),
    "clients under another name": ({"x": X, "y": Y, "client_train": CLIENT}, "client_train has no meaning there"),
    "clients of test rows alone": (
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, "client_test": CLIENT},
        "t.npz has clients, but t.npz has none",
    ),
    "a client with one row": (
        {"x": X, "y": Y, "client": np.arange(NUM) // 3},
        "t.npz: client 13 has one row, 39, so it cannot both train and test",
    ),
}


@pytest.mark.parametrize(("arrays", "says"), WRONG.values(), ids=WRONG)
def test_arrays_that_do_not_fit_are_refused_in_one_line(tmp_path, arrays, says):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(UserError) as refused:
        npz(str(tmp_path / "t.npz"), 0)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_test_sets_several_columns_of_classes_and_no_path_are_refused(tmp_path):
    table = write_table(tmp_path / "t.csv", columns(part=["train", "test"] * 20))
    with pytest.raises(UserError, match=r"dataset.split=part and dataset.test_path=.* are two test sets"):
        csv(table, 0, label="outcome", split="part", test_path=table)
    np.savez(tmp_path / "t.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    with pytest.raises(UserError, match=r"is a second test set: t.npz has x_test"):
        npz(str(tmp_path / "t.npz"), 0, test_path=str(tmp_path / "t.npz"))
    with pytest.raises(UserError, match=r"one column of classes, got 2; several are for numbers \(loss=mse\)"):
        csv(table, 0, label=["outcome", "part"])
    with pytest.raises(UserError, match=r"dataset.path must name a file, got nothing"):
        csv(" ", 0)
    with pytest.raises(UserError, match=r"dataset.separator must be one character"):
        csv(table, 0, separator=";;")
    tab = tmp_path / "tab.csv"
    tab.write_text((tmp_path / "t.csv").read_text().replace(",", "\t"))
    given = {"label": "outcome", "ignore": ["part"]}
    assert csv(str(tab), 0, separator="\\t", **given).fingerprint == csv(table, 0, **given).fingerprint
    with pytest.raises(UserError, match=r"dataset.test_path must be another file than dataset.path"):
        csv(table, 0, test_path=f"{tmp_path}/./t.csv", **given)
    with pytest.raises(UserError, match=r"b.csv must have the column dataset.features=f2"):
        csv(
            table,
            0,
            label="outcome",
            ignore=["part"],
            test_path=write_table(tmp_path / "b.csv", {"f0": [1], "f1": [2], "outcome": ["a"]}),
        )
