"""The memory that a cohort takes."""

import pytest
import torch
from torch import nn

from fedprox.models.cnn import cnn_tutorial
from fedprox.models.mlp import mlp
from fedprox.solvers.memory import activation_bytes, client_bytes, clients_at_once, clients_that_fit
from fedprox.solvers.problem import SgdSettings

MODEL, EXAMPLES = mlp((5,), 3, hidden_size=7), torch.zeros(1, 5)
WEIGHTS = 4 * (5 * 7 + 7 + 7 * 3 + 3)
# Autograd keeps the input of each linear layer; ReLU's output is the second one's input.
ACTIVATIONS = 4 * (5 + 7 + 7)


def test_a_client_takes_its_models_and_twice_the_activations_of_a_batch():
    # The example itself is counted, too: as an input of the model it is a copy.
    assert ACTIVATIONS - 4 * 7 <= activation_bytes(MODEL, EXAMPLES) - EXAMPLES.nbytes <= ACTIVATIONS
    batch = 10 * 2 * activation_bytes(MODEL, EXAMPLES)
    assert client_bytes(MODEL, SgdSettings(0.1, 10), EXAMPLES) == 3 * WEIGHTS + batch
    assert client_bytes(MODEL, SgdSettings(0.1, 10, momentum=0.9), EXAMPLES) == 4 * WEIGHTS + batch
    assert client_bytes(MODEL, SgdSettings(0.1, 10, optimizer=torch.optim.Adam), EXAMPLES) == 5 * WEIGHTS + batch


@pytest.mark.parametrize("num_fit", [1, 3, 10, 11])
def test_as_many_clients_train_at_once_as_fit_into_four_fifths_of_the_free_memory(num_fit, caplog):
    caplog.set_level("INFO")
    sgd = SgdSettings(0.1, 10)
    free = -(-num_fit * client_bytes(MODEL, sgd, EXAMPLES) * 5 // 4)
    assert clients_that_fit(MODEL, sgd, EXAMPLES, 10, free) == (None if num_fit >= 10 else num_fit)
    assert ("would take" in caplog.text) == (num_fit < 10)
    assert clients_that_fit(MODEL, sgd, EXAMPLES, 10, free_bytes=1) == 1  # it may fail, and says so then


def test_batch_norm_can_be_estimated_and_a_cpu_has_no_limit():
    model = nn.Sequential(cnn_tutorial((3, 32, 32), 4), nn.BatchNorm1d(4))
    assert client_bytes(model, SgdSettings(0.1, 10), torch.zeros(1, 3, 32, 32)) > 10 * 2 * 4 * 3 * 32 * 32
    assert clients_at_once(model, SgdSettings(0.1, 10), torch.zeros(1, 3, 32, 32), 10, "cpu") is None
