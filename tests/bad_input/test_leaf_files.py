"""LEAF's JSON files and GloVe's text files that are not what they should be."""

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


def having(**change: object) -> dict:
    return WHOLE | change


def example(x: object = (0.5, 1.5), y: object = 0) -> dict:
    """Return the data set with another example of user a."""
    return having(user_data=WHOLE["user_data"] | {"a": {"x": [x], "y": [y]}})


# id: (content of train/data.json, words)
FILES = {
    "empty": (b"", ["must be JSON"]),
    "no JSON": (b"words", ["must be JSON"]),
    "cut off": (json.dumps(WHOLE).encode()[:-9], ["must be JSON", "truncated or altered"]),
    "twice": (json.dumps(WHOLE).encode() * 2, ["must be JSON"]),
    "nested without end": (b"[" * 100_000, ["must be JSON"]),
    "nested without end, in objects": (b'{"a":' * 100_000, ["must be JSON"]),
    "another encoding": (b'{"users": ["\xff"]}', ["must be JSON"]),
    "a number of too many digits": (b'{"users": [' + b"1" * 5000 + b"]}", ["must be JSON"]),
    "binary": (bytes(range(256)), ["must be JSON"]),
    "null": (None, ["must be an object", "users"]),
    "a list": ([], ["must be an object"]),
    "a number": (5, ["must be an object"]),
    "no users": ({key: value for key, value in WHOLE.items() if key != "users"}, ["users is missing"]),
    "no sizes": ({key: value for key, value in WHOLE.items() if key != "num_samples"}, ["num_samples is missing"]),
    "no data": ({key: value for key, value in WHOLE.items() if key != "user_data"}, ["user_data is missing"]),
    "users an object": (having(users={}), ["users is missing or something else"]),
    "data a list": (having(user_data=[]), ["user_data is missing or something else"]),
    "nobody on this side": (
        {"users": [], "num_samples": [], "user_data": {}},
        ["user 'a' (2 in all) is in test/ but not here"],
    ),
    "users of numbers": (having(users=[1, 2]), ["users must be texts, as in user_data, got 1"]),
    "users of lists": (having(users=[["a"], "b"]), ["users must be texts, as in user_data, got ['a']"]),
    "a user twice": (having(users=["a", "b", "b"], num_samples=[1, 1, 1]), ["'b' is in users twice"]),
    "more sizes than users": (having(num_samples=[1, 1, 1]), ["2 users but 3 num_samples"]),
    "a size of words": (having(num_samples=["1", 1]), ["user 'a': num_samples must consist of numbers, got '1'"]),
    "a size of nan": (having(num_samples=[float("nan"), 1]), ["num_samples says nan"]),
    "a size too large": (having(num_samples=[10**30, 1]), ["but num_samples says 1"]),
    "an entry that is a list": (having(user_data=WHOLE["user_data"] | {"a": []}), ["must have the lists x and y"]),
    "an x that is an object": (
        having(user_data=WHOLE["user_data"] | {"a": {"x": {}, "y": [0]}}),
        ["must have the lists x and y, but x is none"],
    ),
    "more x than y": (
        having(user_data=WHOLE["user_data"] | {"a": {"x": [[1, 2]] * 2, "y": [0]}}),
        ["has 2 x but 1 y"],
    ),
    "no example": (
        having(user_data=WHOLE["user_data"] | {"a": {"x": [], "y": []}}, num_samples=[0, 1]),
        ["has no example"],
    ),
    "nan": (example([float("nan"), 1]), ["each x must be finite"]),
    "beyond float32": (example([1e300, 1]), ["each x must be finite in float32"]),
    "beyond float64": (example([10**400, 1]), ["place/train/data.json"]),
    "text": (example(["a", "b"]), ["each x must consist of numbers", "'a'"]),
    "null in an example": (example([None, 1]), ["each x must consist of numbers", "None"]),
    "truth values": (example([True, False]), ["each x must consist of numbers"]),
    "objects": (example([{"a": 1}]), ["each x must consist of numbers"]),
    "an empty example": (example([]), ["each x must be a list of numbers, at least one"]),
    "an example that is a number": (example(1), ["each x must be a list of numbers"]),
    "ragged": (example([1, [2]]), ["each x must have the same shape"]),
    "another shape than the next user's": (example([1.5]), ["each x must have one shape"]),
    "deeper than arrays can be": (example(json.loads("[" * 80 + "1" + "]" * 80)), ["each x"]),
    "a label of text": (example(y="0"), ["each y must be a whole number"]),
    "a label of nan": (example(y=float("nan")), ["each y must be a whole number"]),
    "a label below 0": (example(y=-1), ["each y must be a whole number", "-1"]),
    "a label of half": (example(y=0.5), ["each y must be a whole number", "0.5"]),
    "a label too large": (example(y=10**9), ["each y must be a whole number", "1000000000"]),
    "a label beyond all": (example(y=10**30), ["each y must be a whole number"]),
    "a list for a label": (example(y=[0]), ["each y must be a whole number"]),
    "a truth value for a label": (example(y=True), ["each y must be a whole number"]),
}


