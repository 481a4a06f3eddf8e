"""Data sets of Hugging Face's library: images, arrays and numbers, with their splits and class names."""

import numpy as np
import pytest

from fedprox.data.federated import FederatedData
from fedprox.data.sources.hugging_face import hugging_face
from fedprox.errors import UserError

datasets = pytest.importorskip("datasets")
NUM = 12
IMAGES = np.random.default_rng(0).integers(0, 256, size=(NUM, 6, 5, 3), dtype=np.uint8)
LABELS = [number % 3 for number in range(NUM)]


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def of_images(rows=slice(None)) -> "datasets.Dataset":
    from PIL import Image

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["c", "a", "b"])}
    columns = {"image": list(map(Image.fromarray, IMAGES[rows])), "label": LABELS[rows]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def saved(tmp_path, data) -> str:
    data.save_to_disk(tmp_path / "d")
    return str(tmp_path / "d")


def test_images_have_channels_first_and_classes_their_names(tmp_path):
    splits = {"train": of_images(slice(9)), "validation": of_images(slice(9, 11)), "test": of_images(slice(11, None))}
    data = hugging_face(saved(tmp_path, datasets.DatasetDict(splits)), 0)
    assert np.array_equal(data.features, IMAGES[:9].transpose(0, 3, 1, 2))
    assert np.array_equal(data.test_features, IMAGES[11:].transpose(0, 3, 1, 2))
    assert data.class_names == ("a", "b", "c")
    assert [data.class_names[label] for label in data.labels] == ["cab"[label] for label in LABELS[:9]]


def test_columns_of_numbers_are_rows_and_a_column_of_arrays_is_one(tmp_path):
    numbers = {
        "x": [float(number) for number in range(NUM)],
        "y": LABELS,
        "label": ["u", "v"] * 6,
        "who": ["p"] * 5 + ["q"] * 7,
    }
    data = hugging_face(saved(tmp_path, datasets.Dataset.from_dict(numbers)), 0, client="who")
    assert isinstance(data, FederatedData)
    assert data.client_ids == ("p", "q")
    assert data.examples.features.tolist() == [[number, LABELS[number]] for number in range(NUM)]
    arrays = {"v": [[1.0, 2.0], [3.0, 4.0]] * 3, "label": [0, 1] * 3}
    data = hugging_face(saved(tmp_path, datasets.Dataset.from_dict(arrays)), 0, test_fraction=0)
    assert sorted(map(tuple, data.features.tolist())) == [(1, 2)] * 3 + [(3, 4)] * 3


WRONG = {
    "a split without labels": (
        lambda: datasets.Dataset.from_dict(
            {"x": [1.0, 2.0], "label": [0, -1]},
            features=datasets.Features(
                {"x": datasets.Value("float32"), "label": datasets.ClassLabel(names=["a", "b"])}
            ),
        ),
        "d/train: row 2 has no label",
    ),
    "text": (
        lambda: datasets.Dataset.from_dict({"x": ["long", "text"], "label": [0, 1]}),
        "x in row 1 must be a finite",
    ),
    "arrays of several shapes": (
        lambda: datasets.Dataset.from_dict({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]}),
        "train must be numbers of shape",
    ),
    "other splits": (lambda: datasets.DatasetDict({"a": of_images()}), "must have the split train, got a"),
    "no label": (lambda: datasets.Dataset.from_dict({"x": [1.0], "labels": [0]}), "did you mean labels?"),
}


@pytest.mark.parametrize(("made", "says"), WRONG.values(), ids=WRONG)
def test_data_sets_that_do_not_fit_are_refused(tmp_path, made, says):
    with pytest.raises(UserError) as refused:
        hugging_face(saved(tmp_path, made()), 0)
    assert says in str(refused.value)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="name a folder that save_to_disk has written"):
        hugging_face(str(tmp_path), 0)
