"""CIFAR-10's batches, read opcode by opcode."""

import pickle
import struct

import numpy as np
import pytest

from fedprox.data.cifar_batches import read_batch
from fedprox.errors import UserError

NUM = 3
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM, 3072), dtype=np.uint8)
LABELS = [9, 0, 9]


def by_python_2() -> bytes:
    """Return a batch as Python 2 wrote the original ones: protocol 2, strings of bytes, an array's state in a tuple."""
    string = lambda text: b"U" + bytes([len(text)]) + text  # noqa: E731
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in LABELS) + b"e"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    shape = b"K" + bytes([NUM]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    kind = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xff"
    kind += b"J\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", PIXELS.size) + PIXELS.tobytes() + b"tb"
    names = b"](" + b"".join(string(b"labels_%d.png" % each) for each in range(NUM)) + b"e"
    batch = string(b"batch_label") + string(b"training batch 1 of 5") + string(b"labels") + numbers
    return b"\x80\x02}(" + batch + string(b"data") + empty + state + string(b"filenames") + names + b"u."


def test_what_stands_in_for_python_2_is_the_pickle_of_such_a_batch():
    batch = pickle.loads(by_python_2(), encoding="latin1")
    assert (batch["labels"], batch["data"].tolist()) == (LABELS, PIXELS.tolist())


@pytest.mark.parametrize("protocol", ["Python 2", 2, 3, 4, 5])
def test_pictures_and_labels_come_whoever_wrote_them(tmp_path, protocol):
    file = tmp_path / "batch"
    batch = {"batch_label": "training batch 1 of 5", "labels": LABELS, "data": PIXELS, "filenames": ["a"] * NUM}
    file.write_bytes(by_python_2() if protocol == "Python 2" else pickle.dumps(batch, protocol))
    pictures, labels = read_batch(file)
    assert labels.tolist() == LABELS
    assert (pictures.transpose(0, 3, 1, 2).reshape(NUM, -1) == PIXELS).all()


@pytest.mark.parametrize(
    "batch",
    [
        {"labels": LABELS, "data": PIXELS[:2]},
        {"labels": LABELS[:2], "data": PIXELS},
        {"labels": [1, 2, 10], "data": PIXELS},
        {"data": PIXELS},
        {},
    ],
    ids=["too few pixels", "too few labels", "a class too many", "no labels", "nothing"],
)
def test_a_batch_of_anything_else_is_refused(tmp_path, batch):
    (tmp_path / "batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match=r"must hold pictures of 32 x 32 pixels and as many labels 0 \.\. 9"):
        read_batch(tmp_path / "batch")


def test_a_batch_that_is_cut_off_anywhere_is_refused(tmp_path):
    whole = by_python_2()
    for end in [0, 1, 5, 100, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "batch").write_bytes(whole[:end])
        with pytest.raises(UserError, match="delete it"):
            read_batch(tmp_path / "batch")
