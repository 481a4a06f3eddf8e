"""The loop over rounds, with a fake engine whose clients reply by a formula."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped
from fedprox.evaluation.metrics import Evaluation, FederationMetrics
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import draw_of, failed, task_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import ClientOutcome, Round
from fedprox.federation.rounds import RoundSettings, run_rounds
from fedprox.federation.schedules import AdaptiveMu, ConstantMu
from fedprox.plan.plan import ClientTask, Plan
from fedprox.plan.protocols import FlowerProtocol, PaperProtocol
from fedprox.strategies.fedprox import FedAvgWithStragglerDrop, FedProx

SIZES = np.array([1, 4, 2, 8, 3, 5])


class FakeEngine:
    """Client k adds k + 1 to the model, reports the loss k / 10 and does its task's steps."""

    def __init__(self) -> None:
        act_as_server()
        self.rounds: list[list[Message]] = []

    def send_and_receive(self, messages, *, timeout=None):
        self.rounds.append(list(messages))
        return [self._reply(message) for message in messages]

    def facts(self) -> dict[str, object]:
        return {}

    def peak_memory_bytes(self) -> int:
        return 0

    def _reply(self, message: Message) -> Message:
        task = task_of(message)
        w = message.content["arrays"]["w"].numpy() + task.client + 1
        metrics = {
            "num-examples": int(SIZES[task.client]),
            "train-loss": task.client / 10,
            "num-steps": task.num_steps,
        }
        if message.content["config"]["measure-gamma"]:
            metrics["gamma"] = task.client / 100
        if message.content["config"]["proximal-mu"] > 0:
            metrics["drift"] = float(task.client + 1)
        return Message(
            RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord(metrics)}),
            reply_to=message,
        )


def plan(fraction: float, protocol=None, per_round: int = 4) -> Plan:
    return Plan(SIZES, per_round, 3, 2, fraction, protocol or PaperProtocol(), seed=0)


def measured(_: int, arrays: ArrayRecord) -> Evaluation:
    """Return a fake measurement: the loss is the model itself."""
    return Evaluation(loss=float(arrays["w"].numpy()[0]), accuracy=0.25)


def started(strategy, plan: Plan, num_rounds=5, mu=0.5, engine=None, evaluate=measured, start=None, **settings):
    """Return the iterator over rounds from w = 10."""
    return run_rounds(
        ArrayRecord({"w": Array(np.array([10.0]))}),
        PlannedStrategy(strategy, plan),
        engine or FakeEngine(),
        evaluate,
        RoundSettings(num_rounds, mu if isinstance(mu, AdaptiveMu) else ConstantMu(mu), **settings),
        start,
    )


def run(strategy, plan: Plan, engine: FakeEngine | None = None, **settings) -> tuple[list[Round], FakeEngine]:
    engine = engine or FakeEngine()
    return list(started(strategy, plan, engine=engine, **settings)), engine


def model(outcome: Round) -> float:
    return float(outcome.arrays["w"].numpy()[0])


def outcome(num_examples: int, train_loss: float | None, counted: bool, drift: float | None = None) -> ClientOutcome:
    task = ClientTask(0, 1, 1, not counted, (0, 0, 1, 0))
    return ClientOutcome(task, num_examples, 1, train_loss, counted, drift=drift)


@pytest.mark.parametrize("num_rounds", [1, 5])
def test_round_0_is_the_initial_model_and_then_every_round_is_yielded(num_rounds):
    rounds, engine = run(FedProx(), plan(0.5), num_rounds=num_rounds)
    assert [each.round_num for each in rounds] == list(range(num_rounds + 1))
    assert len(engine.rounds) == num_rounds
    first = rounds[0]
    assert (model(first), first.clients, first.num_clients_counted) == (10.0, (), 0)
    assert first.train_loss_cohort is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_rounds_that_ended_come_before_the_error_that_ends_the_run(error):
    class FailingEngine(FakeEngine):
        def send_and_receive(self, messages, *, timeout=None):
            if len(self.rounds) == 3:
                raise error("in round 4")
            return super().send_and_receive(messages, timeout=timeout)

    ended = []
    with pytest.raises(error, match="in round 4"):
        ended.extend(each.round_num for each in started(FedProx(), plan(0.5), engine=FailingEngine()))
    assert ended == [0, 1, 2, 3]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_resumed_run_has_the_remaining_rounds(done):
    losses = [1.0, 2.0, 3.0, 2.5, 2.0, 2.2]
    whole = list(started(FedProx(), plan(0.5), mu=AdaptiveMu(0.2, patience=2), evaluate=training(*losses)))
    evaluate = training(*losses[done + 1 :])
    rest = list(started(FedProx(), plan(0.5), mu=AdaptiveMu(0.2, patience=2), evaluate=evaluate, start=whole[done]))
    assert [each.round_num for each in rest] == list(range(done + 1, 6))
    assert [each.time_s for each in whole] == sorted(each.time_s for each in whole)
    for one, other in zip(whole[done + 1 :], rest, strict=True):
        assert (model(one), one.mu, one.clients, one.carried) == (model(other), other.mu, other.clients, other.carried)
        assert other.time_s >= whole[done].time_s


