"""Image files in folders and .zip files, and the classes and sides that their folders name."""

import os
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.data.sources.image_files import (
    MAX_FILE_BYTES,
    SIDES,
    UNPACKED_BYTES,
    ClassTree,
    ImageFile,
    Source,
    class_tree,
    name_of,
    opened,
    reasons,
)
from fedprox.errors import UserError
from tests.data.refusals import line_of


def tree(*names: str) -> ClassTree:
    folders = {name[:end] for name in names for end, letter in enumerate(name) if letter == "/"}
    images = [ImageFile(name, 1, 1) for name in names if not name.endswith("/")]
    return class_tree(Source(str.encode, images, folders), "here")


def error_line(*names: str) -> str:
    return line_of(tree, *names)


def test_classes_and_images_are_in_the_order_of_their_names():
    made = tree("dog/b.png", "cat/z.jpg", "dog/a.png", "cat/10.jpg", "cat/9.jpg")
    assert made.classes == ("cat", "dog")
    assert made.train == ("cat/10.jpg", "cat/9.jpg", "cat/z.jpg", "dog/a.png", "dog/b.png")
    assert made.train_labels == (0, 0, 0, 1, 1)
    assert (made.test, made.test_labels) == ((), ())


@pytest.mark.parametrize("side", ["test", "val"])
def test_train_beside_test_or_val_are_the_sides(side):
    made = tree(f"{side}/b/1.png", "train/a/1.png", "train/b/2.png", f"{side}/a/3.png", f"{side}/a/2.png")
    assert made.classes == ("a", "b")
    assert made.train == ("train/a/1.png", "train/b/2.png")
    assert made.test == (f"{side}/a/2.png", f"{side}/a/3.png", f"{side}/b/1.png")
    assert (made.train_labels, made.test_labels) == ((0, 1), (0, 0, 1))


def test_val_is_not_read_beside_test():
    made = tree("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png", "val/a/3.png", "other/x/1.png")
    assert made.test == ("test/a/2.png", "test/b/2.png")
    assert made.classes == ("a", "b")


def test_a_train_folder_alone_is_one_tree():
    made = tree("train/a/1.png", "train/b/1.png")
    assert (made.classes, made.test) == (("a", "b"), ())


@pytest.mark.parametrize("above", ["set", "set/v2"])
def test_folders_that_hold_a_single_folder_do_not_count(above):
    for names in (("a/1.png", "b/1.png"), ("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")):
        plain, deeper = tree(*names), tree(*(f"{above}/{name}" for name in names))
        assert deeper.classes == plain.classes
        assert deeper.train == tuple(f"{above}/{name}" for name in plain.train)
        assert deeper.test_labels == plain.test_labels


def test_a_class_has_all_images_below_its_folder():
    made = tree("a/x/1.png", "a/2.png", "b/y/z/1.png")
    assert made.train == ("a/2.png", "a/x/1.png", "b/y/z/1.png")


@given(st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), min_size=1), st.randoms())
def test_the_order_in_which_files_are_found_does_not_matter(found, random):
    names = [f"{label}/{number}.png" for label, number in found] + ["a/x.png", "b/x.png"]
    shuffled = random.sample(names, len(names))
    made = tree(*shuffled)
    assert made == tree(*sorted(names))
    assert [made.classes[label] for label in made.train_labels] == [name[0] for name in made.train]


def test_a_single_class_is_refused():
    assert "here must hold two classes or more, got cat; make a folder for each" in error_line("cat/1.png", "cat/2.png")
    assert "two classes or more, got cat" in error_line("train/cat/1.png", "test/cat/2.png")


def test_images_without_folders_are_refused():
    assert "one folder for each class" in error_line()
    assert "got 2 images, none in such a folder" in error_line("1.png", "2.png")


@pytest.mark.parametrize(("lacking", "having"), [("test", "train"), ("train", "test")])
def test_classes_of_one_side_only_are_named(lacking, having):
    names = ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", f"{having}/zebra/1.png"]
    line = error_line(*names)
    assert f"{lacking}/ has no images of zebra, which {having}/ has" in line


