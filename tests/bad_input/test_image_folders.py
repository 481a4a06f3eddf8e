"""Folders and .zip files of images that cannot be used, on the command line; tests/data/sources has every mistake."""

import os
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RUN = ("dataset=image_folder", "partition=iid", "num_clients=2", "clients_per_round=1", "engine=local", "num_rounds=1")


def png(width: int = 8, height: int = 8, mode: str = "L") -> bytes:
    """Return an image of one colour."""
    target = BytesIO()
    Image.new(mode, (width, height)).save(target, "png")
    return target.getvalue()


def tree(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


TWO = {f"{label}/{number}.png": png() for label in "ab" for number in range(4)}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_unreadable_images_are_refused(refused, tmp_path, kind):
    tree(tmp_path / "images", TWO | {"a/x.png": b"no image"})
    path = "images" if kind == "folder" else shutil.make_archive("images", "zip", "images")
    refused(*RUN, f"dataset.path={path}", says=["a/x.png cannot be read as an image", "skip_broken"])
    refused(*RUN, f"dataset.path={path}", "dataset.size=0", says=["dataset.size must be", "got 0"])


def test_links_in_a_circle_are_refused(refused, tmp_path):
    tree(tmp_path / "images", TWO)
    (tmp_path / "images" / "a" / "circle.png").symlink_to("circle.png")
    refused(*RUN, "dataset.path=images", says=["dataset.path=images", "a/circle.png", "symbolic links"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_images_without_read_permission_are_refused(refused, tmp_path):
    tree(tmp_path / "images", TWO)
    (tmp_path / "images" / "a").chmod(0)
    try:
        refused(*RUN, "dataset.path=images", says=["images", "Permission"])
    finally:
        (tmp_path / "images" / "a").chmod(0o755)


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
