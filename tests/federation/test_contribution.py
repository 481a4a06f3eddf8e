"""Contributions of a round's updates: their sum, clients that change nothing, and equal clients."""

import numpy as np
import pytest
import torch

from fedprox.engines.identity import act_as_server
from fedprox.evaluation.shapley import Shapley
from fedprox.federation.contribution import Contribution
from fedprox.federation.messages import TaskMessage
from fedprox.plan.plan import ClientTask
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.averaging import weighted_average
from fedprox.strategies.updates import TrainReply

START = {"w": np.array([1.0, -2.0], np.float32), "count": np.array(3)}
BEST = np.array([2.0, 0.5])


def loss(arrays) -> float:
    return float(np.square(arrays["w"].astype(float) - BEST).sum())


def replies(models: dict[tuple[int, int], tuple[list[float], int]]) -> list[TrainReply]:
    act_as_server()
    made = []
    for (client, draw), (w, num) in models.items():
        message = TaskMessage({"arrays": to_record(START)}, ClientTask(client, 1, 1, False, (), draw=draw))
        params = {"w": torch.tensor(w), "count": torch.tensor(3 + num)}
        made.append(TrainReply(message, params, {"num-examples": num}))
    return made


MODELS = {(5, 0): ([2.5, 0.0], 10), (2, 0): ([1.0, -2.0], 40), (5, 1): ([0.0, -3.0], 5), (8, 0): ([2.5, 0.0], 10)}


@pytest.mark.parametrize("weighted_by", ["num-examples", None])
def test_values_add_up_to_the_fall_of_the_loss_of_the_strategys_own_average(weighted_by):
    contribution = Contribution(Shapley(), loss, weighted_by)
    contribution.measure(1, to_record(START), replies(MODELS))
    average = weighted_average(replies(MODELS), weighted_by)
    after = loss({name: to_numpy(array) for name, array in average.items()})
    assert sum(contribution.values.values()) == pytest.approx(loss(START) - after, abs=1e-12)
    assert contribution.values.keys() == MODELS.keys()
    assert contribution.values[2, 0] == 0  # it sends w^t back
    assert contribution.values[5, 0] == pytest.approx(contribution.values[8, 0], abs=1e-12) != 0  # they send the same
    assert contribution.values[5, 1] < 0 < contribution.values[8, 0]  # away from the best model, and towards it


def test_a_quadratic_loss_has_values_in_closed_form():
    # v(S) = -|w + sum_S p_i u_i - b|^2, so phi_i = -2 p_i u_i (w - b) - p_i u_i sum_j p_j u_j, coordinate by coordinate
    contribution = Contribution(Shapley(), loss, "num-examples")
    contribution.measure(1, to_record(START), replies(MODELS))
    steps = {draw: num / 65 * (np.array(w) - START["w"]) for draw, (w, num) in MODELS.items()}
    for draw, step in steps.items():
        expected = -(2 * step * (START["w"] - BEST) + step * sum(steps.values())).sum()
        assert contribution.values[draw] == pytest.approx(expected, abs=1e-6)  # models are float32


def test_a_round_without_replies_has_no_values():
    contribution = Contribution(Shapley(), loss, None)
    contribution.measure(1, to_record(START), replies(MODELS))
    contribution.measure(2, to_record(START), [])
    assert contribution.values == {}