@pytest.mark.parametrize("change", [str.lower, str.title, str.upper])
def test_sides_have_other_names_and_any_capitals(change):
    for train in (change(name) for name, side in SIDES.items() if side == "train"):
        for test in (change(name) for name, side in SIDES.items() if side != "train"):
            made = tree(*(f"{side}/{label}/1.png" for side in (train, test) for label in "ab"))
            assert made.classes == ("a", "b")
            assert made.train == (f"{train}/a/1.png", f"{train}/b/1.png")
            assert made.test == (f"{test}/a/1.png", f"{test}/b/1.png")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[("train_set", "test_set"), ("TrainData", "TestData"), ("seg_train", "seg_test"), ("train2017", "val2017")],
        *[("01-training", "02-testing"), ("Train Images", "Validation Images"), ("pets.trn", "pets.tst")],
    ],
)
def test_longer_names_of_the_sides_are_not_classes_unless_images_are_in_them_or_other_folders_beside_them(train, test):
    sides = [f"{side}/{label}/1.png" for side in (train, test) for label in "ab"]
    assert tree(*sides).train == (f"{train}/a/1.png", f"{train}/b/1.png")
    assert tree(*sides).test == (f"{test}/a/1.png", f"{test}/b/1.png")
    for more in (f"{test}/1.png", "zebra/a/1.png"):
        assert {train, test} <= set(tree(*sides, more).classes)
    line = error_line(*(name.replace(train, "Training") for name in sides), f"{train}/a/1.png")
    assert f"must have one folder for each side, got {'/ and '.join(sorted(['Training', train]))}/" in line


@pytest.mark.parametrize("names", [("trainer", "tester"), ("strain", "contest"), ("detrain", "latest")])
def test_names_that_only_contain_those_of_sides_are_classes(names):
    assert tree(*(f"{name}/{label}/1.png" for name in names for label in "ab")).classes == tuple(sorted(names))


def test_an_empty_path_is_not_the_working_directory():
    for path in ("", " "):
        with pytest.raises(UserError, match="must name a folder of images"), opened(path):
            pass


def test_two_folders_of_one_side_are_refused():
    both = [f"{side}/{label}/1.png" for side in ("train", "Train", "test") for label in "ab"]
    assert "must have one folder for each side, got Train/ and train/" in error_line(*both)


@pytest.mark.parametrize("sides", [("test", "val"), ("Training", "train")])
def test_sides_are_not_classes(sides):
    line = error_line(*(f"{side}/{label}/1.png" for side in sides for label in "ab"))
    assert f"{sides[0]}/ and {sides[1]}/, which are sides and not classes" in line


def test_a_class_may_be_called_train():
    assert tree("car/1.png", "train/1.png", "plane/1.png").classes == ("car", "plane", "train")


@pytest.mark.parametrize(
    ("names", "empty"),
    [
        (["a/1.png", "b/1.png", "c/"], ("c",)),
        (["a/1.png", "b/1.png", "c/deep/"], ("c",)),
        (["a/1.png", "b/1.png", "a/deep/"], ()),  # below a class, which is not empty
        (
            ["train/a/1.png", "train/b/1.png", "train/c/", "test/a/1.png", "test/b/1.png", "test/d/"],
            ("test/d", "train/c"),
        ),
        (["set/a/1.png", "set/b/1.png", "set/c/"], ("set/c",)),
    ],
)
def test_folders_in_the_place_of_classes_without_images_are_named(names, empty):
    assert tree(*names).empty == empty


def test_images_in_no_class_are_counted_and_not_read():
    made = tree("logo.png", "a/1.png", "b/1.png")
    assert (made.num_outside, made.train) == (1, ("a/1.png", "b/1.png"))
    sides = [f"{side}/{label}/1.png" for side in ("train", "test") for label in "ab"]
    assert tree(*sides, "train/logo.png", "val/a/1.png").num_outside == 2


# Folders and archives.


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_are_found_by_their_suffixes_and_other_files_are_counted_by_reason(tmp_path, kind):
    images = ["a/1.jpg", "a/2.JPEG", "a/deep/3.png", "b/4.webp", "b/5.gif", "b/6.bmp", "b/7.tif", "b/8.TIFF", "9.pgm"]
    others = ["a/list.txt", "a/.hidden.png", ".git/x.png", "__MACOSX/a/1.jpg", "a/._1.jpg", "b/Thumbs.db", "b/png"]
    place = write(tmp_path / "set", *images, *others)
    if kind == "zip":
        place = zipped(place, tmp_path / "set.zip")
    with opened(str(place)) as source:
        assert {file.name: file.size_bytes for file in source.files} == {name: len(name) for name in images}
        assert all(source.read(name) == name.encode() for name in images)
        counted = reasons(source.passed_over)
    assert counted.startswith("7 files passed over: 4 hidden")
    assert {"1 *.txt", "1 *.db", "1 without a suffix"} <= set(counted.split(": ")[1].split(", "))


