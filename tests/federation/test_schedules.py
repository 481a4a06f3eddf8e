"""Schedules of mu (up after a rise, down after five falls in a row) and of the learning rate."""

import pytest
import torch

from fedprox.config import schema
from fedprox.evaluation.metrics import Evaluation, FederationMetrics
from fedprox.federation.schedules import AdaptiveMu, ConstantMu, epoch_factors, learning_rate_factor, mu_schedule


def measured(train_loss: float) -> Evaluation:
    """Return a model with this training loss, and a test loss that moves the other way."""
    return Evaluation(-train_loss, 0.25, FederationMetrics(train_loss, 0.5, -train_loss, 0.25, 1.0, 1.0, 1.0))


def values(losses, mu, **settings):
    schedule = AdaptiveMu(mu, **settings)
    seen = []
    for loss in losses:
        schedule.observe(measured(loss))
        seen.append(schedule.value)
    return seen


def test_rounds_without_a_training_loss_change_nothing():
    mu = AdaptiveMu(0.2, patience=1)
    for evaluation in (measured(1.0), None, Evaluation(9.0, 0.1), None, measured(2.0)):
        mu.observe(evaluation)
    assert mu.value == pytest.approx(0.3)


def test_a_restored_schedule_continues_like_the_one_whose_state_was_taken():
    losses = [5, 4, 3, 4, 3, 2, 1, 0, -1, -2]
    for done in range(len(losses)):
        one, other = AdaptiveMu(1.0, patience=3), AdaptiveMu(7.0, patience=3)
        for loss in losses[:done]:
            one.observe(measured(loss))
        other.restore(one.state())
        for loss in losses[done:]:
            one.observe(measured(loss)), other.observe(measured(loss))
            assert other.value == one.value


def test_a_constant_mu_stays_whatever_is_observed_or_restored():
    mu = ConstantMu(0.7)
    for loss in (1.0, 2.0):
        mu.observe(measured(loss))
    mu.restore(AdaptiveMu(0.2).state())
    assert (mu.value, mu.state()) == (0.7, None)
    adaptive = AdaptiveMu(0.2)
    adaptive.restore(mu.state())  # of a run that had a constant one
    assert adaptive.value == 0.2


def test_five_falls_in_a_row_subtract_a_step_and_restart_the_count():
    assert values(range(20, 8, -1), mu=1.0) == [1.0] * 5 + [0.9] * 5 + [0.8] * 2


def test_a_rise_ends_a_row_of_falls():
    assert values([9, 8, 7, 6, 5, 6, 5, 4, 3, 2, 1], mu=1.0) == [1.0] * 5 + [1.1] * 5 + [1.0]


def test_an_equal_loss_is_neither_and_ends_the_row():
    assert values([9, 8, 7, 6, 5, 5, 4, 3, 2, 1, 0], mu=1.0) == [1.0] * 10 + [0.9]


def test_mu_is_never_below_0():
    assert values(range(20, 8, -1), mu=0.05) == [0.05] * 5 + [0.0] * 7


def test_step_and_patience_are_settings():
    assert values([3, 2, 1, 2], mu=1.0, step=0.5, patience=2) == pytest.approx([1.0, 1.0, 0.5, 1.0])


def test_adaptive_mu_starts_at_mu_unless_it_has_its_own_initial_value():
    settings = schema.AdaptiveMu(enabled=True, initial=None, step=0.3, patience=2)
    assert mu_schedule(0.7, settings) == AdaptiveMu(0.7, 0.3, 2)
    assert mu_schedule(0.7, settings.model_copy(update={"initial": 0.0})) == AdaptiveMu(0.0, 0.3, 2)
    assert mu_schedule(0.7, settings.model_copy(update={"enabled": False})) == ConstantMu(0.7)


def test_a_constant_learning_rate_is_the_same_in_every_round():
    assert {learning_rate_factor("constant", round_num, 7, 0.0) for round_num in range(1, 8)} == {1.0}


@pytest.mark.parametrize(
    ("round_num", "final", "expected"),
    [
        # (1 + cos(pi (t - 1) / 4)) / 2 at t = 1, 2, 3, 4: cosines of 0, 45, 90 and 135 degrees
        (1, 0.0, 1.0),
        (2, 0.0, (1 + 0.5**0.5) / 2),
        (3, 0.0, 0.5),
        (4, 0.0, (1 - 0.5**0.5) / 2),
        (3, 0.2, 0.6),  # half of the way from 1 to 0.2
        (5, 0.2, 0.2),  # a round after the last
    ],
)
def test_a_cosine_falls_from_1_to_its_final_value(round_num, final, expected):
    assert learning_rate_factor("cosine", round_num, 4, final) == pytest.approx(expected, abs=1e-15)


def test_factors_of_epochs_are_torchs_cosine_stepped_after_every_epoch_of_every_round():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5 * 3, eta_min=0.01)
    found, expected = [], []
    for round_num in range(1, 6):
        found += epoch_factors(round_num, 5, num_epochs=3, final=0.01)
        for _ in range(3):
            expected.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    assert found == pytest.approx(expected, rel=1e-12)
    one = [epoch_factors(round_num, 5, num_epochs=1, final=0.2)[0] for round_num in range(1, 6)]
    assert one == [learning_rate_factor("cosine", round_num, 5, 0.2) for round_num in range(1, 6)]
