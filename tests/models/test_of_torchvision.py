"""Models of torchvision by name."""

import pytest
import torch
import torchvision
from torch import nn

from fedprox.errors import UserError
from fedprox.models.of_torchvision import ThreeChannels, torchvision_model

SMALL = "shufflenet_v2_x0_5"


def seeded(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (32, 32)])
def test_it_is_torchvisions_model_with_grey_images_in_three_equal_channels(shape):
    ours = seeded(lambda: torchvision_model(shape, 7, SMALL)).eval()
    theirs = seeded(lambda: torchvision.models.get_model(SMALL, num_classes=7)).eval()
    images = torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images.reshape(2, -1, 32, 32).expand(-1, 3, -1, -1)))


def test_it_is_in_training_mode_and_has_seen_no_batch():
    model = torchvision_model((3, 32, 32), 7, SMALL)
    assert all(each.training for each in model.modules())
    assert {int(each.num_batches_tracked) for each in model.modules() if isinstance(each, nn.BatchNorm2d)} == {0}


def test_a_size_scales_images_bilinearly():
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    # Centres of four pixels on two: at -1/4, 1/4, 3/4 and 5/4, those outside moved to the edge.
    expected = [[0, 0.25, 0.75, 1], [0.5, 0.75, 1.25, 1.5], [1.5, 1.75, 2.25, 2.5], [2, 2.25, 2.75, 3]]
    assert ThreeChannels(4)(image).tolist() == [[expected] * 3]


def test_arguments_of_the_models_own_are_passed_on():
    model = torchvision_model((3, 32, 32), 7, "mobilenet_v2", dropout=0.75)
    assert [each.p for each in model.modules() if isinstance(each, nn.Dropout)] == [0.75]


@pytest.fixture
def trained(monkeypatch):
    """Weights of a model with a thousand classes, instead of those of the network; returns what is asked for."""
    asked = []
    state = torchvision.models.get_model(SMALL).state_dict()

    def get_state_dict(self, *_, **__):
        asked.append(str(self))
        return state

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", get_state_dict)
    return asked, state


def test_trained_weights_are_loaded_only_if_they_are_asked_for_and_the_last_layer_is_drawn(trained):
    asked, state = trained
    torchvision_model((3, 32, 32), 7, SMALL)
    assert asked == []
    model = seeded(lambda: torchvision_model((3, 32, 32), 7, SMALL, weights="DEFAULT"))
    assert asked == ["ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"]
    drawn = seeded(lambda: torchvision.models.get_model(SMALL, num_classes=7)).state_dict()
    for name, value in model[2].state_dict().items():
        torch.testing.assert_close(value, drawn[name] if name.startswith("fc.") else state[name])
    whole = torchvision_model((3, 32, 32), 1000, SMALL, weights="DEFAULT")
    torch.testing.assert_close(whole[2].fc.weight, state["fc.weight"])


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", fail)
    with pytest.raises(UserError, match=r"^model\.weights=DEFAULT cannot be downloaded: no network; .* the file http"):
        torchvision_model((3, 32, 32), 7, SMALL, weights="DEFAULT")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "mobilenet_v3_smal"},
            "model.name must be a name that torchvision knows, .*did you mean mobilenet_v3_small",
        ),
        ({"name": "fasterrcnn_resnet50_fpn"}, "model.name must be a name that torchvision knows"),  # no classification
        ({"weights": "IMAGENET1K_V3"}, "model.weights must be .* got IMAGENET1K_V3; did you mean IMAGENET1K_V1"),
        ({"size": 0}, "model.size must be an integer from 1 to 1024, or null, got 0"),
        ({"input_shape": (4, 32, 32)}, "model=torchvision needs images of 1 or 3 channels, got 4; use model=cnn"),
        (
            {"input_shape": (16,)},
            "model=torchvision needs images of at least 1 x 1 pixels, got inputs of shape",
        ),
        (
            {"input_shape": (8, 8), "name": "squeezenet1_1"},
            "model.name=squeezenet1_1 cannot take images of 8 x 8 pixels: RuntimeError: .*; add model.size=17",
        ),
    ],
)
def test_what_torchvision_does_not_have_and_images_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        torchvision_model(**{"input_shape": (3, 32, 32), "num_classes": 7, "name": SMALL, **arguments})
