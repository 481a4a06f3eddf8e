"""Valid files with pieces changed, removed, inserted or doubled: they are read, or one line says what is wrong.

`FEDPROX_FUZZ_S=300 pytest tests/fuzz -s` searches for 300 s in each test with random seeds; without it a few examples
are tried, the same ones in every run of the suite.
"""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from fedprox.data.cache import cached
from fedprox.data.sources.femnist import _parsed
from fedprox.data.sources.glove import read_glove
from fedprox.data.sources.image_folder import image_folder
from fedprox.data.sources.leaf import leaf
from fedprox.data.sources.own_files import csv, npz, parquet
from fedprox.data.sources.text import shakespeare
from fedprox.errors import UserError
from fedprox.experiment.model import load_weights
from fedprox.models.logistic import logistic
from fedprox.report.summary import read_runs, readable, summarise

PIECES = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"\0", b"\xff" * 8, b"nan", b"-1", b"[", b"1e999", b"\n", b","])
)


@st.composite
def mutations(draw) -> list[tuple]:
    """Return changes of a file: their kind, place (0 .. 1), length and bytes."""
    kinds = st.sampled_from(["flip", "flip", "cut", "insert", "delete", "double", "overwrite"])
    place = st.floats(0, 1)
    return draw(st.lists(st.tuples(kinds, place, st.integers(0, 64), PIECES), min_size=1, max_size=4))


def mutated(content: bytes, mutations: list[tuple]) -> bytes:
    for kind, place, length, piece in mutations:
        at = int(place * len(content))
        end = at + length
        if kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << length % 8]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[end:]
        elif kind == "double":
            content = content[:end] + content[at:end] + content[end:]
        elif kind == "overwrite":
            content = content[:at] + piece + content[at + len(piece) :]
    return content


LEAF = {
    "users": ["a", "b"],
    "num_samples": [2, 1],
    "user_data": {"a": {"x": [[0.5, 1.5], [2, 3]], "y": [0, 1]}, "b": {"x": [[1.0, 2.0]], "y": [1]}},
}
PLAYS = LEAF | {"num_samples": [1, 1], "user_data": {user: {"x": ["to be " * 13 + "or"], "y": ["n"]} for user in "ab"}}
RUN = {
    "status": "finished",
    "algorithm": "FedAvg",
    "settings": {"mu": 0.0, "stragglers_fraction": 0.5, "evaluation": {"per_class": False}},
    "seed": 0,
    "repetition": 1,
    "name": "digits",
}
METRICS = (
    "round,test_loss,test_accuracy,train_loss_cohort,num_clients_counted,time_s\n0,2.3,0.1,,0,0.1\n1,2.2,0.2,2,1,0.2\n"
)
WEIGHTS = {"1.weight": torch.zeros(2, 4), "1.bias": torch.zeros(2)}


def image(number: int, kind: str) -> bytes:
    target = BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def archive() -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(6):
            made.writestr(f"{'ab'[number % 2]}/{number}.png", image(number, "png"))
    return target.getvalue()


def arrays() -> bytes:
    target = BytesIO()
    np.savez(target, x=np.arange(8.0).reshape(4, 2), y=np.array(["a", "b"] * 2), client=np.array([1, 1, 2, 2]))
    return target.getvalue()


def parquet_table() -> bytes:
    table = pd.DataFrame(
        {"age": [30, 41, 52, 63], "dose": [0.5, 1.5, 2.5, 3.5], "who": list("nnss"), "label": list("abab")}
    )
    return table.to_parquet() if find_spec("pyarrow") else b""


def read_leaf_folder(read: Callable[[str], object], whole: object) -> Callable[[Path], object]:
    def reading(file: Path) -> object:
        for side in ("train", "test"):
            (file.parent / side).mkdir(exist_ok=True)
            (file.parent / side / "data.json").write_text(json.dumps(whole))
        shutil.copy(file, file.parent / "train" / "data.json")
        return read(str(file.parent))

    return reading


