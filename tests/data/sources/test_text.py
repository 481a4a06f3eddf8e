"""Shakespeare and Sent140 from generated files in LEAF's format."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedprox.config.compose import compose
from fedprox.data.sources.text import ALL_LETTERS, sent140, shakespeare
from tests.data.refusals import line_of

SENTENCE = "To be, or not to be: that is the question: whether 'tis nobler in the mind to suffer the slings and arrows"
WORDS = ("the", ",", "i", "don't", "!", "good", "bad")
WIDTH = 300

Examples = dict[str, tuple[list, list]]  # id -> x, y


def write_leaf(folder: Path, train: Examples, test: Examples) -> Path:
    for side, users in (("train", train), ("test", test)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        content = {
            "users": list(users),
            "num_samples": [len(y) for _, y in users.values()],
            "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
        }
        (folder / side / "all_data_niid_0_keep_0.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def glove(tmp_path) -> Path:
    path = tmp_path / "glove.6B.300d.txt"
    path.write_text("".join(f"{word}{' 1.5' * WIDTH}\n" for word in WORDS))
    return path


def tweet(text: str) -> list[str]:
    """Return a tweet's fields as LEAF's Sent140 has them."""
    return ["1467810369", "Mon Apr 06 22:19:45 PDT 2009", "NO_QUERY", "someone", text, "training"]


def windows(text: str) -> tuple[list[str], list[str]]:
    """Return every 80 characters of a text and the character after them."""
    places = range(len(text) - 80)
    return [text[place : place + 80] for place in places], [text[place + 80] for place in places]


def error_line(load, *arguments, **settings) -> str:
    return line_of(load, *map(str, arguments), **settings)


# Shakespeare


def test_a_characters_token_is_its_position_among_the_authors_80(tmp_path):
    assert len(ALL_LETTERS) == len(set(ALL_LETTERS)) == 80
    folder = write_leaf(tmp_path, {"HAMLET": ([ALL_LETTERS] * 3, ["\n", "A", "}"])}, {"HAMLET": ([" " * 80], ["a"])})
    data = shakespeare(str(folder))
    assert data.examples.features.dtype == data.examples.labels.dtype == np.int64
    assert data.examples.features.tolist() == [list(range(80))] * 3 + [[1] * 80]
    # "\n" is first and "}" last; before A are \n, space, ! " & ' ( ) , - . (11), ten digits and : ; > ? (4): 25.
    # After Z (50) and [ ] comes a: 53.
    assert data.examples.labels.tolist() == [0, 25, 79, 53]
    assert data.examples.num_classes == 80


def test_clients_are_the_sorted_users_each_with_its_own_split(tmp_path):
    x, y = windows(SENTENCE[:100])  # 20 examples
    train = {"OTHELLO": (x[:3], y[:3]), "IAGO": (x[3:5], y[3:5]), "iago": (x[5:6], y[5:6])}
    test = {"iago": (x[6:7], y[6:7]), "OTHELLO": (x[7:9], y[7:9]), "IAGO": (x[9:13], y[9:13])}
    data = shakespeare(str(write_leaf(tmp_path, train, test)))
    assert data.client_ids == ("IAGO", "OTHELLO", "iago")
    assert data.train.sizes.tolist() == [2, 3, 1]
    assert data.held_out.sizes.tolist() == [4, 2, 1]
    assert data.num_left_over == 0
    for client, user in enumerate(data.client_ids):
        features, labels = data.client_examples(client)
        assert ["".join(ALL_LETTERS[token] for token in row) for row in features] == train[user][0]
        assert [ALL_LETTERS[token] for token in labels] == train[user][1]
    features, labels = data.test_examples()
    assert ["".join(ALL_LETTERS[token] for token in row) for row in features] == x[9:13] + x[7:9] + x[6:7]
    assert [ALL_LETTERS[token] for token in labels] == y[9:13] + y[7:9] + y[6:7]


@pytest.mark.parametrize(("character", "shown"), [("é", "'é' (U+00E9)"), ("\t", "'\\t' (U+0009)"), ("🎭", "U+1F3AD")])
@pytest.mark.parametrize("key", ["x", "y"])
def test_an_unknown_character_is_named_with_its_user(tmp_path, character, shown, key):
    good = ["a" * 80, "b" * 80], ["c", "d"]
    spoilt = (["a" * 80, "b" * 79 + character], good[1]) if key == "x" else (good[0], ["c", character])
    train, test = {"ROMEO": good, "JULIET": good}, {"ROMEO": good, "JULIET": spoilt}
    line = error_line(shakespeare, write_leaf(tmp_path, train, test))
    assert "test/all_data_niid_0_keep_0.json: user 'JULIET' has the character" in line
    assert shown in line


@pytest.mark.parametrize(
    ("x", "y", "rule"),
    [
        ("a" * 79, "b", "each x must be a string of length 80, got 'aaa"),
        ([1] * 80, "b", "each x must be a string of length 80, got [1, 1"),
        ("a" * 80, "bc", "each y must be a string of length 1, got 'bc'"),
    ],
)
def test_an_example_of_another_form_is_refused_with_its_user(tmp_path, x, y, rule):
    good = (["a" * 80], ["b"])
    line = error_line(shakespeare, write_leaf(tmp_path, {"PUCK": (["c" * 80, x], ["d", y])}, {"PUCK": good}))
    assert "user 'PUCK'" in line
    assert rule in line


# Sent140


def tokens_of(text: str, folder: Path, glove: Path, **settings) -> list[int]:
    users = {"someone": ([tweet(text)], [0])}
    return sent140(str(write_leaf(folder, users, users)), str(glove), **settings).examples.features[0].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the 0 , 1 i 2 don't 3 ! 4 good 5 bad 6; 7 is every other word
        ("i don't, the good!", [2, 3, 1, 0, 5, 4]),
        ("The bad, BAD i", [7, 6, 1, 7, 2]),  # unchanged: glove.6B has no upper-case letters
        ("good-bad @the #i http://good", [5, 6, 0, 2, 7, 5]),  # other marks separate words and are not tokens
        ("", []),
        ("...", [7, 7, 7]),  # a token each
    ],
)
def test_tokens_are_words_and_marks_padded_with_the_unknown_row(tmp_path, glove, text, expected):
    assert tokens_of(text, tmp_path, glove) == expected + [7] * (25 - len(expected))


def test_a_longer_text_is_cut_to_its_first_tokens(tmp_path, glove):
    assert tokens_of("good bad " * 13, tmp_path, glove) == [5, 6] * 12 + [5]  # 26 words
    assert tokens_of("good bad the", tmp_path, glove, num_tokens=2) == [5, 6]


def test_words_beyond_max_words_are_unknown(tmp_path, glove):
    assert tokens_of("the i good", tmp_path, glove, num_tokens=4, max_words=3) == [0, 2, 3, 3]


@pytest.mark.parametrize("y", [[0, 4, 4, 0], ["0", "4", "4", "0"], ["0", "1", "1", "0"], [0.0, 4.0, 1, 0]])
def test_positive_is_class_1_whether_it_is_written_1_or_4(tmp_path, glove, y):
    users = {"someone": ([tweet("good")] * 4, y)}
    data = sent140(str(write_leaf(tmp_path, users, users)), str(glove))
    assert data.examples.labels.tolist() == [0, 1, 1, 0] * 2
    assert data.examples.num_classes == 2


@pytest.mark.parametrize("y", [2, "2", 0.5, None, [4]])
def test_another_label_is_refused_with_its_user(tmp_path, glove, y):
    good = {"someone": ([tweet("good")], [0])}
    folder = write_leaf(tmp_path, good, {"someone": ([tweet("good")] * 2, [4, y])})
    line = error_line(sent140, folder, glove)
    assert "test/all_data_niid_0_keep_0.json: user 'someone': each y must be 0 or 1, or 0 or 4, got" in line
    assert repr(y) in line


@pytest.mark.parametrize("x", ["good", ["1", "date", "query", "someone"], [*tweet("good")[:4], 7], None])
def test_a_tweet_without_a_text_is_refused_with_its_user(tmp_path, glove, x):
    good = {"someone": ([tweet("good")], [0])}
    line = error_line(sent140, write_leaf(tmp_path, {"someone": ([x], [0])}, good), glove)
    assert "train/all_data_niid_0_keep_0.json: user 'someone': each x must be a list with the text as item 4" in line


# Runs


def test_the_sent140_model_reads_the_words_of_its_data_set():
    overrides = ["dataset=sent140", "model=lstm_sent140", "dataset.glove=vectors.txt", "dataset.max_words=1000"]
    model = compose(overrides).model.arguments
    assert (model["glove"], model["max_words"]) == ("vectors.txt", 1000)


def results(run_dir: Path) -> tuple[dict, list[dict[str, str]]]:
    with (run_dir / "metrics.csv").open() as file:
        return json.loads((run_dir / "run.json").read_text()), list(csv.DictReader(file))


def test_a_run_on_shakespeare_trains_the_lstm(fedprox, tmp_path):
    x, y = windows(SENTENCE)
    users = {user: (x[k : k + 4], y[k : k + 4]) for k, user in enumerate(("MACBETH", "BANQUO", "DUNCAN"))}
    folder = write_leaf(tmp_path / "data", users, users)
    settings = ("num_rounds=2", "num_epochs=2", "clients_per_round=2", "engine=local", "model.hidden_size=8")
    ended = fedprox("experiment=paper_shakespeare", f"dataset.path={folder}", *settings)
    assert ended.status == 0, ended.err
    facts, rows = results(tmp_path / "run")
    assert (facts["algorithm"], facts["name"]) == ("FedProx (mu = 0.001)", "shakespeare")
    assert facts["data"].startswith("3 clients with 12 training examples")
    # Small initial weights: all 80 characters are about equally likely.
    assert float(rows[0]["test_loss"]) == pytest.approx(math.log(80), abs=0.3)
    assert len({row["test_loss"] for row in rows}) == 3  # trained twice
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights["embedding.weight"].shape == (80, 8)


def test_a_run_on_sent140_trains_all_but_the_word_vectors(fedprox, tmp_path, glove):
    tweets = [tweet("the good i don't"), tweet("bad, bad!"), tweet("good!"), tweet("i the bad")], ["4", "0", "4", "0"]
    users = {user: tweets for user in ("a", "b", "c")}
    folder = write_leaf(tmp_path / "data", users, users)
    settings = ("num_rounds=2", "num_epochs=2", "clients_per_round=2", "engine=local", "model.hidden_size=8")
    files = (f"dataset.path={folder}", f"dataset.glove={glove}")
    ended = fedprox("experiment=paper_sent140", *files, *settings)
    assert ended.status == 0, ended.err
    facts, rows = results(tmp_path / "run")
    assert (facts["algorithm"], facts["name"]) == ("FedProx (mu = 0.01)", "sent140")
    assert len({row["test_loss"] for row in rows}) == 3
    weights = load_file(tmp_path / "run" / "model.safetensors")
    # Two LSTM layers (300 -> 8 -> 8), dense 8 -> 30 -> 1; nothing of shape (8, 300), the 8 word vectors.
    lstm = 4 * 8 * (300 + 8) + 2 * 4 * 8 + 4 * 8 * (8 + 8) + 2 * 4 * 8
    assert sum(weight.numel() for weight in weights.values()) == lstm + 8 * 30 + 30 + 30 + 1
    assert all(weight.dtype == torch.float32 for weight in weights.values())
