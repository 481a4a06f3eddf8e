"""LEAF's JSON format: data from the files, and errors for files that are not right."""

import copy
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.data.sources import leaf as leaf_cache
from fedprox.data.sources.leaf import leaf
from fedprox.data.sources.leaf_files import json_files, read
from fedprox.data.sources.synthetic import synthetic
from tests.data.refusals import line_of

# Written by the authors' generate_synthetic.py after seeding NumPy and random with 0, which the program does not do.
GENERATED = Path(os.environ.get("FEDPROX_DATA_DIR", "data")).absolute() / "leaf" / "synthetic_1_1"

# Two clients with three and one training examples, one and two test examples; in no order.
TRAIN = {"b": ([[1.5, -2.0], [0.25, 3.0], [7.0, 8.0]], [2.0, 0.0, 1.0]), "a": ([[4.0, 5.0]], [1.0])}
TEST = {"b": ([[9.0, 0.5]], [0.0]), "a": ([[6.0, 1.0], [2.0, 2.0]], [1.0, 2.0])}


def content(clients: dict[str, tuple[list, list]]) -> dict:
    """Return what a LEAF file with these clients holds."""
    return {
        "users": list(clients),
        "num_samples": [len(y) for _, y in clients.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in clients.items()},
    }


def write(folder: Path, **files: object) -> Path:
    """Write train=... and test=..., or train_1=... and so on, as JSON files; return the folder."""
    for name, value in files.items():
        path = folder / name.partition("_")[0] / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="latin-1")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a data set with the clients a and b."""
    return write(tmp_path, train=content(TRAIN), test=content(TEST))


def error_line(folder: Path, **options: object) -> str:
    return line_of(leaf, str(folder), **options)


def test_clients_are_the_sorted_ids_each_with_its_own_training_and_test_examples(folder):
    data = leaf(str(folder))
    assert data.client_ids == ("a", "b")
    assert (data.train.sizes.tolist(), data.held_out.sizes.tolist()) == ([1, 3], [2, 1])
    for client, user in enumerate("ab"):
        for index, side in ((data.train, TRAIN), (data.held_out, TEST)):
            assert data.examples.features[index[client]].tolist() == side[user][0]
            assert data.examples.labels[index[client]].tolist() == side[user][1]
    assert (data.examples.features.dtype, data.examples.labels.dtype) == (np.float32, np.int64)
    assert data.num_left_over == 0


def test_the_model_gets_the_features_unchanged_and_there_is_no_global_test_set(folder):
    data = leaf(str(folder))
    assert data.client_examples(1)[0].tolist() == TRAIN["b"][0]
    assert len(data.examples.test_labels) == len(data.examples.test_features) == 0
    features, labels = data.test_examples()
    assert features.tolist() == TEST["a"][0] + TEST["b"][0]
    assert labels.tolist() == [1, 2, 0]


@pytest.mark.skipif(not GENERATED.is_dir(), reason=f"a data set of the authors' generator is not in {GENERATED}")
def test_files_of_the_authors_generator_seeded_with_0_are_what_synthetic_generates(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    for side in ("train", "test"):  # links, so that the cache is not written beside the originals
        (tmp_path / "data" / side).symlink_to(GENERATED / side)
    read, ours = leaf(str(tmp_path / "data")), synthetic(30, seed=0)
    assert read.client_ids == ours.client_ids
    assert read.examples.num_classes == ours.examples.num_classes == 10
    for index, our_index in ((read.train, ours.train), (read.held_out, ours.held_out)):
        assert index.sizes.tolist() == our_index.sizes.tolist()
        # Their float64 numbers are drawn identically; an unlucky BLAS could differ in the last float32 bit.
        expected = ours.examples.features[our_index.indices]
        np.testing.assert_allclose(read.examples.features[index.indices], expected, rtol=2e-7)
        assert read.examples.labels[index.indices].tolist() == ours.examples.labels[our_index.indices].tolist()


def numbers(shape: tuple[int, ...], number: st.SearchStrategy) -> st.SearchStrategy[list]:
    """Return a strategy for nested lists of a shape."""
    for length in reversed(shape):
        number = st.lists(number, min_size=length, max_size=length)
    return number


@st.composite
def data_sets(draw):
    """Draw (clients of train, clients of test, dtype that the features must have)."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    whole = draw(st.booleans())
    number = (
        st.integers(-1 if draw(st.booleans()) else 0, 2**20)
        if whole
        else st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
    label = st.integers(0, 4).flatmap(lambda value: st.sampled_from([value, float(value)]))
    example = st.tuples(numbers(shape, number), label)
    some = st.lists(example, min_size=1, max_size=4).map(lambda pairs: tuple(map(list, zip(*pairs, strict=True))))
    users = draw(st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True))
    train, test = ({user: draw(some) for user in users} for _ in range(2))
    is_flat = whole and len(shape) == 1
    are_tokens = is_flat and all(
        min(x) >= 0 for side in (train, test) for examples, _ in side.values() for x in examples
    )
    return train, test, np.int64 if are_tokens else np.float32


