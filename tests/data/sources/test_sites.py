"""Sites: every format gives the same examples, held-out ones are each site's own, refusals name the site."""

import shutil
import zipfile

import numpy as np
import pytest

from fedprox.data.sources.site_facts import SiteError
from fedprox.data.sources.sites import SiteFormat, read_site, sites
from fedprox.errors import UserError
from tests.data.sources.site_folders import FORMATS, NAMES, SIZES, examples, write_side, write_sites


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def rows_of(features, labels):
    """Return examples as a sorted list: image folders are read class by class."""
    return sorted(
        (row.ravel().tolist(), label)
        for row, label in zip(features.tolist(), labels, strict=True)
        for row in [np.array(row)]
    )


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_each_sites_own_examples(tmp_path, form):
    data = sites(form, str(write_sites(tmp_path, form)), seed=0)
    assert data.client_ids == NAMES
    assert data.examples.class_names == ("0", "1", "2")
    scale = 255 if form == "leaf" else 1
    for client, (seed, (num_train, num_test)) in enumerate(enumerate(SIZES.values())):
        images, labels = examples(num_train + num_test, seed)
        stored = [data.train[client], data.held_out[client]]
        got = [
            rows_of(np.rint(data.examples.features[own] * np.float32(scale)), data.examples.labels[own])
            for own in stored
        ]
        if num_test:
            assert got == [
                rows_of(images[:num_train], labels[:num_train]),
                rows_of(images[num_train:], labels[num_train:]),
            ]
        else:  # int(0.9 * 31) = 27 are for training
            assert list(map(len, got)) == [27, 4]
            assert sorted(got[0] + got[1]) == rows_of(images, labels)


def test_without_a_format_it_is_that_of_the_files(tmp_path):
    for form in FORMATS:
        place = write_sites(tmp_path / form, form) / "hospital_a"
        assert SiteFormat(None).at(place) == form
        one, other = (read_site("x", place, SiteFormat(each)).examples.features for each in (form, None))
        np.testing.assert_array_equal(one, other)
    assert SiteFormat(None).at(tmp_path / "x.zip") == "image_folder"
    shutil.copy(tmp_path / "npz" / "hospital_a" / "train.npz", tmp_path / "csv" / "hospital_a")
    with pytest.raises(SiteError, match=r"site x: its folder .* holds files of the formats npz and csv"):
        read_site("x", tmp_path / "csv" / "hospital_a", SiteFormat(None))


def test_numbers_and_bytes_are_normalised_over_the_training_examples_of_all_sites(tmp_path):
    for form in FORMATS:
        data = sites(form, str(write_sites(tmp_path / form, form)), seed=0)
        inputs = data.examples.model_input(data.examples.features)[data.train.indices].astype(np.float64)
        axes = (0,) if inputs.ndim == 2 else (0, *range(2 if inputs.ndim == 4 else 1, inputs.ndim))
        np.testing.assert_allclose(inputs.mean(axis=axes), 0, atol=1e-5)
        np.testing.assert_allclose(inputs.std(axis=axes), 1, atol=1e-5)


def test_held_out_examples_are_drawn_by_seed_and_name_whatever_the_other_sites(tmp_path):
    images, labels = examples(50, 1)
    for name in ("x", "y"):
        write_side(tmp_path / name, "train", "npz", images, labels)

    def held_out(name, seed, share=0.2):
        return read_site(name, tmp_path / name, SiteFormat("npz", seed, share)).examples.test_features

    assert len(held_out("x", 0)) == 10  # 50 - int(0.8 * 50)
    np.testing.assert_array_equal(held_out("x", 0), held_out("x", 0))
    assert (held_out("x", 0) != held_out("x", 1)).any()
    assert (held_out("x", 0) != held_out("y", 0)).any()
    before = held_out("x", 0)
    shutil.rmtree(tmp_path / "y")
    np.testing.assert_array_equal(held_out("x", 0), before)


def test_val_is_the_test_set_only_without_test_and_one_file_may_have_any_name(tmp_path):
    images, labels = examples(30, 1)
    write_side(tmp_path / "x", "export", "csv", images, labels)
    write_side(tmp_path / "x", "val", "csv", images[:7], labels[:7])
    assert len(read_site("x", tmp_path / "x", SiteFormat("csv")).examples.test_labels) == 7
    write_side(tmp_path / "x", "test", "csv", images[:9], labels[:9])
    own = read_site("x", tmp_path / "x", SiteFormat("csv")).examples
    assert (len(own.labels), len(own.test_labels)) == (30, 9)


def test_a_site_with_one_class_and_sets_with_different_classes_are_fine(tmp_path):
    images, _ = examples(24, 1)
    write_side(tmp_path / "x", "", "image_folder", images[:12], np.array(["cat"] * 12))
    write_side(tmp_path / "y", "train", "image_folder", images[:12], np.array(["dog"] * 12))
    write_side(tmp_path / "y", "test", "image_folder", images[12:], np.array(["cat", "owl"] * 6))
    data = sites("image_folder", str(tmp_path), seed=0)
    assert data.examples.class_names == ("cat", "dog", "owl")
    assert data.examples.labels[data.train[1]].tolist() == [1] * 12
    assert sorted(data.examples.labels[data.held_out[1]].tolist()) == [0] * 6 + [2] * 6


