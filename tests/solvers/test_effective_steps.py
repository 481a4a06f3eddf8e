"""The sum of the weights of a client's gradients: its closed forms, and what the reference solver's step does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprox.solvers.effective_steps import effective_steps
from fedprox.solvers.problem import SgdSettings
from fedprox.solvers.reference import step

STEPS = st.integers(0, 60)
RATE = st.floats(0.01, 1.0)


def sgd(rate: float = 0.1, momentum: float = 0.0) -> SgdSettings:
    return SgdSettings(rate, 1, momentum)


@given(STEPS, st.floats(0.0, 0.95))
def test_with_momentum_alone_it_is_the_papers_closed_form(num_steps, momentum):
    # (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)
    expected = (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)
    assert effective_steps(num_steps, sgd(momentum=momentum), 0.0) == pytest.approx(expected, rel=1e-9)


@given(STEPS, RATE, st.floats(0.01, 0.9))
def test_with_the_proximal_term_alone_it_is_the_papers_closed_form(num_steps, rate, pull):
    # (1 - (1 - eta mu)^K) / (eta mu)
    expected = (1 - (1 - pull) ** num_steps) / pull
    assert effective_steps(num_steps, sgd(rate), pull / rate) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 30), RATE, st.floats(0.0, 0.9), st.floats(0.0, 0.9))
def test_with_both_it_is_the_path_of_the_reference_solvers_step_for_a_gradient_of_one(num_steps, rate, momentum, pull):
    settings, mu = sgd(rate, momentum), pull / rate
    one = {"dtype": torch.float64}
    w, velocity = [torch.tensor([3.0], **one)], [torch.zeros(1, **one)] if momentum else None
    for _ in range(num_steps):
        step(w, [torch.ones(1, **one)], [torch.tensor([3.0], **one)], velocity, mu, settings)
    assert effective_steps(num_steps, settings, mu) == pytest.approx(float(3.0 - w[0]) / rate, rel=1e-9)
