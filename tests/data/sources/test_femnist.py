"""FEMNIST from generated files in EMNIST's format: the real ones are a download of 560 MB."""

import csv
import gzip
import hashlib
import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedprox.data.sources.femnist import FILES, femnist, images_per_letter
from tests.data.refusals import line_of

A, J, LABELS = 36, 45, 62  # of the split byclass
TRAIN, TEST = 120, 20  # images of each character in the generated files


def upright(labels: np.ndarray, first: int = 0) -> np.ndarray:
    """Return upright images that have their label in row 0, column 5, and their number in row 1."""
    images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
    numbers = first + np.arange(len(labels))
    images[:, 0, 5] = labels
    images[:, 1, 0], images[:, 1, 1] = numbers // 256, numbers % 256
    return images


def idx_images(upright: np.ndarray) -> bytes:
    return struct.pack(">4i", 0x803, len(upright), 28, 28) + upright.transpose(0, 2, 1).tobytes()


def idx_labels(labels: np.ndarray) -> bytes:
    return struct.pack(">2i", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()


def contents(train: np.ndarray, test: np.ndarray) -> dict[str, bytes]:
    """Return what EMNIST's four files hold for these labels."""
    made = (
        idx_images(upright(train)),
        idx_labels(train),
        idx_images(upright(test, len(train))),
        idx_labels(test),
    )
    return dict(zip(FILES, made, strict=True))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write EMNIST's files and return the data_dir."""
    raw = folder / "EMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return folder


def all_labels(times: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(LABELS), times))


@pytest.fixture
def small(tmp_path) -> Path:
    """Return a data_dir with 120 + 20 images of each of the 62 characters."""
    return write(tmp_path, contents(all_labels(TRAIN), all_labels(TEST, seed=1)))


@pytest.fixture
def no_network(monkeypatch):
    """Set EMNIST's address to a port of this machine on which nothing listens."""
    from torchvision.datasets.mnist import EMNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(EMNIST, "url", "http://127.0.0.1:9/gzip.zip")


def error_line(data_dir: Path, **settings) -> str:
    return line_of(femnist, str(data_dir), 0, **settings)


def letters_of(data, client: int) -> np.ndarray:
    return data.examples.labels[np.concatenate([data.train[client], data.held_out[client]])]


def test_labels_36_to_45_of_torchvisions_byclass_are_a_to_j():
    from torchvision.datasets.mnist import EMNIST

    assert EMNIST.classes_split_dict["byclass"][A : J + 1] == list("abcdefghij")
    assert len(EMNIST.classes_split_dict["byclass"]) == LABELS


def test_only_a_to_j_are_used_upright_those_for_training_first(small):
    data = femnist(str(small), 0, num_clients=10, sigma=0.0, inverted=False).examples
    assert len(data.labels) == 10 * (TRAIN + TEST)
    assert sorted(set(data.labels.tolist())) == list(range(10))
    train, test = all_labels(TRAIN), all_labels(TEST, seed=1)
    chosen = np.concatenate([train, test])
    expected = np.concatenate([upright(train), upright(test, len(train))])
    is_letter = (chosen >= A) & (chosen <= J)
    assert (data.features == expected[is_letter]).all()  # the file has the transposed ones
    assert (data.labels == chosen[is_letter] - A).all()
    assert (data.num_classes, len(data.test_labels)) == (10, 0)


def test_paper_is_1_and_ink_0_unless_inverted_is_false(small):
    as_nist, as_emnist = (
        femnist(str(small), 0, num_clients=10, sigma=0.0, inverted=flag).examples for flag in (True, False)
    )
    ink = as_emnist.features.astype(np.float64) / 255
    assert (ink.min(), ink.max()) == (0, 1)
    # float32 has seven digits
    np.testing.assert_allclose(as_emnist.model_input(as_emnist.features), ink, atol=1e-7)
    np.testing.assert_allclose(as_nist.model_input(as_nist.features), 1 - ink, atol=1e-7)


@pytest.mark.parametrize(("classes_per_client", "each"), [(1, 59), (5, 11), (10, 5)])
def test_client_u_has_the_letters_u_to_u_plus_c_in_equal_numbers(small, classes_per_client, each):
    # sigma = 0: s = e^4 + 5 = 59.6, of which each letter has the c-th part, rounded down.
    data = femnist(str(small), 0, num_clients=13, classes_per_client=classes_per_client, sigma=0.0)
    for client in range(13):
        expected = [each * ((letter - client) % 10 < classes_per_client) for letter in range(10)]
        assert np.bincount(letters_of(data, client), minlength=10).tolist() == expected


def test_the_sizes_are_on_average_those_of_the_papers_table():
    # E[s] = e^(4 + 1/2) + 5 = 95.0; rounding down to a multiple of 5 takes 2 on average: 93.0. The table says
    # 18,345 examples of 200 clients, mean 92. Standard deviation of s: e^4.5 * sqrt(e - 1) = 118.
    rng = np.random.default_rng(0)
    totals = np.array([5 * images_per_letter(200, 5, 1.0, rng).sum() for _ in range(400)])
    standard_error = 118 / math.sqrt(400 * 200)
    assert totals.mean() / 200 == pytest.approx(math.exp(4.5) + 5 - 2, abs=4 * standard_error)
    assert abs(totals.mean() - 18_345) < totals.std()  # the paper's one draw is an ordinary one
    assert totals.std() == pytest.approx(118 * math.sqrt(200), rel=0.2)  # heavy tails: 400 draws give 10%