def test_images_may_be_an_archive_and_are_resized_alike(tmp_path):
    images, labels = examples(12, 1)
    write_side(tmp_path / "x", "", "image_folder", images, labels)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in sorted((tmp_path / "x").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "x"))
    form = SiteFormat("image_folder", size=2, channels=3)
    one, other = (read_site("x", tmp_path / name, form).examples.features for name in ("x", "x.zip"))
    assert one.shape == (10, 3, 2, 2)
    np.testing.assert_array_equal(one, other)


def test_hidden_folders_and_files_beside_the_sites_are_not_sites(tmp_path):
    write_sites(tmp_path, "csv")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("sites")
    assert sites("csv", str(tmp_path), seed=0).client_ids == NAMES


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def only_header(folder):
    for file in folder.iterdir():
        file.write_text("x,label\n")


def without_label(folder):
    (folder / "train.csv").write_text("x,y\n1,2\n")


def other_test_columns(folder):
    (folder / "test.csv").write_text("x,label\n1,2\n")


def two_files(folder):
    (folder / "train.csv").rename(folder / "one.csv")
    (folder / "two.csv").write_text("x,label\n1,2\n")


def one_row(folder):
    (folder / "test.csv").unlink()
    (folder / "train.csv").write_text("x,label\n1,2\n")


BROKEN = {
    "empty": (emptied, "must hold train.csv"),
    "no example": (only_header, "it has no training example"),
    "no label": (without_label, "must have the column dataset.label=label"),
    "other columns": (other_test_columns, "its test set has other columns"),
    "two files": (two_files, "must hold train.csv and perhaps test.csv, or one .csv file alone, got 3"),
    "nothing held out": (one_row, "it has no held-out example"),
    "gone": (shutil.rmtree, "do not exist"),
}


@pytest.mark.parametrize(("break_it", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_site_is_refused_by_name_in_a_line_that_the_server_may_see(tmp_path, break_it, says):
    place = write_sites(tmp_path, "csv") / "hospital_a"
    break_it(place)
    with pytest.raises(SiteError) as refused:
        read_site("hospital_a", place, SiteFormat("csv"))
    assert str(refused.value).startswith("site hospital_a: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_folder_of_images_and_one_without_classes_name_the_site(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(SiteError, match=r"site x: its folder .* is empty"):
        read_site("x", tmp_path / "x", SiteFormat("image_folder"))
    (tmp_path / "x" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"site x: .* in one folder for each class"):
        read_site("x", tmp_path / "x", SiteFormat("image_folder"))


def test_labels_that_are_hardly_classes_are_not_told(tmp_path):
    for num_classes in (100, 101):
        rows = [f"{number},{number % num_classes}" for number in range(202)]
        (tmp_path / "train.csv").write_text("\n".join(["x,label", *rows]))
        assert len(read_site("x", tmp_path, SiteFormat("csv")).examples.class_names) == num_classes
    rows = [f"{number},patient {number % 102}" for number in range(202)]
    (tmp_path / "train.csv").write_text("\n".join(["x,label", *rows]))
    with pytest.raises(SiteError, match="site x: it has 102 different labels in 202 rows") as refused:
        read_site("x", tmp_path, SiteFormat("csv"))
    assert "patient" not in str(refused.value)


def test_lines_with_values_of_the_data_are_not_for_the_server(tmp_path):
    np.savez((tmp_path / "train.npz"), features=np.array([[1.0, np.inf]] * 3), labels=[0, 1, 1])
    with pytest.raises(UserError, match="site x: features must be finite") as refused:
        read_site("x", tmp_path, SiteFormat("npz"))
    assert not isinstance(refused.value, SiteError)


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ({"train": ["a", "b"], "test": ["a"]}, "train must hold one user, the same in train/ and test/, got 2"),
        ({"train": ["a"], "test": ["b"]}, "test must hold one user"),
        ({"test": ["a"]}, "train must hold LEAF's JSON files"),
    ],
)
def test_a_leaf_folder_of_more_than_one_user_is_refused(tmp_path, users, says):
    write_side(tmp_path / "x", "train", "leaf", *examples(10, 0))
    text = (tmp_path / "x" / "train" / "data.json").read_text()
    shutil.rmtree(tmp_path / "x")
    for side, names in users.items():
        (tmp_path / "x" / side).mkdir(parents=True)
        for name in names:
            (tmp_path / "x" / side / f"{name}.json").write_text(text.replace('"own"', f'"{name}"'))
    with pytest.raises(UserError, match=f"site x: .*{says}"):
        read_site("x", tmp_path / "x", SiteFormat("leaf"))


def test_no_folder_and_no_site_are_refused(tmp_path):
    for path in (None, "", " "):
        with pytest.raises(UserError, match=r"dataset\.path must name the folder of the sites' folders; without it"):
            sites("csv", path, seed=0)
    with pytest.raises(UserError, match="must be a folder with a folder for each site"):
        sites("csv", str(tmp_path / "nowhere"), seed=0)
    with pytest.raises(UserError, match="must hold a folder for each site, got none"):
        sites("csv", str(tmp_path), seed=0)