@settings(max_examples=60)
@given(data_sets(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_what_is_written_is_what_is_read(drawn, num_files, random):
    train, test, dtype = drawn
    with tempfile.TemporaryDirectory() as name:
        files = {}
        for side, clients in (("train", train), ("test", test)):
            users = random.sample(sorted(clients), len(clients))
            for i in range(num_files):
                files[f"{side}_{i}"] = content({user: clients[user] for user in users[i::num_files]})
        data = leaf(str(write(Path(name), **files)))
    assert data.client_ids == tuple(sorted(train))
    assert data.examples.features.dtype == dtype
    assert data.examples.num_classes == 1 + max(int(max(y)) for side in (train, test) for _, y in side.values())
    for index, side in ((data.train, train), (data.held_out, test)):
        for client, user in enumerate(data.client_ids):
            assert data.examples.features[index[client]].tolist() == side[user][0]
            assert data.examples.labels[index[client]].tolist() == side[user][1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[1, 2]], [[0.5, 1]]),  # a fraction at another client
        ([[[1, 2]]], [[[3, 4]]]),  # an image of integers
        ([[1, 2]], [[-3, 4]]),  # a number below zero, which is not a token
    ],
)
def test_integers_that_are_not_token_sequences_become_float32(tmp_path, first, second):
    clients = content({"a": (first, [0]), "b": (second, [1])})
    data = leaf(str(write(tmp_path, train=clients, test=clients))).examples
    assert data.features.dtype == np.float32
    assert data.features[:2].tolist() == [*first, *second]


def test_num_classes_is_the_largest_label_plus_one_unless_it_is_given(folder):
    assert leaf(str(folder)).examples.num_classes == 3
    assert leaf(str(folder), num_classes=3).examples.num_classes == 3
    assert leaf(str(folder), num_classes=62).examples.num_classes == 62


def test_a_label_that_num_classes_excludes_is_named_with_its_file_and_user(folder, tmp_path):
    line = error_line(folder, num_classes=2)
    assert f"{tmp_path}/train/train.json: user 'b': each y must be between 0 and" in line
    assert "num_classes - 1 = 1, got 2" in line
    assert "set dataset.num_classes=3" in line
    of_the_test_part = copy.deepcopy(TEST)
    of_the_test_part["a"][1][1] = 7  # a comes first, so its part is the third of four
    write(tmp_path, test=content(of_the_test_part))
    assert f"{tmp_path}/test/test.json: user 'a': each y" in error_line(folder, num_classes=7)


@pytest.mark.parametrize("num_classes", [0, 2.5, True, "ten"])
def test_num_classes_is_a_whole_number_of_at_least_one(folder, num_classes):
    assert f"dataset.num_classes must be a whole number >= 1, got {num_classes}" in error_line(
        folder, num_classes=num_classes
    )


def test_raw_reading_gives_unchanged_text_by_sorted_id(tmp_path):
    # As in Shakespeare (x a line of characters, y the next one) and in Sent140 (x six fields, y 0 or 1); half a
    # surrogate pair as Python writes it.
    play = (["to be", "cut \ud83d"], [" ", "o"])
    tweet = ([["1467", "Mon Apr 06", "NO_QUERY", "somebody", "so sad", "training"]], [0])
    write(tmp_path, train=content({"b": play, "a": tweet}), test=content({"a": tweet, "b": play}))
    ids, *sides = read(json_files(tmp_path), lambda examples: examples)
    assert ids == ("a", "b")
    for side, name in zip(sides, ("train", "test"), strict=True):
        assert [(examples.x, examples.y) for examples in side] == [tweet, play]
        assert side[0].where == f"{tmp_path}/{name}/{name}.json: user 'a'"


def test_a_number_too_large_for_json_parsers_is_named_like_infinity(folder):
    write(folder, train=json.dumps(content(TRAIN)).replace("7.0", "1e999"))
    assert f"{X}finite in float32, got inf in row 2; leave out or replace" in error_line(folder)


