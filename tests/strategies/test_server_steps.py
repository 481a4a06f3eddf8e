"""Server steps beyond the mean: one step by hand, the strategies that they generalise, and what stays as it is."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedprox.engines.identity import act_as_server
from fedprox.errors import UserError
from fedprox.federation.messages import node_id
from fedprox.federation.planned_strategy import CohortGrid, _take_cohort_as_it_is
from fedprox.federation.strategy_state import StrategyState
from fedprox.runs.serialize import decoded, encoded
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.corrected import FedDyn, Scaffold
from fedprox.strategies.fednova import FedNova
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.server_optimisers import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedprox.strategies.server_step import ServerStep

SIZES = np.array([1, 3, 4])  # of clients 0, 1 and 2
RATE = 0.5  # of the clients


class Run:
    """A strategy with clients whose replies the test chooses.

    Attributes:
        strategy: The strategy.
        arrays: The global model.
        corrections: What the last round's clients were sent to add to their gradients, by client.
    """

    def __init__(self, strategy: FedProx, start: dict, mu: float = 0.0, momentum: float = 0.0, **config) -> None:
        act_as_server()
        self.strategy, self.arrays, self.corrections = strategy, to_record(start), {}
        self._config = {"proximal-mu": mu, **config}
        _take_cohort_as_it_is(strategy)
        if isinstance(strategy, ServerStep):
            names = [name for name in start if name != "count"]
            strategy.prepare(names, SIZES, SgdSettings(RATE, 1, momentum))

    def round(self, models: dict, num_steps: dict | None = None, variates: dict | None = None, num: int = 1) -> dict:
        """Let clients, by number, reply with models, and return the next one."""
        grid = CohortGrid([node_id(client) for client in models])
        config = ConfigRecord({**self._config})
        asked = {
            each.metadata.dst_node_id: each for each in self.strategy.configure_train(num, self.arrays, config, grid)
        }
        replies = []
        for client, model in models.items():
            message = asked[node_id(client)]
            if "correction" in message.content:
                record = message.content["correction"]
                self.corrections[client] = {name: to_numpy(array) for name, array in record.items()}
            metrics = {"num-examples": int(SIZES[client]), "num-steps": (num_steps or {}).get(client, 1)}
            content = RecordDict({"arrays": to_record(model), "metrics": MetricRecord(metrics)})
            if variates:
                content["variate"] = to_record(variates[client])
            replies.append(Message(content, reply_to=message))
        arrays, _ = self.strategy.aggregate_train(num, replies)
        self.arrays = ArrayRecord({**arrays})
        return {name: to_numpy(array) for name, array in arrays.items()}


def one(*values: float) -> dict:
    return {"w": np.array(values, np.float32)}


def many(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(2, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}


# Two rounds from w = 1 with mean updates 2 and then -1, both from client 0 alone.
TAU = 0.5
TWO_ROUNDS = {
    # v = 2, w = 1 + 0.5 * 2 = 2; v = 0.9 * 2 - 1 = 0.8, w = 2 + 0.5 * 0.8
    "FedAvgM": (FedAvgM(0.5, 0.9), [2.0, 2.4]),
    # v = 0.25 + 4, w = 1 + 0.1 * 2 / (sqrt(4.25) + 0.5); v = 5.25
    "FedAdagrad": (
        FedAdagrad(0.1, 0.0, TAU),
        [1 + 0.2 / (4.25**0.5 + 0.5), 1 + 0.2 / (4.25**0.5 + 0.5) - 0.1 / (5.25**0.5 + 0.5)],
    ),
    # m = 0.2, v = 0.99 * 0.25 + 0.01 * 4 = 0.2875; m = 0.9 * 0.2 - 0.1 = 0.08, v = 0.99 * 0.2875 + 0.01 = 0.294625
    "FedAdam": (
        FedAdam(0.1, 0.9, 0.99, TAU),
        [1 + 0.02 / (0.2875**0.5 + 0.5), 1 + 0.02 / (0.2875**0.5 + 0.5) + 0.008 / (0.294625**0.5 + 0.5)],
    ),
    # v = 0.25 - 0.01 * 4 * sign(0.25 - 4) = 0.29; v = 0.29 - 0.01 * sign(0.29 - 1) = 0.3
    "FedYogi": (
        FedYogi(0.1, 0.9, 0.99, TAU),
        [1 + 0.02 / (0.29**0.5 + 0.5), 1 + 0.02 / (0.29**0.5 + 0.5) + 0.008 / (0.3**0.5 + 0.5)],
    ),
}


@pytest.mark.parametrize(("strategy", "expected"), TWO_ROUNDS.values(), ids=TWO_ROUNDS)
def test_two_rounds_of_a_server_optimiser_are_those_of_its_papers_formula(strategy, expected):
    run = Run(strategy, one(1.0))
    first = run.round({0: one(3.0)})["w"]
    second = run.round({0: one(float(first[0]) - 1)}, num=2)["w"]
    assert (first.dtype, second.dtype) == (np.float32, np.float32)
    assert [first[0], second[0]] == pytest.approx(expected, rel=1e-6)


def test_the_servers_schedule_scales_a_step():
    run = Run(FedAvgM(0.5, 0.9), one(1.0), **{"server-learning-rate-factor": 0.5})
    assert run.round({0: one(3.0)})["w"].tolist() == [1.5]


@pytest.mark.parametrize("make", [lambda: FedAvgM(1.0, 0.0), FedNova, Scaffold], ids=["FedAvgM", "FedNova", "SCAFFOLD"])
@given(st.lists(st.integers(0, 2**31), min_size=4, max_size=4), st.integers(1, 50))
def test_without_momentum_with_equal_work_and_with_zero_variates_they_are_fedavg(make, seeds, num_steps):
    models = {client: many(seed) for client, seed in enumerate(seeds[1:])}
    start, zeros = many(seeds[0]), {name: np.zeros_like(value) for name, value in many(0).items()}
    strategy = make()
    variates = dict.fromkeys(models, zeros) if isinstance(strategy, Scaffold) else None
    found = Run(strategy, start).round(models, dict.fromkeys(models, num_steps), variates)
    for name, value in Run(FedProx(), start).round(models).items():
        assert found[name].dtype == np.float32
        # FedNova divides by the steps and multiplies by their mean; the others are exact.
        assert found[name] == pytest.approx(value, rel=1e-6 if make is FedNova else 0, abs=1e-7 * (make is FedNova))


@pytest.mark.parametrize(
    ("mu", "momentum", "taus"),
    [(0.0, 0.0, (1, 4)), (0.0, 0.5, (1, 1.875 + 1.75 + 1.5 + 1)), (1.0, 0.0, (1, 0.125 + 0.25 + 0.5 + 1))],
)
def test_fednova_weighs_updates_per_step(mu, momentum, taus):
    # Clients 0 and 1 have 1 and 3 examples, do 1 and 4 steps, and move by 1 and -8.
    run = Run(FedNova(), one(10.0), mu, momentum)
    found = run.round({0: one(11.0), 1: one(2.0)}, {0: 1, 1: 4})["w"]
    mean_tau = (taus[0] + 3 * taus[1]) / 4
    assert found[0] == pytest.approx(10 + mean_tau * (1 / taus[0] - 3 * 8 / taus[1]) / 4, rel=1e-6)


def test_fednova_counts_a_client_without_a_step_as_one_that_stays():
    found = Run(FedNova(), one(0.0)).round({0: one(0.0), 1: one(2.0)}, {0: 0, 1: 2})["w"]
    assert found[0] == pytest.approx(0.75 * 2 * (0.75 * 1))  # tau_eff = 1.5, one client with p = 0.75 moves 1 per step


def test_scaffold_corrects_by_the_difference_of_variates_and_changes_them_by_the_clients_shares():
    # n = 8; c = 1/8 * 4 + 3/8 * -8 = -2.5 after round 1. In round 2 client 1 has c_1 = -6: c = -2.5 + 3/8 * 2.
    run = Run(Scaffold(), one(0.0))
    run.round({0: one(1.0), 1: one(1.0)}, variates={0: one(4.0), 1: one(-8.0)})
    assert {client: each["w"][0] for client, each in run.corrections.items()} == {0: 0.0, 1: 0.0}
    run.round({1: one(1.0), 2: one(1.0)}, variates={1: one(-6.0), 2: one(0.0)}, num=2)
    assert (run.corrections[1]["w"][0], run.corrections[2]["w"][0]) == (-2.5 + 8, -2.5)
    run.round({0: one(1.0), 1: one(1.0)}, variates={0: one(0.0), 1: one(0.0)}, num=3)
    assert (run.corrections[0]["w"][0], run.corrections[1]["w"][0]) == (-1.75 - 4, -1.75 + 6)


def test_scaffold_with_equal_weights_is_the_papers():
    # c = (|S| / N) * mean of the changes = 2/3 * -2, and the step eta_g * mean.
    run = Run(Scaffold(server_learning_rate=0.5, weighting="equal"), one(0.0))
    assert run.round({0: one(1.0), 1: one(3.0)}, variates={0: one(4.0), 1: one(-8.0)})["w"].tolist() == [1.0]
    run.round({2: one(1.0)}, variates={2: one(0.0)}, num=2)
    assert run.corrections[2]["w"][0] == pytest.approx(-4 / 3)


def test_feddyn_takes_two_rounds_as_its_equations_say():
    # mu = 0.5. Round 1: client 0 (p = 1/8) moves by 2, client 1 (p = 3/8) by -2: h_0 = -1, h_1 = 1,
    # h = -(1/8 * 1 - 3/8 * 1) = 0.25; w = mean (1/4 * 2 - 3/4 * 2 = -1) - 0.25 / 0.5 = -1.5.
    run = Run(FedDyn(), one(0.0), mu=0.5)
    assert run.round({0: one(2.0), 1: one(-2.0)})["w"].tolist() == [-1.5]
    # Round 2: client 0 moves by 1: h_0 = -1.5, h = 0.25 - 1/8 * 0.5 = 0.1875; w = -0.5 - 0.375.
    assert run.round({0: one(-0.5)}, num=2)["w"].tolist() == [-0.875]
    assert run.corrections[0]["w"].tolist() == [1.0]
    run.round({0: one(0.0), 1: one(0.0)}, num=3)
    assert (run.corrections[0]["w"].tolist(), run.corrections[1]["w"].tolist()) == ([1.5], [-1.0])


def test_feddyns_step_does_not_depend_on_mu_and_its_corrections_vanish_with_it():
    # h / mu = -sum p_k (w_k - w^t), over all rounds: alpha -> 0 leaves FedAvg's clients, and this on the server.
    for mu in (1e-9, 0.5):
        run = Run(FedDyn(), one(0.0), mu=mu)
        found = [run.round({0: one(2.0), 1: one(-2.0)})["w"][0], run.round({0: one(-0.5)}, num=2)["w"][0]]
        assert found == pytest.approx([-1.5, -0.875])
    tiny = Run(FedDyn(), one(0.0), mu=1e-9)
    tiny.round({0: one(2.0)})
    tiny.round({0: one(2.0)}, num=2)
    assert tiny.corrections[0]["w"][0] == pytest.approx(2e-9)


MAKE = {
    "FedAvgM": FedAvgM, "FedAdagrad": FedAdagrad, "FedAdam": FedAdam, "FedYogi": FedYogi, "FedNova": FedNova,
    "SCAFFOLD": Scaffold, "FedDyn": FedDyn,
}  # fmt: skip


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_restored_strategy_continues_to_the_byte_and_buffers_are_averaged(make):
    start = {**many(0), "count": np.array(4)}

    def replies(number: int) -> dict:
        return {client: {**many(10 * number + client), "count": np.array(4 + 3 * client)} for client in range(3)}

    def variates(number: int) -> dict | None:
        return {client: many(100 + number + client) for client in range(3)} if make is Scaffold else None

    whole, broken = Run(make(), start, mu=0.1), Run(make(), start, mu=0.1)
    state, resumed = StrategyState(broken.strategy), Run(make(), start, mu=0.1)
    fresh = StrategyState(resumed.strategy)
    for number in (1, 2):
        broken.round(replies(number), variates=variates(number), num=number)
        found = whole.round(replies(number), variates=variates(number), num=number)
        assert found["count"] == round((1 * 4 + 3 * 7 + 4 * 10) / 8)
    fresh.restore(decoded(*encoded(state.take())))
    resumed.arrays = broken.arrays
    taken = [each.round(replies(3), variates=variates(3), num=3) for each in (whole, resumed)]
    assert all(value.tobytes() == taken[1][name].tobytes() for name, value in taken[0].items())
    # The next round's corrections are the same, too.
    for each in (whole, resumed):
        each.round(replies(4), variates=variates(4), num=4)
    assert str(whole.corrections) == str(resumed.corrections)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: FedAvgM(server_learning_rate=0.0), "strategy.server_learning_rate must be > 0, got 0"),
        (lambda: FedAvgM(server_momentum=1.0), "strategy.server_momentum must be at least 0 and below 1, got 1"),
        (lambda: FedAdam(beta_1=-0.1), "strategy.beta_1 must be at least 0 and below 1, got -0.1"),
        (lambda: FedYogi(beta_2=1.0), "strategy.beta_2 must be at least 0 and below 1, got 1"),
        (lambda: FedAdagrad(tau=0.0), "strategy.tau must be > 0, got 0"),
        (lambda: Scaffold(option=3), "strategy.option must be 1 or 2, got 3"),
        (lambda: Scaffold(server_learning_rate=-1.0), "strategy.server_learning_rate must be > 0, got -1"),
        (lambda: FedDyn(weighting="size"), "strategy.weighting must be examples or equal, got size"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(make, rule):
    with pytest.raises(UserError, match=rule):
        make()


@pytest.mark.parametrize("make", [FedProx, lambda **own: FedAvgM(1.0, 0.0, **own), Scaffold])
def test_the_mean_may_be_weighted_by_steps(make):
    # Clients 0 and 2, with 1 and 4 examples, have done 3 steps and 1: (3 * 2 + 1 * 6) / 4 = 3.
    run = Run(make(weighted_by_key="num-steps"), one(1.0))
    variates = {0: one(4.0), 2: one(8.0)} if isinstance(run.strategy, Scaffold) else None
    assert run.round({0: one(2.0), 2: one(6.0)}, {0: 3, 2: 1}, variates)["w"] == pytest.approx([3.0])
    if variates:  # two of three clients: c = 2/3 * (3 * 4 + 1 * 8) / 4
        assert run.strategy.state_dict()["server"] == pytest.approx([2 / 3 * 5.0])


def test_without_a_single_step_the_model_stays_whatever_the_weights():
    run = Run(FedProx(weighted_by_key="num-steps"), one(1.0))
    assert run.round({0: one(1.0), 2: one(1.0)}, {0: 0, 2: 0})["w"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weighting": "equal", "weighted_by_key": "num-steps"}, "has no effect with strategy.weighting=equal"),
        ({"correct": "odd"}, "strategy.correct must be gradients or steps, got odd"),
        ({"correct": "steps", "option": 1}, "use strategy.option=2"),
    ],
)
def test_scaffold_refuses_what_has_no_meaning(settings, line):
    with pytest.raises(UserError, match=line):
        Scaffold(**settings)
