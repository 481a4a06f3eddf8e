"""Invalid LEAF and GloVe files, on the command line; tests/data/sources has every mistake."""

import json
import os

import pytest

RUN = ("clients_per_round=1", "engine=local", "num_rounds=1", "protocol=paper")
LEAF = ("dataset=leaf", "dataset.path=place", *RUN)
WHOLE = {
    "users": ["a", "b"],
    "num_samples": [1, 1],
    "user_data": {"a": {"x": [[0.5, 1.5]], "y": [0]}, "b": {"x": [[1.0, 2.0]], "y": [1]}},
}


def example(x: object = (0.5, 1.5), y: object = 0) -> dict:
    """Return the data set with another example of user a."""
    return WHOLE | {"user_data": WHOLE["user_data"] | {"a": {"x": [x], "y": [y]}}}


@pytest.fixture
def place(tmp_path):
    """Return a function that makes a data set whose train/data.json has other content."""

    def make(content: object) -> None:
        for side in ("train", "test"):
            (tmp_path / "place" / side).mkdir(parents=True)
            (tmp_path / "place" / side / "data.json").write_text(json.dumps(WHOLE))
        changed = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "place" / "train" / "data.json").write_bytes(changed)

    return make


def test_a_truncated_file_and_one_of_another_data_set_are_refused(refused, place, tmp_path):
    place(json.dumps(WHOLE).encode()[:-9])
    refused(*LEAF, says=("place/train/data.json must be JSON", "truncated or altered"))
    (tmp_path / "place" / "train" / "data.json").write_text(json.dumps(WHOLE))
    refused("dataset=shakespeare", "dataset.path=place", *RUN, says=["place/train/data.json: user 'a'"])


def test_invalid_word_vectors_are_refused(refused, place, tmp_path):
    place(WHOLE)
    (tmp_path / "words.txt").write_text("a 1 2\nb 1\n")
    words = f"dataset.glove={tmp_path}/words.txt"  # a process reads a file of one name once
    sent140 = ("dataset=sent140", "dataset.path=place", words, "model=lstm_sent140", *RUN)
    refused(*sent140, says=["words.txt, line 2: each line must hold a word and 2 finite numbers"])


def test_a_pipe_in_place_of_a_file_is_refused(refused, place, tmp_path):
    place(WHOLE)
    file = tmp_path / "place" / "train" / "data.json"
    file.unlink()
    os.mkfifo(file)  # reading it would never end
    refused(*LEAF, says=["place/train/data.json cannot be read (it is not a regular file but a pipe"])


def test_names_cannot_write_on_the_terminal(refused, place, tmp_path):
    place(example(y="\x1b[31m"))
    (tmp_path / "place").rename(tmp_path / "red \x1b[31m\u202e")
    line = refused("dataset=leaf", "dataset.path='red \x1b[31m\u202e'", *RUN)
    assert "red \\x1b[31m\\u202e/train/data.json" in line


SETTINGS = {
    "too few classes": (["dataset.num_classes=1"], ["dataset.num_classes - 1 = 0", "got 1"]),
    "a path too long": (["dataset.path=" + "a" * 5000], ["too long"]),
}


@pytest.mark.parametrize(("settings", "words"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_does_not_fit_the_files_is_refused(refused, place, settings, words):
    place(WHOLE)
    path = [] if "path" in settings[0] else ["dataset.path=place"]
    refused("dataset=leaf", *RUN, *path, *settings, says=words)
