"""LSTM models: shapes, the equations by hand, initial values, trained and frozen parts."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.data.sources.glove import read_glove
from fedprox.errors import UserError
from fedprox.models.lstm import FrozenEmbedding, lstm_sent140, lstm_shakespeare
from fedprox.solvers.problem import LocalProblem, LocalWork, SgdSettings
from fedprox.solvers.reference import ReferenceSolver

WORDS, WIDTH = 6, 5


@pytest.fixture
def glove(tmp_path) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"w{row} {' '.join(f'{v:.4f}' for v in rng.normal(size=WIDTH))}\n" for row in range(WORDS)))
    return str(path)


def seeded(make, *arguments, **settings) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **settings)


def tokens(high: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def num_params(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def lstm_params(input_size: int, hidden: int) -> int:
    """Return the parameters of two layers: four gates, each with weights and PyTorch's two biases."""
    return 4 * hidden * (input_size + hidden + 2) + 4 * hidden * (hidden + hidden + 2)


def test_shakespeare_has_an_embedding_two_lstm_layers_and_one_dense_layer():
    for model, hidden in ((lstm_shakespeare((80,), 80), 100), (lstm_shakespeare((80,), 80, hidden_size=256), 256)):
        assert num_params(model) == 80 * 8 + lstm_params(8, hidden) + (hidden + 1) * 80
        assert model(tokens(80, (3, 80))).shape == (3, 80)
    # 132,720 in TensorFlow, with one bias per gate instead of PyTorch's two: 800 more.
    assert num_params(lstm_shakespeare((80,), 80)) == 132_720 + 2 * 400


def test_sent140_has_two_lstm_layers_and_dense_layers_of_30_and_1(glove):
    for model, hidden in ((lstm_sent140((25,), 2, glove), 256), (lstm_sent140((25,), 2, glove, hidden_size=100), 100)):
        assert num_params(model) == lstm_params(WIDTH, hidden) + (hidden + 1) * 30 + 31
        assert model(tokens(WORDS + 1, (3, 25))).shape == (3, 2)


def by_hand(state: dict[str, torch.Tensor], vectors: torch.Tensor, num_layers: int) -> torch.Tensor:
    """Return the LSTM's last output for vectors of shape (length, width), from the equations (float64)."""
    sequence = list(vectors)
    for layer in range(num_layers):
        w, u = state[f"lstm.weight_ih_l{layer}"], state[f"lstm.weight_hh_l{layer}"]
        bias = state[f"lstm.bias_ih_l{layer}"] + state[f"lstm.bias_hh_l{layer}"]
        h = c = torch.zeros(u.shape[1], dtype=u.dtype)
        outputs = []
        for x in sequence:
            i, f, g, o = (w @ x + u @ h + bias).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        sequence = outputs
    return sequence[-1]


def test_shakespeares_logits_are_the_dense_layer_of_the_last_output():
    model = seeded(lstm_shakespeare, (7,), 11, hidden_size=6, embedding_size=3).double()
    state = model.state_dict()
    for row in tokens(11, (3, 7)):
        last = by_hand(state, state["embedding.weight"][row], 2)
        torch.testing.assert_close(model(row[None])[0], state["head.weight"] @ last + state["head.bias"])


def test_sent140s_logits_are_0_and_the_two_dense_layers_of_the_last_output(glove):
    model = seeded(lstm_sent140, (4,), 2, glove, hidden_size=6, dense_size=3).double()
    state, vectors = model.state_dict(), torch.from_numpy(read_glove(glove).vectors).double()
    for row in tokens(WORDS + 1, (3, 4)):
        last = by_hand(state, vectors[row], 2)
        dense = state["head.0.weight"] @ last + state["head.0.bias"]
        z = state["head.1.weight"] @ dense + state["head.1.bias"]
        torch.testing.assert_close(model(row[None])[0], torch.cat([torch.zeros_like(z), z]))


def test_sent140s_loss_and_gradient_are_those_of_a_sigmoid(glove):
    model = seeded(lstm_sent140, (4,), 2, glove, hidden_size=6).double()
    x, y = tokens(WORDS, (9, 4)), tokens(2, (9,))
    logits = model(x)
    two = functional.cross_entropy(logits, y)
    one = functional.binary_cross_entropy_with_logits(logits[:, 1], y.double())
    torch.testing.assert_close(two, one)
    params = list(model.parameters())
    gradients = (torch.autograd.grad(loss, params, retain_graph=True) for loss in (two, one))
    for of_two, of_one in zip(*gradients, strict=True):
        torch.testing.assert_close(of_two, of_one)
    assert (logits.argmax(dim=1) == (logits[:, 1] > 0)).all()


def test_initial_values_are_those_of_tensorflows_cells(glove):
    # Glorot: uniform within sqrt(6 / (fan_in + fan_out)); a layer's fan_in is its input and its state together.
    hidden = 40
    shakespeare = seeded(lstm_shakespeare, (80,), 80, hidden_size=hidden).state_dict()
    sentiment = seeded(lstm_sent140, (25,), 2, glove, hidden_size=hidden).state_dict()
    bounds = [
        (shakespeare["embedding.weight"], 80 + 8),
        (shakespeare["head.weight"], hidden + 80),
        (sentiment["head.0.weight"], hidden + 30),
        (sentiment["head.1.weight"], 30 + 1),
    ]
    for state, width in ((shakespeare, 8), (sentiment, WIDTH)):
        for layer, input_size in ((0, width), (1, hidden)):
            total = input_size + hidden + 4 * hidden
            bounds += [(state[f"lstm.weight_{kind}_l{layer}"], total) for kind in ("ih", "hh")]
            bias = state[f"lstm.bias_ih_l{layer}"] + state[f"lstm.bias_hh_l{layer}"]
            # Gates in PyTorch's order: input, forget, cell, output.
            assert bias.tolist() == [0.0] * hidden + [1.0] * hidden + [0.0] * (2 * hidden)
    for weight, total in bounds:
        bound = math.sqrt(6 / total)
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.8 * bound  # of 30 or more draws
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.3)
    assert not any(
        state[name].any()
        for state in (shakespeare, sentiment)
        for name in state
        if name.startswith("head") and "bias" in name
    )


