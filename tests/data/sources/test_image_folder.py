"""Folders of images as a data set: classes, sides, statistics, the cache, errors and log."""

import csv
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedprox.data.sources import image_folder as ours
from fedprox.data.sources.image_folder import image_folder
from tests.data.refusals import line_of

CIFAR_JPEG = Path(os.environ.get("FEDPROX_DATA_DIR", "data")).absolute() / "cifar10-jpeg.zip"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def colour(name: str) -> np.ndarray:
    """Return pixels that only this name has, shape (4, 4, 3)."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colour(name)).save(folder / name)
    return folder


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder.parent))
    return file


SIDES = ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cat/3.png", "test/dog/2.png", "test/dog/3.png")


@pytest.fixture
def sides(tmp_path) -> Path:
    """Return a folder with train/ and test/."""
    return write(tmp_path / "pets", *SIDES)


@pytest.fixture
def one_tree(tmp_path) -> Path:
    """Return a folder with 10 images of each of cat and dog, and 3 of emu."""
    numbers = {"cat": 10, "dog": 10, "emu": 3}
    return write(tmp_path / "zoo", *(f"{label}/{i}.png" for label, num in numbers.items() for i in range(num)))


def assert_same(one, other) -> None:
    for name in ("features", "labels", "test_features", "test_labels", "mean", "std"):
        assert (getattr(one, name) == getattr(other, name)).all(), name
    assert one.num_classes == other.num_classes


def error_line(path: Path | str, **settings) -> str:
    return line_of(image_folder, str(path), 0, **settings)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_both_sides_are_sorted_by_class_and_name(sides, tmp_path, kind):
    data = image_folder(str(sides if kind == "folder" else zipped(sides, tmp_path / "pets.zip")), 0)
    train, test = ([name for name in SIDES if name.startswith(side)] for side in ("train", "test"))
    assert (data.features.transpose(0, 2, 3, 1) == [colour(name) for name in train]).all()
    assert (data.test_features.transpose(0, 2, 3, 1) == [colour(name) for name in test]).all()
    assert (data.labels.tolist(), data.test_labels.tolist(), data.num_classes) == ([0, 0, 1], [0, 1, 1], 2)
    assert (data.features.dtype, data.labels.dtype) == (np.uint8, np.int64)


def test_mean_and_std_are_those_of_the_training_pixels_of_each_channel_which_lie_last_in_memory(sides, one_tree):
    for path in (sides, one_tree):
        data = image_folder(str(path), 0)
        for features in (data.features, data.test_features):
            assert features.transpose(0, 2, 3, 1).flags.c_contiguous
        assert data.mean.shape == data.std.shape == (3, 1, 1)
        pixels = data.features.astype(np.float64)
        np.testing.assert_allclose(data.mean.ravel(), pixels.mean(axis=(0, 2, 3)), rtol=1e-6)  # float32
        np.testing.assert_allclose(data.std.ravel(), pixels.std(axis=(0, 2, 3)), rtol=1e-6)


def images_of(data) -> tuple[set[bytes], set[bytes]]:
    train, test = ({each.transpose(1, 2, 0).tobytes() for each in side} for side in (data.features, data.test_features))
    return train, test


def test_one_tree_is_divided_class_by_class_and_each_image_keeps_its_class(one_tree):
    data = image_folder(str(one_tree), 0, test_fraction=0.4)
    # int(0.4 * 10), int(0.4 * 10), int(0.4 * 3)
    assert np.bincount(data.test_labels).tolist() == [4, 4, 1]
    label_of = {colour(str(p.relative_to(one_tree))).tobytes(): p.parent.name for p in one_tree.rglob("*.png")}
    train, test = images_of(data)
    assert train | test == set(label_of)
    assert train & test == set()
    for features, labels in ((data.features, data.labels), (data.test_features, data.test_labels)):
        found = [label_of[each.transpose(1, 2, 0).tobytes()] for each in features]
        assert found == [["cat", "dog", "emu"][label] for label in labels]


def test_only_the_seed_decides_the_test_set(one_tree):
    first, again, other = (image_folder(str(one_tree), seed, test_fraction=0.4) for seed in (0, 0, 1))
    assert_same(first, again)
    assert images_of(first)[1] != images_of(other)[1]


def test_a_fifth_is_for_testing_by_default_and_nothing_with_0(one_tree):
    assert np.bincount(image_folder(str(one_tree), 0).test_labels).tolist() == [2, 2]  # int(3 / 5) = 0
    assert len(image_folder(str(one_tree), 0, test_fraction=0.0).test_labels) == 0


def test_settings_out_of_range_are_refused_before_anything_is_read():
    for settings, rule in (
        ({"size": 0}, "dataset.size must be between 1 and 4096, got 0"),
        ({"channels": 2}, "dataset.channels must be 1 or 3, got 2"),
        ({"test_fraction": 1.0}, "dataset.test_fraction must be at least 0 and below 1, got 1.0"),
        ({"test_fraction": float("nan")}, "dataset.test_fraction must be at least 0 and below 1, got nan"),
    ):
        assert error_line("nowhere", **settings).startswith(rule)


def test_a_fraction_for_data_with_a_test_set_is_refused(sides):
    assert "dataset.test_fraction divides one tree" in error_line(sides, test_fraction=0.5)


# Broken images.


def test_broken_images_are_skipped_on_both_sides_and_counted_each_time(sides, caplog):
    clean = image_folder(str(sides), 0)
    for name in ("train/cat/0.png", "train/dog/9.png", "test/dog/25.png"):
        (sides / name).write_bytes(b"broken")
    assert "train/cat/0.png cannot be read as an image" in error_line(sides)
    for _ in range(2):  # decoded, and from the cache
        caplog.clear()
        assert_same(image_folder(str(sides), 0, skip_broken=True), clean)
        assert f"{sides}: 3 broken images are skipped, the first is train/cat/0.png: " in caplog.text


def test_a_class_with_broken_images_only_is_refused(sides):
    (sides / "train" / "dog" / "1.png").write_bytes(b"broken")
    assert "must have images of every class, but all of dog are broken" in error_line(sides, skip_broken=True)


# The cache.


def cache_of(folder: Path) -> Path:
    (file,) = (folder / ".fedprox-cache").glob("*")
    return file


def spoil(folder: Path) -> None:
    """Make the images unusable without changing their size or time."""
    for file in folder.rglob("*.png"):
        stat = file.stat()
        file.write_bytes(b"?" * stat.st_size)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_second_time_nothing_is_decoded_also_for_another_division(sides, one_tree):
    first = image_folder(str(sides), 0)
    image_folder(str(one_tree), 0, test_fraction=0.4)
    spoil(sides)
    spoil(one_tree)
    assert_same(image_folder(str(sides), 0), first)
    data = image_folder(str(one_tree), 1, test_fraction=0.5)
    assert np.bincount(data.test_labels).tolist() == [5, 5, 1]
    np.testing.assert_allclose(data.mean.ravel(), data.features.mean(axis=(0, 2, 3)), rtol=1e-6)


def test_each_size_and_number_of_channels_has_a_cache_of_its_own(sides):
    made = {(size, channels): image_folder(str(sides), 0, size, channels) for size in (None, 2) for channels in (1, 3)}
    spoil(sides)
    for (size, channels), data in made.items():
        assert data.features.shape == (3, channels, size or 4, size or 4)
        assert_same(image_folder(str(sides), 0, size, channels), data)


def change_pixels(folder: Path) -> None:
    Image.fromarray(255 - colour("x")).save(folder / "train/cat/1.png")


def touch(folder: Path) -> None:
    file = folder / "train/cat/1.png"
    size = file.stat().st_size
    Image.fromarray(255 - colour("train/cat/1.png")).save(file)
    assert file.stat().st_size == size
    os.utime(file, ns=(10**18, 10**18))  # in 2001; a .zip file has no time before 1980


def rename(folder: Path) -> None:
    (folder / "train/cat/1.png").rename(folder / "train/cat/9.png")


@pytest.mark.parametrize("change", [change_pixels, touch, rename])
def test_after_any_change_of_the_files_they_are_decoded_again(sides, tmp_path, change):
    places = sides, zipped(sides, tmp_path / "pets.zip")
    old = [image_folder(str(place), 0) for place in places]
    change(sides)
    zipped(sides, tmp_path / "pets.zip")
    for before, place in zip(old, places, strict=True):
        after = image_folder(str(place), 0)
        assert before.features.shape != after.features.shape or (before.features != after.features).any()
        assert_same(after, image_folder(str(sides), 0, cache_dir=str(tmp_path / "another")))


def test_another_version_of_pillow_or_of_the_format_decodes_again(sides, monkeypatch):
    image_folder(str(sides), 0)
    for name, value in (("VERSION", ours.VERSION + 1), ("version", lambda _: "another")):
        before = cache_of(sides).read_bytes()
        monkeypatch.setattr(ours, name, value)
        image_folder(str(sides), 0)
        assert cache_of(sides).read_bytes() != before


def test_the_cache_is_beside_a_zip_or_in_cache_dir(sides, tmp_path):
    folder = tmp_path / "zips"
    folder.mkdir()
    file = zipped(sides, folder / "pets.zip")
    image_folder(str(file), 0)
    assert cache_of(folder).suffix == ".npz"
    shutil.rmtree(folder / ".fedprox-cache")
    image_folder(str(file), 0, cache_dir=str(tmp_path / "there"))
    assert [path.name for path in folder.iterdir()] == ["pets.zip"]
    assert len(list((tmp_path / "there").iterdir())) == 1


# The command line.


SMALL = ("dataset=image_folder", "partition=iid", "num_clients=2", "clients_per_round=2", "engine=local")


def test_a_run_trains_on_images_and_names_folder_and_classes(fedprox, tmp_path):
    names = ["10", "2", "\x1b[31m", "a,b"]
    write(tmp_path / "odd", *(f"{name}/{number}.png" for name in names for number in range(5)))
    ended = fedprox(*SMALL, "dataset.path=odd", "num_rounds=1", "evaluation.per_class=true")
    assert ended.status == 0, ended.err
    classes = sorted(names)  # as strings, so "10" is before "2"
    assert "image_folder:odd: 4 classes: \\x1b[31m, 10, 2, a,b; 3 to 4 training examples each" in ended.out
    assert "\x1b" not in ended.out + ended.err + (tmp_path / "run" / "main.log").read_text()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["name"], facts["classes"]) == ("image_folder:odd", classes)
    with (tmp_path / "run" / "classes.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["class"], row["name"]) for row in rows[:4]] == [
        *(("0", "\\x1b[31m"), ("1", "10"), ("2", "2"), ("3", "a,b"))
    ]
    assert image_folder(str(tmp_path / "odd"), 0).class_names == tuple(classes)  # from the cache


def test_files_and_folders_that_are_left_out_are_logged(sides, caplog):
    caplog.set_level(logging.INFO, "fedprox")
    (sides / "train" / "emu").mkdir()
    (sides / "train" / "cat" / "list.txt").touch()
    (sides / "train" / "cat" / "4").touch()
    (sides / ".DS_Store").touch()
    write(sides, "val/cat/1.png", "train/logo.png")
    image_folder(str(sides), 0)
    for words in (
        *("3 files passed over: ", "1 *.txt", "1 without a suffix", "1 hidden"),
        *("2 images are left out: they are in no class folder", "train/emu/ holds no image and is not a class"),
    ):
        assert words in caplog.text


@pytest.mark.parametrize(("largest", "line"), [(200, "all of them keep their values"), (900, "divided by 1023 / 255")])
def test_sixteen_bits_are_scaled_alike_on_both_sides_and_that_is_logged_each_time(tmp_path, caplog, largest, line):
    caplog.set_level(logging.INFO, "fedprox")
    for place, number in enumerate((100, 100, largest, 100)):  # the largest is in the test set
        file = tmp_path / "deep" / ("train", "test")[place // 2] / "ab"[place % 2] / "1.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(np.array([[0, number]], dtype=np.uint16)).save(file)
    scaled = [round(number * 255 / (255 if largest == 200 else 1023)) for number in (100, largest)]
    for _ in range(2):  # decoded, and from the cache
        caplog.clear()
        data = image_folder(str(tmp_path / "deep"), 0)
        assert data.features[:, 0, 0, 1].tolist() == [scaled[0], scaled[0]]
        assert data.test_features[:, 0, 0, 1].tolist() == [scaled[1], scaled[0]]
        assert f"4 of 4 images have 16 bits; their largest value is {largest}" in caplog.text
        assert line in caplog.text


@pytest.mark.skipif(not CIFAR_JPEG.is_file(), reason=f"{CIFAR_JPEG} is not there; FEDPROX_DATA_DIR is its folder")
def test_a_tenth_of_cifar_10_as_jpeg_files_is_nearly_cifar_10(tmp_path):
    with zipfile.ZipFile(CIFAR_JPEG) as whole, zipfile.ZipFile(tmp_path / "tenth.zip", "w") as tenth:
        for name in sorted(name for name in whole.namelist() if name.endswith(".jpg"))[::10]:
            tenth.writestr(name, whole.read(name))
    data = image_folder(str(tmp_path / "tenth.zip"), 0)
    assert (data.features.shape, data.test_features.shape) == ((5_000, 3, 32, 32), (1_000, 3, 32, 32))
    assert np.bincount(data.labels).tolist() == [500] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    # CIFAR-10's own are 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7; JPEG keeps the mean and smooths a little. The mean
    # of an image has a std of some 40, that of 5,000 images one of 0.6.
    np.testing.assert_allclose(data.mean.ravel(), [125.3, 123.0, 113.9], atol=2.4)
    np.testing.assert_allclose(data.std.ravel(), [63.0, 62.1, 66.7], atol=2.4)
