"""What a model must be for the data, found out before the first round."""

import numpy as np
import pytest
import torch
from torch import nn

from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.errors import UserError
from fedprox.model_checks import check_smallest_batch, check_takes_data
from fedprox.models import cnn
from fedprox.vision_models import cnn_tutorial, moderate_cnn, resnet18_bn, resnet18_gn


def images(*shape: int, sizes: tuple[int, ...] = (4, 6)) -> FederatedData:
    """Return clients of these sizes with noise for images."""
    num_examples = sum(sizes)
    data = LabelledData(
        features=np.random.default_rng(0).normal(size=(num_examples, *shape)).astype(np.float32),
        labels=np.arange(num_examples) % 3,
        test_features=np.empty((0, *shape), dtype=np.float32),
        test_labels=np.empty(0, dtype=np.int64),
        num_classes=3,
        mean=np.zeros((), dtype=np.float32),
        std=np.ones((), dtype=np.float32),
    )
    train = ClientIndex.from_lists(np.split(np.arange(num_examples), np.cumsum(sizes)[:-1]))
    return FederatedData(data, train, ClientIndex.from_lists([np.empty(0, dtype=np.int64)] * len(sizes)))


@pytest.mark.parametrize("make", [cnn, cnn_tutorial, moderate_cnn, resnet18_gn, resnet18_bn])
def test_a_model_made_for_other_images_is_told_with_both_shapes(make):
    # One made for three channels of 32 x 32 pixels sees one channel of 28 x 28, or 16 x 16 pixels.
    model = make((3, 32, 32), 3)
    with pytest.raises(UserError) as told:
        check_takes_data(model, "mine.Model", images(1, 28, 28).data)
    for words in ("float32 of shape (1, 28, 28)", "input[1, 1, 28, 28]", "3 channels", "than mine.Model"):
        assert words in str(told.value)
    if make in (cnn, cnn_tutorial, moderate_cnn):  # ResNet takes the mean over all pixels, so it fits any size
        with pytest.raises(UserError, match=r"float32 of shape \(3, 24, 24\): mat1 and mat2 .*\(1x\d+ and \d+x\d+\)"):
            check_takes_data(model, "mine.Model", images(3, 24, 24).data)
    assert model.training


class TwoResults(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class TwoInputs(nn.Linear):
    def forward(self, x, hidden):
        return super().forward(x) + hidden


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Linear(5, 4),
            r"3 logits for an input, float32 of shape \(5,\), so shape \(1, 3\), but gave shape \(1, 4\)",
        ),
        (TwoResults(5, 3), r"so shape \(1, 3\), but gave a tuple; choose another model than mine\.Model"),
        (TwoInputs(5, 3), r"does not take the data's inputs, float32 of shape \(5,\): .*'hidden'"),
        (nn.Linear(6, 3), r"float32 of shape \(5,\): mat1 and mat2 shapes .*\(1x5 and 6x3\)"),
    ],
)
def test_a_model_of_other_inputs_or_results_is_told(model, words):
    with pytest.raises(UserError, match=words):
        check_takes_data(model, "mine.Model", images(5).data)


def norm(num_features: int = 5) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(num_features), nn.Linear(num_features, 3))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "first", "how_many"),
    [((4, 6, 9), 4, 2, 1), ((4, 1, 9), 8, 1, 2), ((4, 6, 9), 1, 0, 3), ((7, 6, 9), 3, 0, 1)],
)
def test_a_last_batch_of_one_is_told_where_batch_norm_cannot_take_it(sizes, batch_size, first, how_many):
    with pytest.raises(UserError) as told:
        check_smallest_batch(norm(), batch_size, images(5, sizes=sizes))
    said = f"batch_size={batch_size} leaves one example to the last batch of {how_many} clients, the first of them "
    assert str(told.value).startswith(f"{said}client {first}, and the model cannot be trained on one: Expected more")


@pytest.mark.parametrize(
    ("sizes", "batch_size", "refused"),
    [
        ((5, 9), 4, {"keep"}),  # 4 + 1 and 4 + 4 + 1; merged 5 and 4 + 5
        ((5, 1), 4, {"keep", "drop", "merge"}),  # a client with one example has one batch of it in any case
        ((4, 6), 1, {"keep", "drop", "merge"}),
        ((4, 6), 4, set()),
    ],
)
def test_the_smallest_batch_is_that_which_last_batch_leaves(sizes, batch_size, refused):
    for last_batch in ("keep", "drop", "merge"):
        if last_batch in refused:
            with pytest.raises(UserError, match="leaves one example"):
                check_smallest_batch(norm(), batch_size, images(5, sizes=sizes), last_batch)
        else:
            check_smallest_batch(norm(), batch_size, images(5, sizes=sizes), last_batch)


def test_batches_of_several_examples_or_pixels_are_accepted_and_the_model_stays_as_it_was():
    model = norm()
    check_smallest_batch(model, 4, images(5, sizes=(4, 6, 8)))  # last batches of 4, 2 and 4
    pixels = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 3))
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in pixels.state_dict().items()}
    check_smallest_batch(pixels, 1, images(1, 2, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in pixels.state_dict().items())


def test_what_is_accepted_can_be_trained_and_what_is_refused_cannot():
    features = torch.from_numpy(images(5).data.features)
    assert norm().train()(features[:2]).shape == (2, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm().train()(features[:1])


def test_a_model_in_evaluation_mode_stays_there():
    model = nn.Linear(5, 3).eval()
    check_takes_data(model, "mine.Model", images(5).data)
    assert not model.training
