"""Checks of a model before the first round."""

import copy
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedprox.data.facts import Facts
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.errors import UserError
from fedprox.experiment.model_checks import check_held, check_smallest_batch, check_takes_data, check_trains
from fedprox.models.cnn import cnn, pfl_cnn
from fedprox.models.resnet import resnet18_gn
from fedprox.solvers.generators import Generators
from fedprox.solvers.workspace import tuned_for_cpu


def images(*shape: int, sizes: tuple[int, ...] = (4, 6)) -> Facts:
    """Return clients of these sizes with noise for images."""
    num_examples = sum(sizes)
    features = np.random.default_rng(0).normal(size=(num_examples, *shape)).astype(np.float32)
    data = LabelledData.without_test_set(features, np.arange(num_examples) % 3, 3)
    train = ClientIndex.from_lists(np.split(np.arange(num_examples), np.cumsum(sizes)[:-1]))
    held_out = ClientIndex.from_lists([np.empty(0, dtype=np.int64)] * len(sizes))
    return Facts.of(FederatedData(data, train, held_out))


@pytest.mark.parametrize("make", [cnn, resnet18_gn])
def test_a_model_made_for_other_images_is_refused_with_both_shapes(make):
    # One made for three channels of 32 x 32 pixels sees one channel of 28 x 28, or 16 x 16 pixels.
    model = make((3, 32, 32), 3)
    with pytest.raises(UserError) as raised:
        check_takes_data(model, "mine.Model", images(1, 28, 28).examples)
    for words in ("float32 of shape (1, 28, 28)", "input[1, 1, 28, 28]", "3 channels", "than mine.Model"):
        assert words in str(raised.value)
    if make is cnn:  # ResNet takes the mean over all pixels, so it fits any size
        with pytest.raises(
            UserError, match=r"float32 of shape \(3, 24, 24\): RuntimeError: mat1 and mat2 .*\(1x\d+ and \d+x\d+\)"
        ):
            check_takes_data(model, "mine.Model", images(3, 24, 24).examples)
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
            r"3 logits for each of 1 inputs, float32 of shape \(5,\), .* \(1, 3\), got float32 of shape \(1, 4\)",
        ),
        (
            TwoResults(5, 3),
            r"so shape \(1, 3\), got a tuple; return only the logits, or .* another model than mine\.Model",
        ),
        (TwoInputs(5, 3), r"does not accept the data's inputs, float32 of shape \(5,\): .*'hidden'"),
        (nn.Linear(6, 3), r"float32 of shape \(5,\): RuntimeError: mat1 and mat2 shapes .*\(1x5 and 6x3\)"),
    ],
)
def test_a_model_with_other_inputs_or_outputs_is_refused(model, words):
    with pytest.raises(UserError, match=words):
        check_takes_data(model, "mine.Model", images(5).examples)


def norm(num_features: int = 5) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(num_features), nn.Linear(num_features, 3))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "first", "how_many"),
    [((4, 6, 9), 4, 2, 1), ((4, 1, 9), 8, 1, 2)],
)
def test_a_last_batch_of_one_is_refused_if_batch_norm_cannot_train_on_it(sizes, batch_size, first, how_many):
    with pytest.raises(UserError) as raised:
        check_smallest_batch(norm(), batch_size, images(5, sizes=sizes))
    start = (
        f"batch_size={batch_size} leaves one example in the last batch of {how_many} clients, such as client {first}, "
    )
    assert str(raised.value).startswith(f"{start}and the model cannot be trained on one: Expected more")
    assert "set last_batch=drop or merge, choose another batch_size, or a model without batch norm" in str(raised.value)


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


def test_a_model_in_evaluation_mode_stays_there():
    model = nn.Linear(5, 3).eval()
    check_takes_data(model, "mine.Model", images(5).examples)
    assert not model.training


# State.


