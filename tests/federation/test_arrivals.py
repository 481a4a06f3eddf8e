"""Late clients on the server: the step of FedBuff, the models that are kept, and resuming with clients in flight."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedprox.channel.codecs import Codec, Float32
from fedprox.engines.identity import act_as_server
from fedprox.errors import UserError
from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.arrivals import Arrivals
from fedprox.federation.channel import Channel
from fedprox.federation.messages import TaskMessage, task_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import Round
from fedprox.federation.rounds import RoundSettings, run_rounds
from fedprox.plan.arrivals import BufferedPlan, WaitingPlan
from fedprox.plan.devices import Devices, drawn_speeds
from fedprox.plan.plan import Plan
from fedprox.plan.protocols import PaperProtocol
from fedprox.runs.serialize import decoded, encoded
from fedprox.strategies.fedprox import FedProx
from tests.plan.test_arrivals import Cohorts, devices


class HalfWay:
    """An engine whose client k goes half of the way to k + 1, so that its update depends on its model."""

    def send_and_receive(self, messages, *, timeout=None):
        return [self._reply(message) for message in messages]

    def facts(self) -> dict[str, object]:
        return {}

    def peak_memory_bytes(self) -> int:
        return 0

    def _reply(self, message: Message) -> Message:
        task, w = task_of(message), message.content["arrays"]["w"].numpy()
        arrays = {"w": Array((w + task.client + 1) / 2), "variance": Array(np.array([1e-3 * (task.client + 1)]))}
        metrics = {"num-examples": 10 * task.client + 1, "train-loss": 0.0, "num-steps": task.num_steps}
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)


def started(plan, num_rounds: int, start=None, channel=None, dtype=np.float64) -> Iterator[Round]:
    act_as_server()
    return run_rounds(
        ArrayRecord({"w": Array(np.array([10.0], dtype)), "variance": Array(np.array([5.0]))}),
        PlannedStrategy(FedProx(), plan, trained=["w"]),
        HalfWay(),
        lambda _, arrays: Evaluation(loss=1.0, accuracy=0.5),
        RoundSettings(num_rounds),
        start,
        channel,
    )


def models(rounds: Iterator[Round], name: str = "w") -> list[float]:
    return [float(each.arrays[name].numpy()[0]) for each in rounds]


def by_hand(**more) -> BufferedPlan:
    """Return the plan that tests/plan/test_arrivals.py derives."""
    cohorts = Cohorts(((0, 1), (2, 0), (1, 2), (0, 1)), np.ones(3, int))
    return BufferedPlan(cohorts, devices(1, 2, 4), concurrency=2, buffer=2, **more)


@pytest.mark.parametrize(("eta", "discount"), [(1.0, 0.5), (0.5, 1.0), (1.0, 0.0)])
def test_a_step_is_the_discounted_mean_of_updates_to_the_models_at_which_clients_started(eta, discount):
    w0, s = 10.0, 2.0**-discount  # of a staleness of 1

    def update(client: int, w: float) -> float:
        return (client + 1 - w) / 2

    w1 = w0 + eta / 2 * (update(0, w0) + update(1, w0))
    w2 = w1 + eta / 2 * (update(0, w1) + s * update(2, w0))
    w3 = w2 + eta / 2 * (s * update(1, w1) + update(0, w2))
    found = models(started(by_hand(server_learning_rate=eta, discount=discount), 3))
    assert found == pytest.approx([w0, w1, w2, w3], rel=1e-14)


def test_what_is_not_trained_is_averaged_as_clients_have_it():
    # Clients 0 and 1, 0 and 2, 1 and 0; differences to the model of the start would be negative
    assert models(started(by_hand(), 3), "variance") == pytest.approx([5.0, 1.5e-3, 2e-3, 1.5e-3])


def test_rounds_have_the_staleness_of_their_updates_and_the_virtual_time():
    rounds = list(started(by_hand(), 3))
    assert [each.virtual_time_s for each in rounds] == [0.0, 2.0, 5.0, 6.0]
    assert [each.staleness for each in rounds] == [[], [0, 0], [0, 1], [1, 0]]
    assert [client.weight for client in rounds[1].clients] == [1, 1]  # though they have 1 and 11 examples


def test_an_uncompressed_update_of_a_late_client_arrives_as_it_is():
    channel = Channel(["w"], buffers=["variance"], codec=Codec(Float32(), 1.0))  # float32 values of updates
    through, direct = models(started(by_hand(), 6, channel=channel)), models(started(by_hand(), 6))
    assert through == pytest.approx(direct, rel=1e-6)


def random_plan(concurrency: int, buffer: int, sigma: float = 1.0) -> BufferedPlan:
    cohorts = Plan(np.full(20, 15), concurrency, 2, 10, 0.0, PaperProtocol(), seed=3)
    speeds = drawn_speeds(20, seconds_per_step=1.0, bandwidth=None, sigma=sigma, seed=3)
    return BufferedPlan(cohorts, speeds.devices(0), concurrency, buffer)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_times_and_a_buffer_of_all_in_flight_are_the_synchronous_run_with_equal_weights_bit_for_bit(dtype):
    buffered = random_plan(5, 5, sigma=0.0)
    waiting = WaitingPlan(buffered.plan, buffered.devices)

    class Equal(FedProx):
        weighting = "equal"

    synchronous = run_rounds(
        ArrayRecord({"w": Array(np.array([10.0], dtype)), "variance": Array(np.array([5.0]))}),
        PlannedStrategy(Equal(), waiting),
        HalfWay(),
        lambda _, arrays: Evaluation(loss=1.0, accuracy=0.5),
        RoundSettings(20),
    )
    for one, other in zip(started(buffered, 20, dtype=dtype), synchronous, strict=True):
        assert {name: array.data for name, array in one.arrays.items()} == {
            name: array.data for name, array in other.arrays.items()
        }
        assert one.virtual_time_s == pytest.approx(other.virtual_time_s)


@dataclass
class Saved:
    """A round as a checkpoint keeps it."""

    round_num: int
    arrays: ArrayRecord
    carried: dict
    time_s: float = 0.0


@pytest.mark.parametrize("at", [0, 1, 7, 11])
def test_a_run_that_resumes_with_clients_in_flight_is_the_uninterrupted_one(at):
    plan = random_plan(12, 3)
    whole = list(started(plan, 12))
    text, arrays = encoded(whole[at].carried)
    assert len(whole[at].carried["strategy"]["arrivals"]["sent"]) <= 12
    start = Saved(at, whole[at].arrays, decoded(text, arrays))
    resumed = list(started(random_plan(12, 3), 12, start))
    assert models(resumed) == models(whole[at + 1 :])
    assert [each.virtual_time_s for each in resumed] == [each.virtual_time_s for each in whole[at + 1 :]]
    assert max(tau for each in resumed for tau in each.staleness) > 0 or at == 11


def test_nothing_is_kept_where_no_client_is_late():
    carried = [each.carried["strategy"]["arrivals"] for each in started(random_plan(5, 5, sigma=0.0), 4)]
    assert [each["sent"] for each in carried] == [{}] * 5


def test_without_devices_nothing_is_timed_and_the_state_is_as_before():
    rounds = list(started(random_plan(5, 5).plan, 2))
    assert [each.virtual_time_s for each in rounds] == [None] * 3
    assert rounds[-1].carried["strategy"].keys() == {"layers", "statistics"}


def test_a_late_client_trains_with_the_settings_that_it_was_sent():
    arrivals, plan = Arrivals(by_hand(), ["w"]), by_hand()
    sent = []
    for step in (1, 2):
        w, config = ArrayRecord({"w": Array(np.array([float(step)]))}), {"proximal-mu": 0.1 * step}
        messages = [TaskMessage({"arrays": w, "config": None}, task) for task in plan.tasks(step)]
        arrivals.begin(step, w, config, messages)
        sent.append([message.records["config"] for message in messages])
        arrivals.end(step, plan.tasks(step), [])
    assert sent[1][0] is None  # it started in this round
    assert dict(sent[1][1]) == {"proximal-mu": 0.1}


def test_a_round_of_another_schedule_from_which_models_are_missing_is_refused():
    arrivals = Arrivals(by_hand(), ["w"])
    arrivals.check_start(2, {"sent": {1: []}}, Path("run"))
    with pytest.raises(UserError, match=r"^run does not have what clients train that are late in round 2: .*rounds 1;"):
        arrivals.check_start(2, {}, Path("run"))


def test_dropped_replies_leave_the_mean_of_those_that_count():
    plan = by_hand()
    planned = PlannedStrategy(FedProx(), plan, trained=["w"])
    act_as_server()
    w = ArrayRecord({"w": Array(np.array([10.0])), "variance": Array(np.array([5.0]))})
    messages = planned.configure_train(1, w, ConfigRecord({"proximal-mu": 0.0}), None)
    arrays, _ = planned.aggregate_train(1, HalfWay().send_and_receive(messages[1:]))
    assert float(arrays["w"].numpy()[0]) == 6.0  # client 1's
    assert planned.aggregate_train(2, []) == (None, None)
    assert planned.virtual_time_s == 5.0  # time passes even so


def test_a_client_that_was_asked_twice_in_a_step_counts_twice():
    cohorts = Cohorts(((0, 1),), np.ones(2, int))
    plan = BufferedPlan(cohorts, Devices(np.array([1.0, 10.0]), np.zeros(2)), concurrency=2, buffer=3)
    rounds = list(started(plan, 1))
    assert models(rounds)[-1] == 5.5  # three times half of the way from 10 to 1
    assert [client.task.draw for client in rounds[-1].clients] == [0, 1, 2]