def test_other_keys_in_a_file_are_left_alone(folder):
    write(folder, train={**content(TRAIN), "hierarchies": ["play", "play"]})  # as LEAF's Shakespeare has them
    assert leaf(str(folder)).num_clients == 2


def test_a_folder_whose_name_is_a_number_is_found(tmp_path, monkeypatch):
    write(tmp_path / "2024", train=content(TRAIN), test=content(TEST))
    monkeypatch.chdir(tmp_path)
    assert leaf(2024).num_clients == 2  # as Hydra understands dataset.path=2024


def test_a_tilde_is_the_users_home_and_an_unknown_users_is_a_missing_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert leaf(f"~/{folder.name}").num_clients == 2
    assert "~no-such-user/data must be the folder" in error_line(Path("~no-such-user/data"))


def test_a_missing_folder_is_named(tmp_path):
    remedy = "set dataset.path= to the folder that holds train/*.json and test/*.json"
    line = error_line(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} must be the folder of a LEAF data set, but does not exist; {remedy}" in line
    for side in ("train", "test"):
        must = f"{tmp_path / side} must hold LEAF's JSON files, but"
        assert f"{must} does not exist; {remedy}" in error_line(tmp_path)
        (tmp_path / side).mkdir()
        (tmp_path / side / "data.txt").write_text("{}")
        assert f"{must} has no .json file" in error_line(tmp_path)
        write(tmp_path, **{side: content(TRAIN)})
    assert leaf(str(tmp_path)).num_clients == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: text.replace("7.0", "NaN")[:-1],
        lambda text: "[" * 100_000,
        lambda text: text * 2,
        lambda text: '{"users": [' + "1" * 5000 + "]}",
        lambda text: text.replace('"a"', '"\xff"'),
        lambda text: "",
    ],
)
def test_a_file_that_is_not_json_is_named(folder, spoil):
    write(folder, test=spoil(json.dumps(content(TRAIN))))
    line = error_line(folder)
    assert f"{folder}/test/test.json must be JSON, but is truncated or altered" in line
    assert "copy or prepare it again" in line


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "train" / "zzz.json").symlink_to(folder / "nowhere")
    assert f"{folder}/train/zzz.json cannot be read" in error_line(folder)


def replaced(key: str, value: object):
    """Return a change that puts another value in a file."""
    return lambda file: {**file, key: value}


def of_b(key: str, value: object):
    """Return a change that gives user b other x or y; None removes it."""

    def change(file: dict) -> dict:
        if value is None:
            del file["user_data"]["b"][key]
        else:
            file["user_data"]["b"][key] = value
        return file

    return change