def read_images(file: Path) -> object:
    for number in range(6):
        place = file.parent / "images" / "ab"[number % 2] / f"{number}{file.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image(number, "png"))
    shutil.copy(file, place)
    return image_folder(str(file.parent / "images"), 0, size=8, channels=3)


def read_idx(file: Path) -> object:
    from torchvision.datasets.mnist import read_image_file

    return _parsed(read_image_file, file)


def read_record(name: str) -> Callable[[Path], object]:
    def reading(file: Path) -> object:
        run = file.parent / "run"
        run.mkdir(exist_ok=True)
        (run / "run.json").write_text(json.dumps(RUN))
        (run / "metrics.csv").write_text(METRICS)
        shutil.copy(file, run / name)
        return readable(summarise(read_runs([run], ["mu"]), 10, 0.5), 10).to_markdown()

    return reading


TABLE = b"age,dose,who,label\n30,0.5,n,a\n41,1.5,n,b\n52,2.5,s,a\n63,3.5,s,b\n"
IMAGES = struct.pack(">4i", 2051, 3, 4, 4) + bytes(range(48))
FORMATS = {
    "idx": ("x-ubyte", IMAGES, read_idx),
    "LEAF": ("data.json", json.dumps(LEAF).encode(), read_leaf_folder(leaf, LEAF)),
    "Shakespeare": ("data.json", json.dumps(PLAYS).encode(), read_leaf_folder(shakespeare, PLAYS)),
    "GloVe": ("words.txt", b"the 1.5 -2\nof 3 4\n.. 5 6e-3\n", lambda file: read_glove.__wrapped__(str(file))),
    "csv": ("x.csv", TABLE, lambda file: csv(str(file), 0, client="who")),
    "npz": ("x.npz", arrays(), lambda file: npz(str(file), 0)),
    "parquet": ("x.parquet", parquet_table(), lambda file: parquet(str(file), 0, client="who")),
    "png": ("x.png", image(5, "png"), read_images),
    "jpeg": ("x.jpg", image(5, "jpeg"), read_images),
    "webp": ("x.webp", image(5, "webp"), read_images),
    "archive": ("x.zip", archive(), lambda file: image_folder(str(file), 0)),
    "weights": ("x.safetensors", save(WEIGHTS), lambda file: load_weights(logistic((4,), 2), str(file))),
    "run.json": ("run.json", json.dumps(RUN).encode(), read_record("run.json")),
    "metrics.csv": ("metrics.csv", METRICS.encode(), read_record("metrics.csv")),
}


@pytest.mark.parametrize(("name", "content", "read"), FORMATS.values(), ids=FORMATS)
def test_a_mutated_file_is_read_or_one_line_says_what_is_wrong(fuzzed, tmp_path, name, content, read):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    folder = tmp_path / "place"

    def check(mutations: list[tuple]) -> None:
        folder.mkdir()
        (folder / name).write_bytes(mutated(content, mutations))
        with suppress(UserError):
            read(folder / name)
        shutil.rmtree(folder)

    folder.mkdir()
    (folder / name).write_bytes(content)
    read(folder / name)  # valid before mutation
    shutil.rmtree(folder)
    fuzzed(check, mutations(), examples=30)


def test_a_mutated_cache_gives_the_arrays_or_is_rebuilt(fuzzed, tmp_path):
    arrays = {"x": np.arange(12).reshape(3, 4), "y": np.zeros(0)}
    cached([tmp_path], "x.npz", "key", lambda: arrays)
    whole = (tmp_path / "x.npz").read_bytes()

    def check(mutations: list[tuple]) -> None:
        (tmp_path / "x.npz").write_bytes(mutated(whole, mutations))
        got = cached([tmp_path], "x.npz", "key", lambda: arrays)
        assert {name: array.tolist() for name, array in got.items()} == {
            name: array.tolist() for name, array in arrays.items()
        }

    fuzzed(check, mutations(), examples=100)
