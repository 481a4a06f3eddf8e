"""Folders and .zip files of pictures that cannot be used."""

import os
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RUN = ("dataset=image_folder", "partition=iid", "num_clients=2", "clients_per_round=1", "engine=local", "num_rounds=1")


def png(width: int = 8, height: int = 8, mode: str = "L") -> bytes:
    """Return a picture of one colour."""
    target = BytesIO()
    Image.new(mode, (width, height)).save(target, "png")
    return target.getvalue()


def png_that_says(width: int, height: int) -> bytes:
    """Return a picture of a few bytes whose header says that it is of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def tree(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


TWO = {f"{label}/{number}.png": png() for label in "ab" for number in range(4)}
# id: (files besides two classes of four grey pictures, more settings, words)
FILES = {
    "no picture": ({"a/x.png": b"no picture"}, [], ["a/x.png cannot be read as an image", "skip_broken"]),
    "empty": ({"a/x.png": b""}, [], ["a/x.png cannot be read as an image", "mend or remove it"]),
    "cut off": ({"a/x.png": png()[:-30]}, [], ["a/x.png cannot be read as an image"]),
    "another format": ({"a/x.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"}, [], ["a/x.png cannot be read as an image"]),
    "another size": ({"a/x.png": png(9, 8)}, [], ["all images must have one size", "9 x 8", "dataset.size="]),
    "other channels": ({"a/x.png": png(mode="RGB")}, [], ["same number of channels", "dataset.channels=3"]),
    "four channels": ({"a/x.png": png(mode="RGBA")}, [], ["same number of channels", "dataset.channels=3"]),
    "range unknown": ({"a/x.tif": b"II*\0"}, [], ["a/x.tif cannot be read as an image"]),
    "a bomb": ({"a/0.png": png_that_says(60_000, 60_000)}, ["dataset.size=8"], ["a/0.png cannot be read", "Bomb"]),
    "a smaller bomb": ({"a/0.png": png_that_says(10_000, 10_000)}, ["dataset.size=8"], ["a/0.png cannot", "Bomb"]),
    "no size at all": ({"a/0.png": png_that_says(0, 0)}, [], ["a/0.png cannot be read as an image"]),
    "class of one side": (
        {"train/a/0.png": png(), "train/b/0.png": png(), "test/a/0.png": png()},
        [],
        ["same classes in train/ and test/", "b"],
    ),
    "size 0": ({}, ["dataset.size=0"], ["dataset.size must be", "got 0"]),
    "size of gigabytes": ({}, ["dataset.size=1000000"], ["dataset.size must be", "got 1000000"]),
    "two channels": ({}, ["dataset.channels=2"], ["dataset.channels must be 1 or 3", "got 2"]),
    "all for testing": ({}, ["dataset.test_fraction=1"], ["dataset.test_fraction must be", "got 1"]),
    "all for testing, nan": ({}, ["dataset.test_fraction=nan"], ["dataset.test_fraction must be finite", "nan"]),
    "flag of letters": ({}, ["dataset.skip_broken=maybe"], ["dataset.skip_broken must be of type bool"]),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("files", "settings", "words"), FILES.values(), ids=FILES)
def test_pictures_that_cannot_be_used_are_told(refused, tmp_path, files, settings, words, kind):
    tree(tmp_path / "pictures", TWO | files)
    path = "pictures"
    if kind == "zip":
        path = "pictures.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (TWO | files).items():
                archive.writestr(name, content)
    refused(*RUN, f"dataset.path={path}", *settings, says=words)


def whole_zip() -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in TWO.items():
            archive.writestr(name, content)
    return target.getvalue()


# Where the list at a .zip file's end names a file's method of compression; 0x63 is none that Python knows.
UNKNOWN = b"PK\1\2\x14\3\x14\0\0\0\x63\0"
ARCHIVES = {
    "cut off": (lambda content: content[: len(content) // 2], ["is neither a folder nor a whole .zip file"]),
    "empty": (lambda content: b"", ["is neither a folder nor a whole .zip file"]),
    "no archive": (lambda content: b"words " * 100, ["is neither a folder nor a whole .zip file"]),
    "a picture altered": (lambda content: content.replace(b"IHDR", b"IHDX"), ["cannot be read as an image"]),
    "compression unknown": (
        lambda content: content[:8] + b"\x63\0" + content[10:].replace(b"PK\1\2\x14\3\x14\0\0\0\0\0", UNKNOWN),
        ["cannot be read as an image"],
    ),
}


@pytest.mark.parametrize(("change", "words"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_is_damaged_is_told(refused, tmp_path, change, words):
    (tmp_path / "x.zip").write_bytes(change(whole_zip()))
    refused(*RUN, "dataset.path=x.zip", says=("x.zip",) if "neither" in words[0] else words)


FOLDERS = {
    "nothing": ({}, ["must hold images in one folder for each class", "got 0 images"]),
    "words only": ({"a/x.txt": b"a", "b/x.txt": b"b"}, ["got 0 images"]),
    "no folders": ({"0.png": png(), "1.png": png()}, ["got 2 images, none in such a folder"]),
    "one class": ({"a/0.png": png(), "a/1.png": png()}, ["two classes or more, got a"]),
    "a folder named like a picture": ({"a/0.png/x.txt": b"", "b/0.png/x.txt": b""}, ["got 0 images"]),
}


@pytest.mark.parametrize(("files", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_without_classes_is_told(refused, tmp_path, files, words):
    (tmp_path / "pictures").mkdir()
    tree(tmp_path / "pictures", files)
    refused(*RUN, "dataset.path=pictures", says=words)


def test_links_in_a_circle_and_links_to_nothing_are_told(refused, tmp_path):
    tree(tmp_path / "pictures", TWO)
    (tmp_path / "pictures" / "a" / "circle.png").symlink_to("circle.png")
    refused(*RUN, "dataset.path=pictures", says=["dataset.path=pictures", "a/circle.png", "symbolic links"])
    (tmp_path / "pictures" / "a" / "circle.png").unlink()
    (tmp_path / "pictures" / "b" / "nothing.png").symlink_to("nowhere")
    refused(*RUN, "dataset.path=pictures", says=["b/nothing.png cannot be read as an image"])
    (tmp_path / "pictures" / "b" / "nothing.png").unlink()
    (tmp_path / "pictures" / "b" / "above").symlink_to(tmp_path / "pictures")
    refused(*RUN, "dataset.path=pictures", says=["dataset.path=pictures", "above", "circle"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_pictures_that_may_not_be_read_are_told(refused, tmp_path):
    tree(tmp_path / "pictures", TWO)
    (tmp_path / "pictures" / "a" / "0.png").chmod(0)
    refused(*RUN, "dataset.path=pictures", says=["a/0.png", "Permission"])
    (tmp_path / "pictures" / "a").chmod(0)
    try:
        refused(*RUN, "dataset.path=pictures", says=["pictures", "Permission"])
    finally:
        (tmp_path / "pictures" / "a").chmod(0o755)


def test_names_that_lead_out_of_an_archive_write_nothing(fedprox, tmp_path):
    (tmp_path / "inner").mkdir()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "inner" / "x.zip", "w") as archive:
        for number in range(8):
            target = BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(target, "png")
            archive.writestr(f"../{'ab'[number % 2]}/{number}.png", target.getvalue())
            archive.writestr(f"{tmp_path}/absolute/{'ab'[number % 2]}/{number}.png", target.getvalue())
    fedprox(*RUN, "dataset.path=inner/x.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"inner", "run"}
    assert {path.name for path in (tmp_path / "inner").iterdir()} - {".fedprox-cache"} == {"x.zip"}
