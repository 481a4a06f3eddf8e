"""The engine that computes clients on the SuperNodes of a Flower federation, through its SuperLink.

It runs in Flower's ServerApp. It knows no data and no model: a node plays its clients from the job's configuration and
from what the node has. A node's `--node-config` states whom it plays: `partition-id=3`, `clients="0-332"`, or
`site="hospital_a"`, which is client k if it is the k-th of the run's sites.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedprox.errors import RunStopped, UserError, joined_lines, printable
from fedprox.federation.messages import FIRST_NODE_ID, failed, is_late, late, node_id

POLL_S = 0.2  # Flower's own send_and_receive looks for replies every 3 s
WHO, WHO_S = "query.who", 60.0  # asks a node whom it plays; seconds that it has to answer
TTL_S = 5.0  # from a round's timeout to the end of its messages, for which the SuperLink would send errors
_log = logging.getLogger("fedprox")


@dataclass(frozen=True)
class Node:
    """A SuperNode that is online.

    Attributes:
        number: Flower's id of the node.
        name: Its site's name, or the `name` in its node config, or "node" and its number.
        clients: The clients that it plays; empty if its site's name decides.
        is_site: Whether its node config names a site.
    """

    number: int
    name: str
    clients: tuple[int, ...]
    is_site: bool


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for the first setting of engine=deployment, by name, that is out of its range."""
    sites = list(map(str, settings.get("sites") or ()))
    if len(set(sites)) < len(sites) or not all(sites):
        raise UserError(f"engine.sites must be different names, got {', '.join(sites)}; name each site once")
    if (least := settings.get("min_clients", 1)) < 1:
        raise UserError(f"engine.min_clients must be an integer >= 1, got {least}")
    if not 0 <= (start_s := settings.get("start_timeout", 0.0)) < inf:
        raise UserError(f"engine.start_timeout must be finite and >= 0, in seconds, got {start_s:g}")