@pytest.fixture
def place(tmp_path):
    """Return a function that makes a data set whose train/data.json has other content."""

    def make(content: object, x: object = None) -> None:
        for side in ("train", "test"):
            (tmp_path / "place" / side).mkdir(parents=True)
            (tmp_path / "place" / side / "data.json").write_text(json.dumps(WHOLE if x is None else x))
        changed = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "place" / "train" / "data.json").write_bytes(changed)

    return make


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES)
def test_a_file_of_another_form_is_told(refused, place, content, words):
    place(content)
    refused(*LEAF, says=("place/t", *words))


@pytest.mark.parametrize("data", ["shakespeare", "sent140"])
@pytest.mark.parametrize("content", [WHOLE, b"", {"users": [1]}, example(x=["a" * 79]), example(x="a" * 80, y=7)])
def test_text_of_another_form_is_told(refused, place, tmp_path, data, content):
    place(content)
    (tmp_path / "words.txt").write_text("a 1 2\n")
    glove = ["dataset.glove=words.txt", "model=lstm_sent140"] * (data == "sent140")
    refused(f"dataset={data}", "dataset.path=place", *glove, *RUN, says=["place/train/data.json"])


WORDS = {
    "empty": (b"", ["is empty"]),
    "blank lines": (b"\n\n", ["line 1", "each line must hold a word"]),
    "another encoding": (b"\xff 1 2\n", ["cannot be read", "UTF-8"]),
    "a word alone": (b"a\n", ["line 1", "each line must hold a word and at least 2 finite numbers"]),
    "beyond float32": (b"a 1e400 2\n", ["line 1", "finite"]),
    "nan": (b"a nan 2\n", ["line 1", "finite"]),
    "a line too short": (b"a 1 2\nb 1\n", ["line 2", "2 finite numbers"]),
    "a line too long": (b"a 1 2\nb 1 2 3\n", ["line 2", "2 finite numbers"]),
    "cut off": (b"a 1 2\nb 1 -", ["line 2", "2 finite numbers"]),
}


@pytest.mark.parametrize(("content", "words"), WORDS.values(), ids=WORDS)
def test_word_vectors_of_another_form_are_told(refused, place, tmp_path, content, words):
    tweets = having(user_data={user: {"x": [[0, 0, 0, 0, "a"]], "y": [0]} for user in "ab"})
    place(tweets, tweets)
    (tmp_path / "words.txt").write_bytes(content)
    sent140 = (
        "dataset=sent140",
        "dataset.path=place",
        f"dataset.glove={tmp_path}/words.txt",
        "model=lstm_sent140",
        *RUN,
    )
    refused(*sent140, says=["words.txt", *words])


def test_a_folder_or_a_link_in_a_circle_in_the_place_of_a_file_is_told(refused, place, tmp_path):
    place(WHOLE)
    file = tmp_path / "place" / "train" / "data.json"
    file.unlink()
    file.mkdir()
    refused(*LEAF, says=["place/train/data.json cannot be read"])
    file.rmdir()
    file.symlink_to("data.json")
    refused(*LEAF, says=["place/train/data.json cannot be read"])
    file.unlink()
    os.mkfifo(file)  # which would be waited for without end
    refused(*LEAF, says=["place/train/data.json cannot be read (it is not a regular file but a pipe"])


def test_files_that_are_hidden_or_written_in_capitals_are_understood(fedprox, place, tmp_path):
    place(WHOLE)
    train = tmp_path / "place" / "train"
    (train / "data.json").rename(train / "data.JSON")
    (train / "._data.json").write_bytes(b"\0\5\26\7 Mac OS X")  # a Mac's note on a file
    assert fedprox(*LEAF).status == 0


def test_names_cannot_write_on_the_terminal(refused, place, tmp_path):
    place(example(y="\x1b[31m"))
    (tmp_path / "place").rename(tmp_path / "red \x1b[31m\u202e")
    line = refused("dataset=leaf", "dataset.path='red \x1b[31m\u202e'", *RUN)
    assert "red \\x1b[31m\\u202e/train/data.json" in line


SETTINGS = {
    "no classes": (["dataset.num_classes=0"], ["dataset.num_classes must be a whole number >= 1", "got 0"]),
    "too few classes": (["dataset.num_classes=1"], ["dataset.num_classes - 1 = 0", "got 1"]),
    "classes of letters": (["dataset.num_classes=all"], ["dataset.num_classes must be", "all"]),
    "a path too long": (["dataset.path=" + "a" * 5000], ["too long"]),
}


@pytest.mark.parametrize(("settings", "words"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_the_files_do_not_fit_is_told(refused, place, settings, words):
    place(WHOLE)
    path = [] if "path" in settings[0] else ["dataset.path=place"]
    refused("dataset=leaf", *RUN, *path, *settings, says=words)
