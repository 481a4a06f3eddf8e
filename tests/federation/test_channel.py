"""The channel: which replies change, what attackers know, and what passes unchanged."""

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from torch import nn

from fedprox.channel.attacks import Attack, Gaussian, InnerProduct, SignFlip
from fedprox.channel.codecs import Codec, Float32, Quantise
from fedprox.engines.identity import act_as_server
from fedprox.federation.channel import Channel, Layout, moments
from fedprox.federation.messages import TaskMessage, node_id
from fedprox.plan.plan import ClientTask
from fedprox.strategies.arrays import to_record
from fedprox.strategies.updates import TrainReply, arrays_of

START = {"w": np.array([1.0, 2.0], np.float32), "running_mean": np.array([7.0], np.float32), "count": np.array(3)}
UPDATES = {0: [1.0, 0.0], 1: [3.0, 2.0], 2: [0.5, 0.5], 3: [2.0, -1.0]}
ATTACKERS = np.array([False, False, True, False])


def model(client: int) -> dict[str, np.ndarray]:
    moved = START["w"] + np.float32(UPDATES[client])
    return {"w": moved, "running_mean": START["running_mean"] + client, "count": np.array(3 + client)}


class Clients:
    """Clients whose updates are known; as ordinary messages if they come over a network."""

    def __init__(self, is_network: bool = False) -> None:
        self._is_network = is_network

    def send_and_receive(self, messages, *, timeout=None):
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        arrays, metrics = model(message.metadata.dst_node_id - node_id(0)), {"num-examples": 1}
        if not self._is_network:
            return TrainReply(message, {name: torch.from_numpy(array) for name, array in arrays.items()}, metrics)
        content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord({**metrics})})
        return Message(content, reply_to=message)


def messages(kind: str = "train") -> list[Message]:
    act_as_server()
    records = {"arrays": to_record(START)}
    return [TaskMessage(records, ClientTask(client, 1, 1, False, (0, 0, 1, client)), kind) for client in UPDATES]


def received(attack: Attack | None, *, is_network: bool = False, kind: str = "train", attackers=ATTACKERS) -> list:
    channel = Channel(["w"], attack=attack, is_malicious=attackers)
    engine = channel.between(Clients(is_network), 1)
    return [arrays_of(reply) for reply in engine.send_and_receive(messages(kind))]


def same(one: dict, other: dict) -> bool:
    return all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in other)


@pytest.mark.parametrize("is_network", [False, True])
def test_only_attackers_parameters_change(is_network):
    models = received(SignFlip(0.25, scale=2.0), is_network=is_network)
    assert all(same(models[client], model(client)) for client in (0, 1, 3))
    assert models[2]["w"].tolist() == [0.0, 1.0]  # (1, 2) - 2 * (.5, .5)
    assert models[2]["w"].dtype == np.float32
    assert same({**models[2], "w": model(2)["w"]}, model(2))  # statistics and counters pass


def test_attackers_know_the_honest_updates_of_the_round_alone():
    models = received(InnerProduct(0.25, epsilon=1.0))
    assert models[2]["w"].tolist() == pytest.approx([1 - 2.0, 2 - 1 / 3])  # the mean of (1, 0), (3, 2) and (2, -1)


def test_without_honest_clients_attackers_take_their_own_mean():
    models = received(InnerProduct(1.0, epsilon=1.0), attackers=np.ones(4, bool))
    mean = np.mean(list(UPDATES.values()), axis=0)
    assert all(each["w"] == pytest.approx(START["w"] - mean) for each in models)


def test_updates_are_relative_to_the_model_that_each_client_was_sent():
    earlier = {**START, "w": START["w"] - np.float32(1.0)}  # which client 2 and one honest client train
    asked = messages()
    for late in (0, 2):
        asked[late].records = {"arrays": to_record(earlier)}
    channel = Channel(["w"], attack=InnerProduct(0.25, epsilon=1.0), is_malicious=ATTACKERS)
    replies = channel.between(Clients(), 1).send_and_receive(asked)
    honest = [np.array(UPDATES[0]) + 1.0, UPDATES[1], UPDATES[3]]  # client 0 has moved by one more
    assert arrays_of(replies[2])["w"] == pytest.approx(earlier["w"] - np.mean(honest, axis=0))


def test_gradients_that_the_server_asks_for_pass_unchanged():
    assert all(same(each, model(client)) for client, each in enumerate(received(SignFlip(0.25), kind="query.gradient")))


def test_an_idle_channel_is_the_engine_itself():
    engine = Clients()
    assert Channel().between(engine, 1) is engine
    assert Channel(["w"], attack=Attack(0.25), is_malicious=ATTACKERS).between(engine, 1) is engine