@pytest.mark.parametrize("strategy", [FedProx, FedAvgWithStragglerDrop])
def test_each_round_starts_at_the_previous_model_and_only_clients_that_count_move_it(strategy):
    # The new model is w + sum n_k (k + 1) / sum n_k over the clients that count.
    rounds, _ = run(strategy(), plan(0.5))
    expected = 10.0
    for each in rounds[1:]:
        drops = strategy is FedAvgWithStragglerDrop
        clients = [client.task.client for client in each.clients if not (drops and client.task.is_straggler)]
        expected += sum(SIZES[k] * (k + 1) for k in clients) / sum(SIZES[k] for k in clients)
        assert model(each) == pytest.approx(expected, rel=1e-12)  # float64 throughout
        assert each.test == Evaluation(loss=model(each), accuracy=0.25)


def test_without_clients_the_model_stays_and_the_run_continues():
    # protocol=flower: some rounds have survivors, some have none.
    rounds, engine = run(FedAvgWithStragglerDrop(), plan(0.8, FlowerProtocol()), num_rounds=20)
    empty = [each for each in rounds[1:] if all(client.task.is_straggler for client in each.clients)]
    assert 0 < len(empty) < 20
    assert len(rounds) == 21
    for each in empty:
        assert model(each) == model(rounds[each.round_num - 1])
        assert each.num_clients_counted == 0
        assert each.train_loss_cohort is None
        assert engine.rounds[each.round_num - 1] == []
    moved = [each for each in rounds[1:] if each not in empty]
    assert all(model(each) != model(rounds[each.round_num - 1]) for each in moved)


class SecondDrawFails(FakeEngine):
    """The second draw of every client raises; the first adds 1 to the model, a third 3 and so on."""

    def _reply(self, message: Message) -> Message:
        draw = draw_of(message)
        if draw == 1:
            return failed(message, "ValueError: no")
        reply = super()._reply(message)
        reply.content["arrays"] = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + draw + 1)})
        return reply


def test_every_draw_of_a_client_has_its_own_outcome_and_may_fail_alone():
    # Two clients, six draws: the new model is w + the simple mean of draw + 1 over the draws that count.
    two = replace(plan(0.5), client_sizes=SIZES[:2], clients_per_round=6, sampling="proportional")
    rounds, _ = run(FedProx(), two, engine=SecondDrawFails(), failures=FailurePolicy(on_client_error="drop"))
    expected = 10.0
    for each in rounds[1:]:
        assert [client.task for client in each.clients] == list(two.tasks(each.round_num))
        counted = [client for client in each.clients if client.counted]
        assert [client.task.draw for client in each.clients if not client.counted] == [1] * (6 - len(counted))
        assert len(counted) in (4, 5)
        assert all(client.num_steps == (client.task.num_steps if client.counted else 0) for client in each.clients)
        expected += np.mean([client.task.draw + 1 for client in counted])
        assert model(each) == pytest.approx(expected, rel=1e-12)
        # The losses are client / 10, drifts client + 1, and a round's means have the average's equal weights.
        clients = [client.task.client for client in counted]
        assert each.train_loss_cohort == pytest.approx(np.mean(clients) / 10)
        assert each.drift == pytest.approx(np.mean(clients) + 1)


DROPPING = replace(plan(0.5), drops_stragglers=True)


def test_dropped_stragglers_are_among_the_outcomes_and_not_counted():
    rounds, _ = run(FedAvgWithStragglerDrop(), plan(0.5))
    for each in rounds[1:]:
        assert [client.task for client in each.clients] == list(DROPPING.tasks(each.round_num))
        assert each.num_clients_counted == 2
        for client in each.clients:
            dropped = client.task.is_straggler
            assert client.num_examples == SIZES[client.task.client]
            assert client.counted is not dropped
            assert client.num_steps == (0 if dropped else client.task.num_steps)
            assert client.train_loss == (None if dropped else client.task.client / 10)


def test_mu_and_the_learning_rate_reach_every_client_in_every_round():
    _, engine = run(FedProx(), plan(0.5), mu=0.7, learning_rate_factor=lambda round_num: 1 / round_num)
    assert mus_sent(engine) == [{0.7}] * 5
    sent = [[message.content["config"]["learning-rate-factor"] for message in messages] for messages in engine.rounds]
    assert sent == [[1 / round_num] * 4 for round_num in range(1, 6)]


def test_train_loss_cohort_is_the_mean_weighted_by_examples_over_those_that_count():
    # (1 * 2.0 + 3 * 6.0) / 4 = 5; the dropped client with 100 examples does not count.
    clients = (outcome(1, 2.0, True), outcome(100, None, False), outcome(3, 6.0, True))
    done = Round(1, ArrayRecord(), Evaluation(0.0, 0.0), clients, 0.0)
    assert done.train_loss_cohort == 5.0
    assert replace(done, clients=(outcome(2, 0.0, True),)).train_loss_cohort == 0.0  # not missing
    assert done.num_clients_counted == 2