def test_a_client_has_at_least_two_of_each_letter():
    amounts = images_per_letter(10_000, 5, 1.0, np.random.default_rng(0))
    # int(s / 5) < 2 where LogNormal(4, 1) < 5: 0.8% of clients.
    assert amounts.min() == 2
    assert 30 < (amounts == 2).sum() < 500


def test_the_seed_decides_the_images_of_a_letter(small):
    # With equal sizes the seed decides only the images; in file order client 0 would have the first 11 of a.
    drawn = []
    for seed in (0, 1, 1):
        data = femnist(str(small), seed, num_clients=10, sigma=0.0)
        positions = np.concatenate([data.train[0], data.held_out[0]])
        drawn.append(set(positions[data.examples.labels[positions] == 0].tolist()))
    assert len(drawn[0]) == len(drawn[1]) == 11
    assert drawn[0] != drawn[1] == drawn[2]


def test_if_a_letter_runs_out_the_last_client_has_fewer_of_it(small):
    # 140 = 12 * 11 + 8 of each letter; client 22 is the 13th to ask for c, d and e, the 12th for f, the 11th for g.
    data = femnist(str(small), 0, num_clients=23, sigma=0.0)
    asked = [sum((letter - client) % 10 < 5 for client in range(23)) for letter in range(2, 7)]
    assert asked == [13, 13, 13, 12, 11]
    assert np.bincount(letters_of(data, 22), minlength=10)[2:7].tolist() == [8, 8, 8, 11, 11]


def test_a_client_without_any_image_is_an_error(small):
    # 59 wanted of 140: three clients share a letter's 140 images, and client 30 finds no a.
    settings = {"classes_per_client": 1, "sigma": 0.0}
    assert femnist(str(small), 0, num_clients=30, **settings).num_left_over == 0
    line = error_line(small, num_clients=31, **settings)
    assert "num_clients=31 is too many: the 1,400 images of a .. j run out before client 30" in line


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"num_clients": 0}, "num_clients must be between 1 and 100000, got 0"),
        ({"classes_per_client": 11}, "classes_per_client must be between 1 and 10, got 11"),
        ({"sigma": math.nan}, "sigma must be between 0 and 5, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_file_is_read(tmp_path, settings, rule):
    assert rule in error_line(tmp_path, **settings)


def test_the_zip_in_the_folder_is_unpacked_without_a_network_and_only_needed_files_stay(
    tmp_path, no_network, monkeypatch
):
    from torchvision.datasets.mnist import EMNIST

    files = contents(all_labels(TRAIN), all_labels(TEST, seed=1))
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    with zipfile.ZipFile(raw / "gzip.zip", "w") as archive:
        for name, content in {**files, "emnist-digits-train-labels-idx1-ubyte": b"of another split"}.items():
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
    monkeypatch.setattr(EMNIST, "md5", hashlib.md5((raw / "gzip.zip").read_bytes()).hexdigest())
    assert len(femnist(str(tmp_path), 0, num_clients=5).examples.labels) == 1400
    assert {path.name: path.read_bytes() for path in raw.iterdir() if path.suffix != ".zip"} == files


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_not_in_the_format_is_named(small, file):
    path = small / "EMNIST" / "raw" / file
    for content in (path.read_bytes()[:-1], b"something else"):
        path.write_bytes(content)
        assert f"{path} cannot be read" in error_line(small)


def test_images_and_labels_must_belong_together(small):
    path = small / "EMNIST" / "raw" / FILES[1]
    path.write_bytes(idx_labels(all_labels(TRAIN - 1)))
    assert "must hold one label for each image of 28 x 28 pixels, got (7440, 28, 28) and 7,378 labels" in error_line(
        small
    )


def test_a_label_that_byclass_does_not_have_is_refused(small):
    path = small / "EMNIST" / "raw" / FILES[3]
    labels = all_labels(TEST)
    labels[7] = 62
    path.write_bytes(idx_labels(labels))
    assert f"{path} must hold labels 0 .. 61 of the split byclass, got 62" in error_line(small)


def test_a_run_trains_on_it(fedprox, small, tmp_path):
    # sigma = 0 and 2 of the 10 letters: int(59.6 / 2) = 29 of each, 58 per client, int(0.9 * 58) = 52 to train on.
    settings = ("num_clients=12", "dataset.classes_per_client=2", "dataset.sigma=0", "model.init=zeros")
    ended = fedprox("experiment=paper_femnist", f"data_dir={small}", "num_rounds=2", "engine=local", *settings)
    assert ended.status == 0, ended.err
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["name"] == "femnist"
    assert facts["data"].startswith("12 clients with 624 training examples (min 52, mean 52.0")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["test_loss"]) == pytest.approx(math.log(10))  # zero weights: each of ten classes alike
    assert len({row["test_loss"] for row in rows}) == 3