class Net(nn.Module):
    """Two layers for five features and three classes; those below change one thing."""

    def __init__(self, input_shape: tuple[int, ...] = (5,), num_classes: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(*input_shape, 4), nn.Linear(4, num_classes)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def with_parameter(tensor: torch.Tensor, **settings) -> nn.Module:
    model = Net()
    model.own = nn.Parameter(tensor, **settings)
    return model


def with_buffer(tensor: torch.Tensor) -> nn.Module:
    model = Net()
    model.register_buffer("own", tensor)
    return model


def tied_by_memory() -> nn.Module:
    model = Net()
    model.a.weight = nn.Parameter(torch.zeros(4, 5))
    model.twin = nn.Parameter(model.a.weight.data)
    return model


class WithState(Net):
    def get_extra_state(self):
        return {"calls": 1}


class Hiding(Net):
    def state_dict(self, *args, **kwargs):
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name != "a.bias"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: with_parameter(torch.zeros(2, dtype=torch.bfloat16)),
            "own is of type bfloat16, which no update can hold",
        ),
        (lambda: with_buffer(torch.zeros(2, dtype=torch.float8_e5m2)), "own is of type float8_e5m2"),
        (lambda: with_parameter(torch.eye(2).to_sparse()), "own is sparse"),
        (lambda: with_parameter(torch.zeros(2, device="meta")), "own is on the device meta"),
        (lambda: with_buffer(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)), "own is quantized"),
        (tied_by_memory, "twin and a.weight are two parameters in the same memory"),
        (WithState, "must hold only tensors, but _extra_state is a dict"),
        (Hiding, "a.bias is trained, but missing from its state dict"),
        (lambda: torch.jit.script(Net()), "compiled by torch.jit"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's own about jit and quantization
def test_tensors_that_no_update_can_hold_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        check_held(make(), "mine.Model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_every_real_type_of_numpy_is_accepted(dtype):
    check_held(with_parameter(torch.zeros(2, dtype=dtype), requires_grad=False), "mine.Model")
    check_held(with_buffer(torch.zeros(2, dtype=dtype)), "mine.Model")


def test_initial_weights_that_are_nan_are_refused_by_name():
    model = Net()
    nn.init.constant_(model.a.weight, float("nan"))
    with pytest.raises(UserError, match=r"gives nan or infinite logits .*: a.weight holds nan"):
        check_takes_data(model, "mine.Model", images(5).examples)


# Training.


class NoGradients(Net):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class InList(Net):
    """Its first layer is in a list, which nn.Module does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.a]
        del self.a

    def forward(self, x):
        return self.b(torch.relu(self.layers[0](x)))


class Reassigning(Net):
    """Takes a state dict's tensors for its parameters: those that the solver moved are gone."""

    def load_state_dict(self, state_dict, *args, **kwargs):
        return super().load_state_dict(state_dict, *args, assign=True, **kwargs)


class InTraining(Net):
    """Does something else with its logits while it trains."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(super().forward(x)) if self.training else super().forward(x)


def raises(logits):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Net().requires_grad_(False), "nothing to train: no parameter of mine.Model requires a gradient"),
        (NoGradients, "no parameter of mine.Model gets a gradient"),
        (InList, r"a trainable tensor of shape \(4,( 5)?\) that is not a parameter of its copies"),
        (Reassigning, r"model's a.weight gets another gradient in the local solver"),
        (lambda: InTraining(lambda y: (y, y)), "got a tuple in training mode"),
        (lambda: InTraining(lambda y: y[:, :1]), r"got float32 of shape \(3, 1\) in training mode"),
        (lambda: InTraining(lambda y: y.argmax(1, keepdim=True).expand_as(y)), "got int64 of shape"),
        (lambda: InTraining(raises), r"in training mode, .*: KeyError: 'x' \(test_model_checks.py:\d+\)"),
        (lambda: InTraining(lambda y: sys.exit(3)), r"in training mode, .*: sys.exit\(3\)"),
        (lambda: InTraining(lambda y: torch.sigmoid(y).mul_(2).sigmoid_().mul_(y.exp_())), "cannot be trained on 3"),
    ],
)
def test_a_model_that_training_would_not_reach_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        check_trains(make(), "mine.Model", 4, images(5).examples)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 3))
    model[2].weight = model[0].weight
    return model


def transposed() -> nn.Module:
    model = Net()
    model.a.weight = nn.Parameter(torch.randn(5, 4).t())
    return model


def counting() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), Net())
    model.register_forward_pre_hook(lambda module, inputs: module[0].num_batches_tracked.add_(1) and None)
    return model


TRAINED = {
    "tied": tied,
    "transposed": transposed,
    "counting": counting,
    "float64": lambda: nn.Sequential(Net(), nn.Identity()).double(),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 3)),
    "drawing": lambda: InTraining(lambda y: y * (torch.rand(()) + np.random.rand() + random.random())),
    "input gradient": lambda: InTraining(lambda y: y + y.detach().requires_grad_() * 0.1),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_that_training_reaches_passes_silently_and_unchanged(name, caplog):
    model, data = TRAINED[name](), images(5).examples
    if name == "float64":
        model.register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    before, generators = copy.deepcopy(model.state_dict()), Generators()
    features = data.features.copy()
    check_held(model, "mine.Model")
    check_takes_data(model, "mine.Model", data)
    check_trains(model, "mine.Model", 4, data)
    assert not generators.have_moved()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert np.array_equal(data.features, features)
    assert model.training
    assert caplog.records == []


def test_dropout_may_draw_in_the_order_of_the_layout_that_a_cnn_trains_in(caplog):
    data, model = images(8, 8).examples, pfl_cnn((8, 8), 3)
    assert tuned_for_cpu(model, torch.from_numpy(data.features[:3])) is not model
    check_trains(model, "pfl_cnn", 10, data)
    assert caplog.records == []


def test_a_parameter_that_no_gradient_reaches_is_named_in_one_line(caplog):
    check_trains(with_parameter(torch.zeros(2)), "mine.Model", 4, images(5).examples)
    assert [record.getMessage() for record in caplog.records] == [
        "no gradient reaches own of mine.Model: the loss does not depend on them"
    ]


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_gradient_which_copies_lose_is_refused(register):
    model = Net()
    getattr(model.b.weight, register)(lambda gradient: None)
    with pytest.raises(UserError, match=r"model's b\.weight has a hook on its gradient, which copies of a model lose"):
        check_held(model, "mine.Model")


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * self.rng.random())


def test_a_model_with_its_own_generator_is_warned_about(caplog):
    check_trains(OwnGenerator(), "mine.Model", 4, images(5).examples)
    assert "mine.Model gives different gradients in a second pass" in caplog.text


# Outputs.


class Outputs(Net):
    """Gives more than logits."""

    def __init__(self, wrap, *, only_in_training: bool = False) -> None:
        super().__init__()
        self.wrap, self.only_in_training = wrap, only_in_training

    def forward(self, x):
        logits = super().forward(x)
        return self.wrap(logits) if self.training or not self.only_in_training else logits


@pytest.mark.parametrize("only_in_training", [False, True])
@pytest.mark.parametrize("wrap", [lambda y: {"logits": y, "loss": None}, lambda y: SimpleNamespace(logits=y, aux=y)])
def test_logits_are_taken_out_of_an_output_that_holds_them_under_the_same_names(wrap, only_in_training):
    model, plain = Outputs(wrap, only_in_training=only_in_training), Net()
    plain.load_state_dict(model.state_dict())
    check_takes_data(model, "mine.Model", images(5).examples)
    check_trains(model, "mine.Model", 4, images(5).examples)
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.from_numpy(images(5).examples.features)
    for each in (model, copy.deepcopy(model)):
        for mode in (True, False):
            assert torch.equal(each.train(mode)(x), plain(x))


@pytest.mark.parametrize(("function", "expected"), [(torch.softmax, True), (torch.log_softmax, False)])
def test_probabilities_instead_of_logits_are_warned_about(caplog, function, expected):
    model = nn.Sequential(Net())
    model.register_forward_hook(lambda module, inputs, output: function(output, 1))
    check_takes_data(model, "mine.Model", images(5).examples)
    assert ("mine.Model look like probabilities" in caplog.text) is expected


def test_tokens_are_not_changed():
    class Shifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.linear = nn.Embedding(9, 2), nn.Linear(10, 3)

        def forward(self, x):
            return self.linear(self.embedding(x.add_(1)).flatten(1))

    tokens = np.arange(50).reshape(10, 5) % 7
    texts = LabelledData.without_test_set(tokens.copy(), np.arange(10) % 3, 3)
    model = Shifting()
    check_takes_data(model, "mine.Model", texts)
    check_trains(model, "mine.Model", 4, texts)
    assert np.array_equal(texts.features, tokens)
