"""Full-batch gradients; gamma = ||grad F_k(w_k) + mu * (w_k - w^t)|| / ||grad F_k(w^t)||; drift = ||w_k - w^t||."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.models.logistic import logistic
from fedprox.solvers.gradients import drift, full_gradients, gamma

Params = dict[str, torch.Tensor]


class LastHidden(nn.Module):
    """Recurrent: classifies sequences of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    )


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 4))


def frozen_layer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5).requires_grad_(False), nn.Linear(5, 4))


def tied_layers() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4))
    model[3].weight = model[2].weight
    return model


MODELS = {
    "logistic": lambda: logistic((6, 6), 4),
    "logistic without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False)),
    "convolution": convolution,
    "batch norm": batch_norm,
    "frozen layer": frozen_layer,
    "tied layers": tied_layers,
    "lstm": LastHidden,
}


def initialised(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name]()
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2.0)
    return model.double()


def examples(num_examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(num_examples, 6, 6, generator=rng, dtype=torch.float64)
    return features, torch.randint(4, (num_examples,), generator=rng)


def by_definition(name: str, params: Params, features: torch.Tensor, labels: torch.Tensor) -> Params:
    """Return grad F_k by plain autograd on a new model."""
    model = initialised(name)
    model.load_state_dict(params)
    model.eval()
    functional.cross_entropy(model(features), labels).backward()
    return {key: param.grad for key, param in model.named_parameters() if param.requires_grad}


@pytest.mark.parametrize("num_examples", [1, 500, 501])  # up to one piece of autograd's, and two
@pytest.mark.parametrize("name", MODELS)
def test_gradients_at_several_points_are_autograds(name, num_examples):
    points = [initialised(name, seed).state_dict() for seed in (1, 2, 3)]
    features, labels = examples(num_examples)
    results = full_gradients(initialised(name), points, features, labels)
    for point, result in zip(points, results, strict=True):
        expected = by_definition(name, point, features, labels)
        assert result.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(result[key], expected[key], rtol=1e-9, atol=1e-12)  # float64, sums of 501


@pytest.mark.parametrize("name", MODELS)
def test_gamma_is_its_definition(name):
    start, solution = initialised(name, 1).state_dict(), initialised(name, 2).state_dict()
    features, labels = examples(30)
    at_start, at_solution = (by_definition(name, point, features, labels) for point in (start, solution))
    for mu in (0.0, 0.7):
        inexact = [at_solution[key] + mu * (solution[key] - start[key]) for key in at_start]
        expected = math.sqrt(sum(t.square().sum() for t in inexact) / sum(t.square().sum() for t in at_start.values()))
        assert gamma(initialised(name), solution, start, features, labels, mu) == pytest.approx(expected, rel=1e-9)


def test_gamma_by_hand():
    # One example x = 2 of class 0, w^t = 0: grad F = (-1, 1) in W and (-1/2, 1/2) in b, square 5/2.
    # w_k: W = (a, -a), b = 0 with a = ln(3) / 4, so logits differ by ln 3 and the softmax is (3/4, 1/4):
    # grad F = (-1/2, 1/2) in W, (-1/4, 1/4) in b. mu = 1 / ln 3 adds mu * a = 1/4: (-1/4, 1/4) in W, square 1/4.
    a = math.log(3) / 4
    start = {"1.weight": torch.zeros(2, 1), "1.bias": torch.zeros(2)}
    solution = {"1.weight": torch.tensor([[a], [-a]]), "1.bias": torch.zeros(2)}
    result = gamma(logistic((1,), 2), solution, start, torch.tensor([[2.0]]), torch.tensor([0]), mu=1 / math.log(3))
    assert result == pytest.approx(math.sqrt(1 / 4 / (5 / 2)), rel=1e-6)  # float32


@pytest.mark.parametrize("mu", [0.0, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_gamma_is_1_if_the_client_did_not_move(name, mu):
    params = initialised(name, 1).state_dict()
    assert gamma(initialised(name), params, params, *examples(7), mu) == 1.0


def test_gamma_is_0_at_the_minimiser_of_h():
    # Curvature is at least mu = 1, and at most 1 + half the largest eigenvalue of X^T X / n, here about 3:
    # 200 steps of 1/5 leave (1 - 1/5)^200 = 4e-20 of the way, which is below float64's rounding.
    features, labels = examples(20)
    start = {key: tensor.clone() for key, tensor in initialised("logistic", 1).state_dict().items()}
    params, model, gammas = dict(start), initialised("logistic"), []
    for step in range(200):
        if step in (0, 10, 20, 30):
            gammas.append(gamma(model, params, start, features, labels, mu=1.0))
        [gradient] = full_gradients(model, [params], features, labels)
        params = {key: w - 0.2 * (gradient[key] + 1.0 * (w - start[key])) for key, w in params.items()}
    assert gammas[0] == 1.0
    assert gammas == sorted(gammas, reverse=True)
    assert gamma(model, params, start, features, labels, mu=1.0) < 1e-13
    assert gamma(model, params, start, features, labels, mu=0.0) > 0.1  # it does not minimise F alone


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_at_a_stationary_start_gamma_is_0_for_staying_and_infinite_for_leaving(mu):
    # A single class has softmax 1 and no gradient anywhere, so grad h = mu * (w_k - w^t).
    model = logistic((3,), 1)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    moved = {key: tensor + 1 for key, tensor in start.items()}
    x, y = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    assert gamma(model, start, start, x, y, mu) == 0.0
    assert gamma(model, moved, start, x, y, mu) == (math.inf if mu else 0.0)


def test_gradients_beyond_the_square_root_of_float32_have_a_finite_gamma():
    # Inputs of 1e25 make gradients of 1e25, whose squares overflow float32 but not the norm's float64.
    model = logistic((1,), 2)
    start = {"1.weight": torch.zeros(2, 1), "1.bias": torch.zeros(2)}
    x, y = torch.tensor([[1e25], [-1e25]]), torch.tensor([0, 1])
    assert gamma(model, start, start, x, y, mu=0.0) == 1.0


@pytest.mark.parametrize("name", MODELS)
def test_neither_points_nor_the_model_are_changed_even_without_autograd(name):
    model, start, solution = initialised(name), initialised(name, 1).state_dict(), initialised(name, 2).state_dict()
    before = copy.deepcopy((model.state_dict(), start, solution))
    with torch.no_grad():
        inside = gamma(model, solution, start, *examples(9), mu=0.5)
    assert inside == gamma(model, solution, start, *examples(9), mu=0.5)
    for now, then in zip((model.state_dict(), start, solution), before, strict=True):
        assert all(torch.equal(now[key], then[key]) for key in then)
    assert not any(tensor.requires_grad for tensor in (*start.values(), *solution.values()))


# Drift


def test_drift_is_the_norm_over_all_tensors_together():
    # Differences (1, -2), (2) and (-4): sqrt(1 + 4 + 4 + 16) = 5; the sum of the tensors' own norms is sqrt(5) + 2 + 4.
    start = {"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([0.0]), "c": torch.tensor(4.0)}
    moved = {"a": torch.tensor([[2.0, 3.0]]), "b": torch.tensor([2.0]), "c": torch.tensor(0.0)}
    assert drift(moved, start, ["a", "b", "c"]) == 5.0
    assert drift(start, start, ["a", "b", "c"]) == 0.0
    assert drift(moved, start, ["b"]) == 2.0


def test_the_squares_of_a_drift_are_summed_in_float64():
    # 2^24 + 1 has no float32: there the sum of 4096^2 and two halves would lose the halves.
    start = {"w": torch.zeros(3)}
    assert drift({"w": torch.tensor([4096.0, 0.5**0.5, 0.5**0.5])}, start, ["w"]) ** 2 == pytest.approx(
        2**24 + 1, abs=1e-6
    )


def test_a_diverged_model_has_no_finite_drift_or_gamma():
    assert math.isnan(drift({"w": torch.tensor([math.nan, 1.0])}, {"w": torch.zeros(2)}, ["w"]))
    assert drift({"w": torch.tensor([math.inf, 1.0])}, {"w": torch.zeros(2)}, ["w"]) == math.inf
    start = initialised("logistic", 1).state_dict()
    broken = {key: torch.full_like(tensor, math.nan) for key, tensor in start.items()}
    assert math.isnan(gamma(initialised("logistic"), broken, start, *examples(5), mu=1.0))


class Rectified(nn.Module):
    """A linear layer on the rectified input; counts its passes, which are a buffer."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.rectified, self.linear = nn.ReLU(inplace=inplace), nn.Linear(36, 4)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.linear(self.rectified(x.flatten(1)) * 2)


def test_a_model_may_change_its_input_and_buffers():
    model, same = Rectified(inplace=True), Rectified(inplace=False)
    x, y = torch.randn(7, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 4
    kept, point = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    gradients = full_gradients(model, [point, point], x, y)
    for gradient in gradients:
        for name, expected in full_gradients(same, [point], kept, y)[0].items():
            assert torch.equal(gradient[name], expected)
    assert torch.equal(x, kept)
    assert point["passes"] == 0