# Frozen vectors


def test_the_vectors_are_not_parameters_and_not_sent(glove):
    model = lstm_sent140((25,), 2, glove, hidden_size=4)
    names = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == names
    assert not any(name.startswith("embedding") for name in names)
    model.load_state_dict(model.state_dict())  # strict: nothing is missing


def test_the_vectors_are_the_files_and_unknown_words_are_zero(glove):
    model = lstm_sent140((25,), 2, glove, hidden_size=4)
    looked_up = model.embedding(torch.arange(WORDS + 1))
    assert (looked_up.numpy() == read_glove(glove).vectors).all()
    assert not looked_up[WORDS].any()
    assert len(lstm_sent140((25,), 2, glove, max_words=2).embedding.vectors) == 3


def test_copies_share_the_vectors_and_nothing_else(glove):
    model = lstm_sent140((25,), 2, glove, hidden_size=4)
    copied = copy.deepcopy(model)
    assert copied.embedding.vectors.data_ptr() == model.embedding.vectors.data_ptr()
    for one, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert one.data_ptr() != other.data_ptr()
    copied.double()  # as a move to another device does, this makes vectors of the copy's own
    assert isinstance(copied.embedding, FrozenEmbedding)
    assert (copied.embedding.vectors.dtype, model.embedding.vectors.dtype) == (torch.float64, torch.float32)


# With the solver


@pytest.fixture(params=["shakespeare", "sent140"])
def problem(request, glove):
    """Return a model, examples and labels."""
    if request.param == "shakespeare":
        return seeded(lstm_shakespeare, (6,), 9, hidden_size=5), tokens(9, (8, 6)), tokens(9, (8,), seed=1)
    return seeded(lstm_sent140, (6,), 2, glove, hidden_size=5), tokens(WORDS + 1, (8, 6)), tokens(2, (8,), seed=1)


def test_two_steps_are_those_of_the_formula(problem):
    # w1 = w0 - lr * g(w0), as w0 = w^t; w2 = w1 - lr * (g'(w1) + mu * (w1 - w^t)), on the two halves of the data.
    (model, x, y), mu = problem, 0.7
    start = {name: value.clone() for name, value in model.state_dict().items()}
    work = LocalWork(orders=[np.arange(8)], num_steps=2, mu=mu)
    solution = ReferenceSolver(model, SgdSettings(0.5, 4)).solve(LocalProblem(start, x, y, work))

    expected = copy.deepcopy(model)
    for half in (slice(0, 4), slice(4, 8)):
        loss = functional.cross_entropy(expected(x[half]), y[half])
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for (name, param), gradient in zip(expected.named_parameters(), gradients, strict=True):
                param -= 0.5 * (gradient + mu * (param - start[name]))
    for name, param in expected.named_parameters():
        torch.testing.assert_close(solution.params[name], param.detach(), msg=name)  # float32
        assert (solution.params[name] != start[name]).any(), name


def test_training_leaves_the_vectors_as_they_are(glove):
    model = seeded(lstm_sent140, (6,), 2, glove, hidden_size=5)
    before = model.embedding.vectors.clone()
    work = LocalWork(orders=[np.arange(8)] * 3, num_steps=6, mu=0.1)
    solver = ReferenceSolver(model, SgdSettings(0.5, 4))
    solution = solver.solve(LocalProblem(model.state_dict(), tokens(WORDS + 1, (8, 6)), tokens(2, (8,)), work))
    assert set(solution.params) == {name for name, _ in model.named_parameters()}
    assert (model.embedding.vectors == before).all()


# Errors


@pytest.mark.parametrize("shape", [(28, 28), ()])
def test_inputs_that_are_not_sequences_are_refused(glove, shape):
    for make, arguments in ((lstm_shakespeare, (shape, 80)), (lstm_sent140, (shape, 2, glove))):
        with pytest.raises(UserError, match=r"needs sequences of tokens, got inputs of shape .*; use model=logistic"):
            make(*arguments)


def test_numbers_instead_of_tokens_are_refused(glove):
    for model in (lstm_shakespeare((60,), 10, hidden_size=4), lstm_sent140((60,), 2, glove, hidden_size=4)):
        with pytest.raises(UserError, match=r"take tokens, int64, got torch\.float32; use model=logistic"):
            model(torch.zeros(2, 60))


@pytest.mark.parametrize("size", ["hidden_size", "num_layers", "embedding_size", "dense_size"])
def test_sizes_below_one_are_refused(glove, size):
    make, arguments = (lstm_sent140, ((25,), 2, glove))
    if size == "embedding_size":
        make, arguments = (lstm_shakespeare, ((80,), 80))
    with pytest.raises(UserError, match=rf"model\.{size} must be between 1 and 16384, got 0"):
        make(*arguments, **{size: 0})


def test_sent140_refuses_other_than_two_classes(glove):
    with pytest.raises(UserError, match="has two classes, got 3"):
        lstm_sent140((25,), 3, glove)