class SuperLinkGrid:
    """A Flower Grid in which planned clients take the place of nodes.

    Attributes:
        sites: The names of the sites that play clients 0, 1, ...; empty if the nodes' configs number the clients.
    """

    def __init__(
        self,
        flower_grid: Grid,
        num_clients: int | None,
        *,
        connection: str | None = None,
        folder: str = "deployment",
        run_dir: str | None = None,
        sites: list[str] | None = None,
        min_clients: int = 1,
        start_timeout: float = 120.0,
    ) -> None:
        """Wait until every client has a node.

        Args:
            flower_grid: The grid that Flower gave the ServerApp.
            num_clients: Clients of the experiment; None for as many as there are sites.
            connection: Read by the command that submits a run: an entry of Flower's config.toml.
            folder: Read there, too: the folder of the federation on this machine, if there is no connection.
            run_dir: Read there, too: the run directory on the machine of the SuperLink.
            sites: Names of the sites that play clients 0, 1, ...; None for the first ones online, in order of name, or
                for all that are online at the start if `num_clients` is None.
            min_clients: A round ends the run if fewer clients than this, of those asked, answer.
            start_timeout: Seconds to wait for nodes.

        Raises:
            UserError: If a client has no node by then, two sites have one name, there are not as many sites as clients,
                all that are online are asked for and one has no site, or two kinds of node configs are mixed.
        """
        self._takes_all = not num_clients and not sites
        check_settings({"sites": sites, "min_clients": min_clients, "start_timeout": start_timeout})
        self._grid, self._num_clients = flower_grid, num_clients or len(sites or ())
        self.sites = tuple(map(str, sites or ()))
        if self.sites and len(set(self.sites)) != self._num_clients:
            raise UserError(
                f"engine.sites must name {self._num_clients} different sites, as many as num_clients, got "
                f"{_named(self.sites)}"
            )
        self._min_clients = min_clients
        self._nodes: dict[int, Node] = {}  # by number
        self._node_of: dict[int, Node] = {}  # by client
        self._names: dict[int, str] = {}  # of the nodes that played clients last
        self._wait(start_timeout)

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client, as in a simulation."""
        return range(node_id(0), node_id(self._num_clients))

    def facts(self) -> dict[str, Any]:
        """Return the names of the sites, if the nodes have any."""
        return {"sites": list(self.sites)} if self.sites else {}

    def peak_memory_bytes(self) -> int:
        """Return 0: the memory of the sites is not measured."""
        return 0

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages; the reply of a client that failed is an error.

        A client whose node is gone has failed. A node that is back, under the same name, plays its clients again.

        Args:
            messages: To any clients, of any type that the nodes' ClientApp knows.
            timeout: Seconds after which clients are late; soon after, the SuperLink drops their messages.

        Raises:
            RunStopped: If fewer than `min_clients` clients answered.
        """
        replies = self.ask(messages, timeout=timeout)
        self._check_enough(replies)
        return replies

    def ask(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the same as `send_and_receive`, however few clients answer."""
        self._look_for_nodes()
        playing = [self._node_of.get(_client(message)) for message in messages]
        pairs = list(zip(messages, playing, strict=True))
        sent = [_addressed(message, node.number, timeout) for message, node in pairs if node]
        answers = iter(self._exchange(sent, timeout))
        return [
            _as_reply(message, node.name, next(answers))
            if node
            else failed(message, f"{self._name(_client(message))} is not connected")
            for message, node in pairs
        ]

    def _exchange(self, messages: Sequence[Message], timeout: float | None) -> list[Message | None]:
        """Send messages, and return the answer to each that came in time.

        An error reply for a node that is gone does not come from that node: only the id of the message that it answers
        says whom it is about.
        """
        if not messages:
            return []
        until = inf if timeout is None else time.monotonic() + timeout
        ids = list(self._grid.push_messages(messages))
        if len(ids) < len(messages) or None in ids:
            raise RunStopped("the SuperLink did not take the round's messages; they may be too large for it")
        answers: dict[str, Message] = {}
        while True:
            waiting = [each for each in ids if each not in answers]
            answers |= {reply.metadata.reply_to_message_id: reply for reply in self._grid.pull_messages(waiting)}
            if len(answers) == len(ids) or time.monotonic() > until:
                return [answers.get(each) for each in ids]
            time.sleep(POLL_S)

    def _check_enough(self, replies: Sequence[Message]) -> None:
        errors = [reply for reply in replies if reply.has_error()]
        num_left, least = len(replies) - len(errors), min(self._min_clients, len(replies))
        if num_left < least:
            reason = f"{errors[0].error.reason}{' did not answer in time' * is_late(errors[0])}"
            raise RunStopped(
                f"{num_left} of {len(replies)} clients answered, fewer than engine.min_clients={self._min_clients}: "
                f"client {_client(errors[0], is_reply=True)}: {reason}"
            )

    def _wait(self, start_timeout: float) -> None:
        """Wait until every client has a node."""
        until, is_first = time.monotonic() + start_timeout, True
        while True:
            self._look_for_nodes()
            missing = [client for client in range(self._num_clients) if client not in self._node_of]
            if self._num_clients and not missing:
                self._check_names()
                return
            line = f"no SuperNode plays {_named([self._name(client) for client in missing]) or 'a site'}"
            if time.monotonic() > until:
                online = _named(sorted(node.name for node in self._nodes.values())) or "none"
                raise UserError(f"{line} after {start_timeout:g} s; online: {online}; start it, or lower num_clients")
            if is_first:
                _log.info("waiting for SuperNodes: %s yet", line)
            is_first = False
            time.sleep(1.0)

    def _check_names(self) -> None:
        """Raise UserError if two nodes are one site, or a node is none of all sites that are online.

        Only at the start: later, the same site may come back as another node.
        """
        if self._takes_all and (nameless := [node.name for node in self._nodes.values() if not node.is_site]):
            raise UserError(
                f'{nameless[0]} has no site in its node config; start its SuperNode with site="<name>", or name the '
                "sites of this run in engine.sites"
            )
        names = [node.name for node in self._nodes.values() if node.name in self.sites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"site {twice[0]}: two SuperNodes have this name; stop one, and wait a minute, or give each its own"
            )

    def _look_for_nodes(self) -> None:
        """Forget nodes that are offline, and ask those that are new whom they play."""
        online = set(self._grid.get_node_ids())
        for number in self._nodes.keys() - online:
            _log.warning("%s has gone offline", self._nodes.pop(number).name)
        if new := online - self._nodes.keys():
            asked = [Message(RecordDict({"asks": ConfigRecord()}), number, WHO) for number in sorted(new)]
            for message, answer in zip(asked, self._exchange(asked, WHO_S), strict=True):
                self._welcome(message.metadata.dst_node_id, answer)
        self._assign()

    def _welcome(self, number: int, answer: Message | None) -> None:
        """Note a node; one that does not say whom it plays is asked again next time."""
        if answer is None or answer.has_error():
            reason = "no answer" if answer is None else _reason(answer)
            _log.warning("node %d does not say whom it plays: %s", number, reason)
            return
        facts = cast(Mapping[str, object], answer.content["facts"])
        site, clients = str(facts["site"]), tuple(map(int, cast(list[int], facts["clients"])))
        name = printable(site or str(facts["name"])) or f"node {number}"
        if not site and not clients:
            _log.warning(
                "node %d plays no client: its node config has neither partition-id nor clients nor site", number
            )
        self._nodes[number] = Node(number, name, clients, bool(site))

    def _assign(self) -> None:
        """Give each client its node; sites are fixed once there are enough of them."""
        by_name = {node.name: node for node in self._nodes.values() if node.is_site}
        if not self.sites and len(by_name) >= max(1, self._num_clients):
            self.sites = tuple(sorted(by_name)[: self._num_clients or None])
            self._num_clients = len(self.sites)
            if by_name.keys() - set(self.sites):
                _log.warning(
                    "sites that do not take part in this run: %s", _named(sorted(by_name.keys() - set(self.sites)))
                )
        named = {client: by_name[name] for client, name in enumerate(self.sites) if name in by_name}
        numbered = {client: node for node in self._nodes.values() for client in node.clients}
        if named and numbered:
            raise UserError(
                "some SuperNodes name their site and others number their clients; use one kind of node config"
            )
        self._node_of = named or numbered
        self._names |= {client: node.name for client, node in self._node_of.items()}

    def _name(self, client: int) -> str:
        """Return what a client is called in messages: its site, or the node that played it last, if there is one."""
        known = self._names | dict(enumerate(self.sites))
        return known.get(client, f"client {client}")


def _addressed(message: Message, node: int, timeout: float | None) -> Message:
    """Return a client's message, addressed to its node and void soon after the timeout."""
    metadata, ttl = message.metadata, None if timeout is None else timeout + TTL_S
    return Message(message.content, node, metadata.message_type, ttl=ttl, group_id=metadata.group_id)


def _as_reply(message: Message, name: str, answer: Message | None) -> Message:
    """Return a node's answer as the client's reply; without an answer the client is late."""
    if answer is None:
        return late(message, name)
    if answer.has_error():
        return failed(message, f"{name}: {_reason(answer)}")
    return Message(answer.content, reply_to=message)


def _client(message: Message, *, is_reply: bool = False) -> int:
    metadata = message.metadata
    return (metadata.src_node_id if is_reply else metadata.dst_node_id) - FIRST_NODE_ID


def _reason(answer: Message) -> str:
    return printable(joined_lines(answer.error.reason or "it failed without a word"))


def _named(names: Sequence[str]) -> str:
    """Return names in one line, such as "a, b and c"."""
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last