def test_who_attacks_is_told_only_if_somebody_can():
    assert Channel().attacks(2) is None
    assert [Channel(["w"], attack=Attack(0.25), is_malicious=ATTACKERS).attacks(client) for client in (1, 2)] == [
        False,
        True,
    ]


def test_moments_are_those_of_all_updates_at_once():
    updates = np.random.default_rng(0).normal(size=(5, 3))
    mean, std = moments(lambda position: updates[position], 5)
    assert mean == pytest.approx(updates.mean(axis=0))
    assert std == pytest.approx(updates.std(axis=0, ddof=1))
    assert moments(lambda _: updates[0], 1)[1].tolist() == [0.0] * 3


def test_noise_differs_between_rounds_clients_and_repetitions():
    def sent(round_num: int, repetition: int) -> list[bytes]:
        channel = Channel(["w"], attack=Gaussian(1.0), is_malicious=np.ones(4, bool), repetition=repetition)
        replies = channel.between(Clients(), round_num).send_and_receive(messages())
        return [(arrays_of(reply)["w"]).tobytes() for reply in replies]

    assert sent(1, 0) == sent(1, 0)
    assert len({*sent(1, 0), *sent(2, 0), *sent(1, 1)}) == 12


def sent_through(channel: Channel, round_num: int = 1) -> list[dict[str, np.ndarray]]:
    return [arrays_of(reply) for reply in channel.between(Clients(), round_num).send_and_receive(messages())]


def test_bytes_are_those_of_the_packed_update_and_of_buffers():
    channel = Channel(["w"], buffers=["running_mean", "count"], codec=Codec(Quantise(8)))
    sent_through(channel)
    up, down = 2 + 4 + 4 + 8, 8 + 4 + 8  # two values and a scale; a float32 and an int64
    assert channel.bytes_up == {(client, 0): up for client in UPDATES}
    assert channel.totals == (4 * up, 4 * down)
    sent_through(channel)
    assert channel.totals == (8 * up, 8 * down)


def test_counting_bytes_changes_no_model():
    models = sent_through(Channel(["w"], codec=Codec(Float32())))
    assert all(same(models[client], model(client)) for client in UPDATES)


def test_without_feedback_the_small_values_are_lost_for_ever():
    channel = Channel(["w"], codec=Codec(Float32(), fraction=0.5))
    assert all(each["w"].tolist() == [2.0, 2.0] for each in [sent_through(channel)[0] for _ in range(3)])


def test_with_feedback_what_was_sent_and_what_is_left_add_up_to_all_updates():
    channel = Channel(["w"], codec=Codec(Quantise(3), fraction=0.5), feeds_back=True)
    total = np.zeros((4, 2))
    for round_num in range(1, 8):
        total += [each["w"] - START["w"] for each in sent_through(channel, round_num)]
    left = np.array([channel.state()["lost"][client] for client in UPDATES])
    assert total + left == pytest.approx(7 * np.array(list(UPDATES.values())), abs=1e-5)


def test_what_was_lost_is_restored():
    whole, cut, resumed = (Channel(["w"], codec=Codec(Quantise(3)), feeds_back=True) for _ in range(3))
    sent_through(cut, 1)
    resumed.restore(cut.state())
    sent_through(whole, 1)
    after, expected = sent_through(resumed, 2), sent_through(whole, 2)
    assert all(same(one, other) for one, other in zip(after, expected, strict=True))


def test_parameters_that_do_not_travel_stay_at_the_servers_values():
    channel = Channel(["w"], kept=["running_mean"], codec=Codec(Float32()))
    models = sent_through(channel)
    assert all(each["running_mean"].tolist() == START["running_mean"].tolist() for each in models)
    assert models[1]["w"].tolist() == model(1)["w"].tolist()


def test_an_attackers_update_is_compressed_like_any_other():
    attack = SignFlip(0.25, scale=2.0)
    codec = Codec(Float32(), fraction=0.5)
    models = sent_through(Channel(["w"], codec=codec, attack=attack, is_malicious=ATTACKERS))
    assert models[2]["w"].tolist() == [0.0, 2.0]  # (1, 2) + (-1, -1), of which one value is sent


def test_a_layout_tells_trained_parameters_from_frozen_ones_and_buffers():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad = False
    layout = Layout.of(net)
    assert layout.trained == ["0.weight", "1.weight", "1.bias"]
    assert layout.buffers == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_in_a_scripts_model_all_floating_point_arrays_count_as_trained():
    layout = Layout.unknown(to_record(START))
    assert (list(layout.trained), list(layout.buffers)) == (["w", "running_mean"], ["count"])
