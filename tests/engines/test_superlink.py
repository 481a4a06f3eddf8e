"""The engine on SuperNodes, with a small Flower grid in memory in the place of a SuperLink."""

import logging
from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from fedprox.deployment.client_app import app
from fedprox.engines import superlink
from fedprox.engines.identity import act_as_server
from fedprox.engines.superlink import SuperLinkGrid
from fedprox.errors import RunStopped, UserError
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import client_of, draw_of, group_id, is_late, node_id

GONE = Error(5, "Node Unavailable")


@dataclass
class Nodes:
    """A Flower grid: SuperNodes by number, each with its node config; the first message to a node is answered last.

    Attributes:
        configs: Node configs of the nodes that are online.
        silent: Nodes that never answer, but for the question whom they play.
        errors: What nodes answer instead, but for that question.
        pushed: Messages that went out, without those questions.
        takes: Whether messages are taken at all.
    """

    configs: dict[int, dict]
    silent: set[int] = field(default_factory=set)
    errors: dict[int, Error] = field(default_factory=dict)
    pushed: list[Message] = field(default_factory=list)
    takes: bool = True
    ready: dict[str, Message] = field(default_factory=dict)

    def get_node_ids(self):
        return list(self.configs)

    def push_messages(self, messages):
        if not self.takes:
            return []
        return [self._take(message) for message in messages]

    def _take(self, message):
        name = f"message {len(self.pushed)} {message.metadata.dst_node_id} {message.metadata.message_type}"
        message.metadata.__dict__["_message_id"] = name
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "query.who":
            self.ready[name] = app(message, Context(1, node, self.configs[node], RecordDict(), {}))
            return name
        self.pushed.append(message)
        if node not in self.silent:
            self.ready[name] = self._answer(message, node)
        return name

    def _answer(self, message, node):
        if error := self.errors.get(node):
            answer = Message(error, reply_to=message)
            answer.metadata.__dict__["_src_node_id"] = 1  # as the SuperLink's own replies have it
            return answer
        answer = MetricRecord({"node": node, "client": int(message.content["task"]["client"])})
        return Message(RecordDict({"metrics": answer}), reply_to=message)

    def pull_messages(self, ids):
        assert ids, "the SuperLink refuses a question for no message"
        found = [name for name in ids if name in self.ready][-1:]
        return [self.ready.pop(name) for name in found]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    act_as_server()
    monkeypatch.setattr(superlink, "POLL_S", 0.001)


def message(client: int, draw: int = 0, kind: str = "train") -> Message:
    content = RecordDict({"task": ConfigRecord({"client": client})})
    return Message(content, node_id(client), kind, group_id=group_id(draw))


def partitions(number: int) -> Nodes:
    return Nodes({700 + k: {"partition-id": k, "num-partitions": number} for k in range(number)})


def sites(*names: str) -> Nodes:
    return Nodes({900 - at: {"site": name, "data": "/data"} for at, name in enumerate(names)})


def played_by(replies) -> list[int]:
    return [int(reply.content["metrics"]["node"]) for reply in replies]


def test_replies_come_in_the_order_of_the_messages_whatever_order_nodes_answer_in():
    grid = SuperLinkGrid(partitions(4), 4)
    replies = grid.send_and_receive([message(3), message(0), message(2, draw=1), message(2)])
    assert [client_of(reply) for reply in replies] == [3, 0, 2, 2]
    assert [draw_of(reply) for reply in replies] == [0, 0, 1, 0]
    assert played_by(replies) == [703, 700, 702, 702]
    assert [reply.content["metrics"]["client"] for reply in replies] == [3, 0, 2, 2]


def test_a_node_plays_several_clients():
    grid = SuperLinkGrid(Nodes({5: {"clients": "0-2"}, 6: {"clients": "3,4-5"}}), 6)
    assert played_by(grid.send_and_receive([message(client) for client in range(6)])) == [5, 5, 5, 6, 6, 6]
    assert list(grid.get_node_ids()) == list(range(2, 8))


def test_sites_are_clients_in_the_order_of_their_names():
    grid = SuperLinkGrid(sites("north", "east", "west"), 3)
    assert grid.sites == ("east", "north", "west")
    assert played_by(grid.send_and_receive([message(0), message(1), message(2)])) == [899, 900, 898]


def test_sites_that_are_named_are_clients_in_that_order_and_others_are_left_out():
    grid = SuperLinkGrid(sites("a", "b", "c"), 2, sites=["c", "a"])
    assert played_by(grid.send_and_receive([message(0), message(1)])) == [898, 900]


def test_a_stranger_that_comes_later_does_not_change_who_is_which_client(caplog):
    nodes = sites("b", "c")
    grid = SuperLinkGrid(nodes, 2)
    nodes.configs[1] = {"site": "a"}
    assert played_by(grid.send_and_receive([message(0), message(1)])) == [900, 899]
    assert grid.sites == ("b", "c")


def test_a_message_is_void_soon_after_the_rounds_timeout_and_keeps_type_and_draw():
    nodes = partitions(1)
    SuperLinkGrid(nodes, 1).send_and_receive([message(0, draw=2, kind="query.gradient")], timeout=12.5)
    metadata = nodes.pushed[0].metadata
    assert (metadata.ttl, metadata.group_id, metadata.message_type) == (17.5, "2", "query.gradient")