def test_linked_folders_and_files_are_followed(tmp_path):
    write(tmp_path / "elsewhere", "1.png")
    write(tmp_path / "set", "a/1.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    with opened(str(tmp_path / "set")) as source:
        assert sorted(file.name for file in source.files) == ["a/1.png", "a/2.png", "b/1.png"]
        assert source.read("b/1.png") == b"1.png"


def opening_error(path: Path | str) -> str:
    return line_of(opened(str(path)).__enter__)


def test_a_missing_path_is_refused(tmp_path):
    line = opening_error(tmp_path / "nowhere")
    assert f"dataset.path={tmp_path}/nowhere is missing; name a folder of images or a .zip file" in line


def test_a_truncated_zip_is_refused(tmp_path):
    whole = zipped(write(tmp_path / "set", "a/1.png", "b/1.png"), tmp_path / "set.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    for end in range(0, len(whole), 31):
        cut.write_bytes(whole[:end])
        line = opening_error(cut)
        assert f"dataset.path={cut} is neither a folder nor a whole .zip file" in line
        assert "copy it again" in line


@pytest.mark.parametrize("leads_to", ["set/b", "set"])  # to itself; to the folder around it
def test_a_link_that_cannot_be_followed_is_refused(tmp_path, leads_to):
    write(tmp_path / "set", "a/1.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / leads_to)
    assert f"dataset.path={tmp_path}/set cannot be read (OSError: " in opening_error(tmp_path / "set")


def test_names_with_backslashes_in_a_zip_are_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("pics\\a\\1.png", "pics\\b\\1.png"):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, name)
    with opened(str(tmp_path / "set.zip")) as source:
        assert class_tree(source, "here").classes == ("a", "b")
        assert source.read("pics/a/1.png") == b"pics\\a\\1.png"


def test_the_later_of_two_files_with_one_name_in_a_zip_counts(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # zipfile's own, of the name
        for content in ("early", "late"):
            archive.writestr("a/1.png", content)
    with opened(str(tmp_path / "set.zip")) as source:
        assert [(file.name, file.size_bytes) for file in source.files] == [("a/1.png", 4)]
        assert source.read("a/1.png") == b"late"
        assert "1 replaced by a later one of the same name" in reasons(source.passed_over)


def test_a_member_that_unpacks_to_more_than_an_image_has_is_not_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.png", bytes(UNPACKED_BYTES + 1))  # a thousandth of that, packed
        archive.writestr("a/small.png", bytes(1000))
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # opening a member would fail
    with opened(str(tmp_path / "set.zip")) as source:
        with pytest.raises(ValueError, match=f"unpack to {UNPACKED_BYTES + 1:,}, more than an image has"):
            source.read("a/bomb.png")
        monkeypatch.undo()
        assert source.read("a/small.png") == bytes(1000)


def test_a_member_is_not_read_beyond_its_declared_size(tmp_path):
    file = tmp_path / "set.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(1_000_000))
    content = file.read_bytes().replace(struct.pack("<I", 1_000_000), struct.pack("<I", 10))
    file.write_bytes(content)
    with opened(str(file)) as source, pytest.raises(zipfile.BadZipFile):  # ten bytes have another checksum
        source.read("a/1.png")


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    write(tmp_path / "set", "a/1.png")
    os.truncate(tmp_path / "set" / "a" / "1.png", MAX_FILE_BYTES + 1)  # a hole that takes no disk space
    with opened(str(tmp_path / "set")) as source, pytest.raises(OSError, match="more than 600,000,000 bytes"):
        source.read("a/1.png")


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    write(tmp_path / "set", "a/1.png")
    os.mkfifo(tmp_path / "set" / "a" / "2.png")
    refused = "it is not a regular file but a pipe, a device or a socket"
    with opened(str(tmp_path / "set")) as source, pytest.raises(OSError, match=refused):
        source.read("a/2.png")
    (tmp_path / "set.zip").symlink_to("/dev/zero")
    assert f"set.zip cannot be read (OSError: [Errno 22] {refused}" in opening_error(tmp_path / "set.zip")


@pytest.mark.parametrize(
    ("path", "name"), [("/a/cifar10-jpeg.zip", "cifar10-jpeg"), ("/a/pets/", "pets"), ("../v1.0", "v1.0")]
)
def test_the_name_is_that_of_the_folder_or_the_zip(path, name):
    assert name_of(path) == name