MUST = " must be an object with the lists users and num_samples and the object user_data, but "
FIX = "fix the file, or prepare"
B = ": user 'b'"
X, Y = f"{B}: features (x) must be ", f"{B}: labels (y) must be "
SHAPE = f"{X}an array, a list or a tensor of numbers, all rows of one shape, got "
XS = [[1.5, -2.0], [0.25, 3.0]]
BAD_FILES = [
    (lambda file: [file], f"{MUST}users is missing or of another type; {FIX}"),
    (replaced("users", "ab"), f"{MUST}users is missing or of another type; {FIX}"),
    (replaced("num_samples", None), f"{MUST}num_samples is missing or of another type; {FIX}"),
    (replaced("user_data", []), f"{MUST}user_data is missing or of another type; {FIX}"),
    (replaced("users", ["b"]), f" has 1 users but 2 num_samples; {FIX}"),
    (replaced("users", ["b", "c"]), f": user 'a' is in user_data but not in users; {FIX}"),
    (replaced("users", [["b"], "a"]), f": users must be strings, as in user_data, got ['b']; {FIX}"),
    (replaced("user_data", {"b": content(TRAIN)["user_data"]["b"]}), ": user 'a' is in users but not in user_data"),
    (lambda file: {**file, "users": ["b", "a", "b"], "num_samples": [3, 1, 3]}, f"{B} is in users twice; merge"),
    (replaced("num_samples", ["3", 1]), f"{B}: num_samples must be numbers, got '3'; {FIX}"),
    (replaced("num_samples", [4, 1]), f"{B} has 3 examples, but num_samples says 4; {FIX}"),
    (replaced("num_samples", [float("nan"), 1]), f"{B} has 3 examples, but num_samples says nan; {FIX}"),
    (lambda file: replaced("user_data", {**file["user_data"], "b": []})(file), f"{B} must have the lists x and y"),
    (of_b("x", {}), f"{B} must have the lists x and y, but x is missing or not a list; {FIX}"),
    (of_b("y", None), f"{B} must have the lists x and y, but y is missing or not a list; {FIX}"),
    (of_b("y", [0, 1]), f"{B} has 3 x but 2 y; {FIX}"),
    (lambda file: content({**TRAIN, "b": ([], [])}), f"{B} has no example; leave it out of train/ and test/"),
    (of_b("y", [0, 1.5, 2]), f"{Y}integers, the classes 0 to 999999, got 1.5 in row 1"),
    (of_b("y", [0, -1, 2]), f"{Y}between 0 and num_classes - 1 = 999999, got -1 in row 1; number the classes from 0"),
    (of_b("y", [0, 10**30, 2]), f"{Y}integers, the classes 0 to 999999, got 1e+30 in row 1"),
    (of_b("y", [0, float("nan"), 2]), f"{Y}integers, the classes 0 to 999999, got nan in row 1"),
    (of_b("y", ["a", "b", "c"]), f"{Y}numbers, got 'a' (text) in row 0; number the classes from 0"),
    (of_b("x", [*XS, [1.0]]), SHAPE),
    (of_b("x", [json.loads("[" * 80 + "1" + "]" * 80)] * 3), SHAPE),
    (of_b("x", [*XS, [1.0, "2"]]), f"{X}numbers, got '2' (text) in row 2; convert them"),
    (of_b("x", [*XS, [None, 1.0]]), f"{X}numbers, got None (object) in row 2; convert them"),
    (of_b("x", [1.0, 2.0, 3.0]), f"{X}lists of numbers, got 1.0; fix the file"),
    (of_b("x", [[], [], []]), f"{X}lists of numbers, got []; fix the file"),
    (of_b("x", [*XS, [1.0, 1e39]]), f"{X}finite in float32, got 1e+39 in row 2; leave out or replace"),
]


@pytest.mark.parametrize(("change", "message"), BAD_FILES)
def test_errors_name_the_file_the_user_and_the_remedy(folder, change, message):
    write(folder, train=change(copy.deepcopy(content(TRAIN))))
    assert f"{folder}/train/train.json{message}" in error_line(folder)


def test_text_is_refused_with_the_data_sets_that_read_it(folder):
    write(folder, train=content({**TRAIN, "b": (["to be", "o be ", " be o"], [0, 1, 2])}))
    line = error_line(folder)
    assert f"{X}numbers, got 'to be' (text) in row 0" in line
    assert line.endswith("(dataset=leaf reads numbers, shakespeare and sent140 read text)")


def test_widths_that_differ_between_users_are_named_with_both(folder):
    write(folder, test=content({**TEST, "b": ([[1.0, 2.0, 3.0]], [0])}))
    line = error_line(folder)
    assert f"{folder}/test/test.json: user 'b': each x must have one shape in the whole data set, got (3,)" in line
    assert f"but (2,) in {folder}/train/train.json: user 'a'; leave out or pad" in line


@pytest.mark.parametrize(("side", "other"), [("train", "test"), ("test", "train")])
def test_a_user_on_one_side_only_is_named_with_the_side_it_is_missing_from(folder, side, other):
    both = {"train": TRAIN, "test": TEST}[side]
    write(folder, **{side: content({**both, "c": both["a"], "d": both["a"]})})
    line = error_line(folder)
    assert f"{folder}/{other}: user 'c' (2 in all) is in {side}/ but not here" in line
    assert "preprocess.sh -t sample" in line


def test_a_user_in_two_files_of_a_side_is_named_with_the_second_file(folder):
    write(folder, train_2=content({"a": TRAIN["a"]}))
    assert f"{folder}/train/train_2.json: user 'a' is in {folder}/train twice; merge" in error_line(folder)


def test_files_without_any_user_are_refused(tmp_path):
    line = error_line(write(tmp_path, train=content({}), test=content({})))
    assert f"{tmp_path}/train/train.json and all other files have no user; prepare the data set again" in line


def test_a_users_id_cannot_break_the_line(folder):
    write(folder, train=content({**TRAIN, "two\nlines": ([], [])}))
    assert "user 'two\\nlines' has no example" in error_line(folder)


def test_small_data_sets_leave_no_cache(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*.json")) < leaf_cache.SMALLEST_BYTES
    leaf(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"]