def test_a_node_that_does_not_answer_in_time_is_late_and_the_others_count():
    nodes = partitions(3)
    nodes.silent = {701}
    grid = FailurePolicy(round_timeout=0.05).filtering(SuperLinkGrid(nodes, 3), 7)
    with pytest.raises(RunStopped, match=r"round 7: 1 of 3 clients \(client 1 at node 701\) did not answer within"):
        grid.send_and_receive([message(k) for k in range(3)])
    replies = SuperLinkGrid(nodes, 3).send_and_receive([message(k) for k in range(3)], timeout=0.05)
    assert [is_late(reply) for reply in replies] == [False, True, False]
    assert client_of(replies[1]) == 1


def test_an_error_that_the_superlink_sends_for_a_node_counts_for_that_nodes_client():
    nodes = sites("a", "b", "c")
    nodes.errors = {899: GONE}
    replies = SuperLinkGrid(nodes, 3).send_and_receive([message(k) for k in range(3)])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert client_of(replies[1]) == 1
    assert replies[1].error.reason == "b: Node Unavailable"


def test_a_node_that_has_gone_offline_fails_by_name_and_is_back_under_another_number(caplog):
    nodes = sites("a", "b")
    grid = SuperLinkGrid(nodes, 2)
    with caplog.at_level(logging.WARNING, "fedprox"):
        config = nodes.configs.pop(899)
        replies = grid.send_and_receive([message(0), message(1)])
    assert caplog.messages == ["b has gone offline"]
    assert [reply.has_error() for reply in replies] == [False, True]
    assert replies[1].error.reason == "b is not connected"
    nodes.configs[77] = config
    assert played_by(grid.send_and_receive([message(0), message(1)])) == [900, 77]


def test_a_round_with_fewer_clients_than_the_least_number_ends_the_run():
    nodes = sites("a", "b", "c")
    nodes.errors = {899: GONE, 898: Error(2, "ValueError: no\n  column")}
    grid = SuperLinkGrid(nodes, 3, min_clients=2)
    with pytest.raises(RunStopped, match=r"1 of 3 clients answered.*min_clients=2: client 1: b: Node Unavailable"):
        grid.send_and_receive([message(k) for k in range(3)])
    replies = SuperLinkGrid(nodes, 3, min_clients=1).send_and_receive([message(k) for k in range(3)])
    assert replies[2].error.reason == "c: ValueError: no; column"


def test_a_round_with_fewer_clients_than_the_least_number_needs_all_of_them():
    grid = SuperLinkGrid(partitions(3), 3, min_clients=3)
    assert len(grid.send_and_receive([message(1)])) == 1


def test_a_round_without_any_answer_ends_the_run():
    nodes = partitions(2)
    nodes.silent = {700, 701}
    with pytest.raises(RunStopped, match=r"0 of 2 clients answered.*client 0: node 700 did not answer in time"):
        SuperLinkGrid(nodes, 2).send_and_receive([message(0), message(1)], timeout=0.02)


def test_messages_that_the_superlink_does_not_take_end_the_run():
    nodes = partitions(1)
    grid = SuperLinkGrid(nodes, 1)
    nodes.takes = False
    with pytest.raises(RunStopped, match="too large"):
        grid.send_and_receive([message(0)])


def test_a_client_without_a_node_is_refused_by_name():
    with pytest.raises(UserError, match=r"no SuperNode plays client 1 and client 3.*online: node 700 and node 702"):
        SuperLinkGrid(Nodes({700: {"partition-id": 0}, 702: {"partition-id": 2}}), 4, start_timeout=0.0)
    with pytest.raises(UserError, match=r"no SuperNode plays b after 0 s; online: a and c"):
        SuperLinkGrid(sites("a", "c"), 2, sites=["a", "b"], start_timeout=0.0)
    with pytest.raises(UserError, match="online: none"):
        SuperLinkGrid(Nodes({}), 1, start_timeout=0.0)


def test_a_node_is_called_by_its_name_though_its_config_numbers_its_clients():
    nodes = Nodes({700: {"partition-id": 0, "name": "node-0"}})
    nodes.errors = {700: GONE}
    grid = SuperLinkGrid(nodes, 1)
    (reply,) = grid.ask([message(0)])
    assert reply.error.reason == "node-0: Node Unavailable"
    del nodes.configs[700]
    (reply,) = grid.ask([message(0)])
    assert reply.error.reason == "node-0 is not connected"


def test_node_configs_that_name_sites_and_that_number_clients_are_not_mixed():
    with pytest.raises(UserError, match="one kind of node config"):
        SuperLinkGrid(Nodes({1: {"site": "a"}, 2: {"partition-id": 1}}), 1, start_timeout=0.0)


def test_a_node_whose_config_names_no_client_is_reported_and_not_used(caplog):
    with caplog.at_level(logging.WARNING, "fedprox"):
        grid = SuperLinkGrid(Nodes({1: {}, 2: {"partition-id": 0}}), 1)
    assert "node 1 plays no client" in caplog.text
    assert played_by(grid.send_and_receive([message(0)])) == [2]
