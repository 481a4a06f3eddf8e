"""Reconstruction from updates made by hand: decay that is known, gradient matching, and what no attack takes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedprox.data.federated import LabelledData
from fedprox.errors import UserError
from fedprox.leakage.defences import defences
from fedprox.leakage.reconstruction import psnr, reconstructed, scaled, without_decayed
from fedprox.leakage.recorded import RecordedUpdate
from fedprox.solvers.problem import SgdSettings

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, size=(20, 6, 6)).astype(np.uint8)


def recorded(model: nn.Module, features=IMAGES[:1], labels=(3,), learning_rate=0.1) -> RecordedUpdate:
    """Return the update of one full-batch step without decay."""
    labels = np.array(labels)
    data = LabelledData.without_test_set(IMAGES, np.arange(20) % 10, 10, mean=8.0, std=5.0)
    x = torch.from_numpy(data.model_input(features))
    functional.cross_entropy(model(x), torch.from_numpy(labels)).backward()
    before = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    after = {name: before[name] - learning_rate * value.grad.numpy() for name, value in model.named_parameters()}
    return RecordedUpdate(
        *(SimpleNamespace(seed=0), 1, 0, model, before, after, list(before), 1),
        sgd=SgdSettings(learning_rate, 10),
        mu=1.0,
        features=features,
        labels=labels,
        examples=data,
    )


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(288, 10))
    return nn.Sequential(*layers)


def test_a_linear_layer_behind_others_gives_one_example_away_too():
    torch.manual_seed(0)
    update = recorded(nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 10)))
    guesses = reconstructed(update, update.delta)
    assert max(psnr(scaled(IMAGES[0], update.examples), guess) for guess in guesses) > 60


def test_gradient_matching_comes_far_nearer_than_the_mean_example():
    update = recorded(small_cnn())
    original, (guess,) = scaled(IMAGES[0], update.examples), reconstructed(update, update.delta)
    assert psnr(original, guess) > 20 > 2 + psnr(original, scaled(IMAGES.mean(axis=0), update.examples))


@given(
    st.floats(0, 0.9),
    st.floats(0, 0.5),
    st.floats(0, 2),
    st.integers(1, 6),
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
)
def test_without_decay_an_update_is_the_same_from_every_start(momentum, decay, mu, num_steps, start):
    # The steps are linear, so what is left depends on the gradients alone, whatever w^t was.
    gradients, sgd = RNG.normal(size=(num_steps, 3)), SgdSettings(0.1, 1, momentum, decay)

    def left(w0: np.ndarray) -> np.ndarray:
        w, velocity = w0.copy(), np.zeros(3)
        for gradient in gradients:
            velocity = momentum * velocity + gradient + decay * w + mu * (w - w0)
            w = w - 0.1 * velocity
        update = SimpleNamespace(sgd=sgd, mu=mu, num_steps=num_steps, before={"w": w0})
        return without_decayed(update, {"w": w - w0})["w"]

    assert left(np.array(start)) == pytest.approx(left(np.zeros(3)), abs=1e-9)


def test_tokens_and_large_clients_are_refused():
    tokens = recorded(small_cnn())
    object.__setattr__(tokens, "features", np.zeros((1, 4), np.int64))
    with pytest.raises(UserError, match="this run's examples are tokens"):
        reconstructed(tokens, tokens.delta)
    large = recorded(small_cnn(), IMAGES[:17], np.arange(17) % 10)
    with pytest.raises(
        UserError, match="client=0 has 17 examples, too many for gradient matching, which takes at most 16"
    ):
        reconstructed(large, large.delta)


def test_defences_do_what_their_names_say():
    update, made = RNG.normal(size=4000) / 100, defences(2.0)
    arrived = {name: defend(update, np.random.default_rng(1)) for name, defend in made.items()}
    norm = np.linalg.norm(update)
    assert arrived["as sent"].tolist() == update.tolist()
    assert np.linalg.norm(arrived["clipped"]) == pytest.approx(norm / 2)
    noise = arrived["clipped, noise 2"] - arrived["clipped"]
    assert noise.std() == pytest.approx(2 * norm / 2, rel=0.05)  # 4.5 standard errors
    assert np.count_nonzero(arrived["top 10%"]) == 400
    assert 0 < np.abs(arrived["8 bits"] - update).max() <= norm / 127
    assert np.abs(np.corrcoef(arrived["masked"], update)[0, 1]) < 0.08  # 5 standard errors of independent vectors