def test_the_drift_of_a_round_is_the_mean_weighted_by_examples_over_those_that_count():
    # (1 * 2.0 + 3 * 6.0) / 4 = 5, not the plain mean 4; a client that stayed where it was counts with 0.
    clients = (outcome(1, 0.0, True, 2.0), outcome(100, None, False), outcome(3, 0.0, True, 6.0))
    done = Round(1, ArrayRecord(), Evaluation(0.0, 0.0), clients, 0.0)
    assert done.drift == 5.0
    assert replace(done, clients=(*clients, outcome(4, 0.0, True, 0.0))).drift == 2.5
    assert replace(done, clients=clients[1:2]).drift is None


def test_drifts_come_from_the_replies_and_may_be_missing():
    for mu in (0.5, 0.0):  # the fake clients report it if mu > 0
        rounds, _ = run(FedAvgWithStragglerDrop(), plan(0.5), mu=mu)
        assert rounds[0].drift is None
        for each in rounds[1:]:
            expected = [client.task.client + 1 if mu > 0 and client.counted else None for client in each.clients]
            assert [client.drift for client in each.clients] == expected
            assert (each.drift is not None) == (mu > 0)


# Which rounds are evaluated


@pytest.mark.parametrize(
    ("num_rounds", "every", "expected"),
    [
        (3, 1, [0, 1, 2, 3]),
        (7, 3, [0, 3, 6, 7]),
        (6, 3, [0, 3, 6]),
        (2, 5, [0, 2]),
    ],
)
def test_the_initial_model_every_nth_round_and_the_last_are_evaluated(num_rounds, every, expected):
    evaluated = []

    def evaluate(_: int, arrays: ArrayRecord) -> Evaluation:
        evaluated.append(float(arrays["w"].numpy()[0]))
        return Evaluation(evaluated[-1], 0.25)

    rounds = list(started(FedProx(), plan(0.5), num_rounds, evaluate=evaluate, evaluate_every=every))
    assert [each.round_num for each in rounds] == list(range(num_rounds + 1))
    assert [each.round_num for each in rounds if each.test is not None] == expected
    # Other rounds are really not measured: measuring may take longer than training.
    assert evaluated == [model(rounds[round_num]) for round_num in expected]


def test_rounds_without_evaluation_train_the_same_model():
    seldom, always = (run(FedProx(), plan(0.5), num_rounds=7, evaluate_every=every)[0] for every in (3, 1))
    assert [model(each) for each in seldom] == [model(each) for each in always]
    assert [each.clients for each in seldom] == [each.clients for each in always]


# Adaptive mu


def training(*values: float):
    """Return a fake evaluation that gives these training losses one after another, and other test losses."""
    remaining = list(values)

    def evaluate(*_: object) -> Evaluation:
        train_loss = remaining.pop(0)
        return Evaluation(-train_loss, 0.25, FederationMetrics(train_loss, 0.5, -train_loss, 0.25, 1.0, 1.0, 1.0))

    return evaluate


def mus_sent(engine: FakeEngine) -> list[set[float]]:
    return [{message.content["config"]["proximal-mu"] for message in messages} for messages in engine.rounds]


def test_a_change_of_mu_reaches_all_clients_in_the_following_round():
    # Losses of rounds 0 .. 5: after rounds 1 and 2 it has risen, after round 4 fallen twice in a row.
    mu = AdaptiveMu(0.2, step=0.1, patience=2)
    rounds, engine = run(FedProx(), plan(0.5), mu=mu, evaluate=training(1.0, 2.0, 3.0, 2.5, 2.0, 2.2))
    assert mus_sent(engine) == [{0.2}, {0.3}, {0.4}, {0.4}, {0.3}]
    # A row has the mu of its round; that of round 0 is the mu of the first round.
    assert [each.mu for each in rounds] == [0.2, 0.2, 0.3, 0.4, 0.4, 0.3]


# Gamma


def test_gammas_are_those_of_the_clients_that_counted_in_their_order():
    rounds, _ = run(FedAvgWithStragglerDrop(), plan(0.5), measure_gamma=True)
    assert rounds[0].gammas == []
    for each in rounds[1:]:
        assert each.gammas == [client.task.client / 100 for client in each.clients if client.counted]
        assert [client.gamma is None for client in each.clients] == [not client.counted for client in each.clients]
    rounds, _ = run(FedProx(), plan(0.5))  # it is not asked for
    assert [each.gammas for each in rounds] == [[]] * 6


@pytest.mark.parametrize("error", [IndexError("out of bounds"), StopIteration(), GeneratorExit(), SystemExit(0)])
def test_an_error_of_the_users_model_while_it_is_measured_ends_the_run_in_one_line(error):
    def raising(round_num: int, arrays: ArrayRecord) -> Evaluation:
        if round_num:
            raise error
        return measured(round_num, arrays)

    rounds = started(FedProx(), plan(0.0), evaluate=raising)
    assert next(rounds).round_num == 0
    with pytest.raises(RunStopped, match=r"^round 1: evaluation: \S.*\(test_rounds\.py:\d+\)$"):
        next(rounds)
