"""Messages between the server and sites with their own data: facts before round 1, and what all sites agreed on.

A node answers each message in a new process, so every message carries the agreement.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedprox.data.sources.site_facts import Agreement, SiteError, SiteFacts
from fedprox.errors import UserError
from fedprox.federation.messages import Engine, TaskMessage, client_of, failed, is_late
from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import metrics_of

FACTS = "query.facts"  # asks a site what it tells about its data
SendAndReceive = Callable[..., list[Message]]
_LISTS = ("input-shape", "classes", "columns", "mean", "squares", "counts")


def facts_record(facts: SiteFacts) -> ConfigRecord:
    """Return facts as the record that a reply carries under "facts"; it holds nothing else about the site's data."""
    given = {field.replace("_", "-"): value for field, value in vars(facts).items()}
    return ConfigRecord({name: list(value) if name in _LISTS else value for name, value in given.items()})


def facts_of(record: ConfigRecord) -> SiteFacts:
    """Return the facts that a record holds."""
    return from_plain({name.replace("-", "_"): value for name, value in record.items()})


def from_plain(given: Mapping[str, Any]) -> SiteFacts:
    """Return facts whose tuples have become lists on the way."""
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    return SiteFacts(**values)


def agreement_record(agreement: Agreement) -> ConfigRecord:
    """Return an agreement as the record that every message carries under "agreed"."""
    mean, std = ([] if not each.ndim else each.ravel().tolist() for each in (agreement.mean, agreement.std))
    return ConfigRecord({"classes": list(agreement.classes), "mean": mean, "std": std})


def agreement_of(message: Message, input_shape: tuple[int, ...]) -> Agreement:
    """Return the agreement that a message carries.

    Raises:
        SiteError: If it does not fit to this shape, because the site's data have changed.
    """
    record = cast(dict[str, list[Any]], message.content["agreed"])
    try:
        return Agreement.of(cast(list[str], record["classes"]), record["mean"], record["std"], input_shape)
    except ValueError as error:  # from NumPy's reshape
        raise SiteError(f"its examples have the shape {input_shape}, unlike before; restore its data") from error


def facts_reply(message: Message, facts: SiteFacts) -> Message:
    """Return the answer to a query for facts."""
    return Message(RecordDict({"facts": facts_record(facts)}), reply_to=message)


def ask_facts(ask: SendAndReceive, names: Sequence[str], timeout: float | None = None) -> list[SiteFacts]:
    """Return the facts of all sites, which are clients 0, 1, ...

    Args:
        ask: Sends messages to clients and returns the reply to each, like an engine's `send_and_receive`.
        names: Their names.
        timeout: Seconds that they may take; None for no limit.

    Raises:
        UserError: If a site does not answer, has an error or calls itself by another name; it names the site.
    """
    tasks = [ClientTask(client, 1, 0, False, ()) for client in range(len(names))]
    messages = [TaskMessage({}, task, FACTS) for task in tasks]
    told = []
    for name, reply in zip(names, ask(messages, timeout=timeout), strict=True):
        if is_late(reply):
            raise UserError(f"site {name}: it did not tell about its data within {timeout:g} s; is its SuperNode up?")
        if reply.has_error():
            reason = str(reply.error.reason).removeprefix(f"{name}: ")
            raise UserError(reason if reason.startswith("site ") else f"site {name}: {reason}")
        told.append(facts_of(reply.content["facts"]))  # type: ignore[arg-type]
        if told[-1].name != name:
            raise UserError(f"site {name}: it calls itself {told[-1].name}; restart its SuperNode with one name")
    return told


class SitesGrid:
    """An engine that sends the agreement with every message, and checks that sites still have the data they told of."""

    def __init__(self, grid: Engine, told: Sequence[SiteFacts], agreement: Agreement) -> None:
        """Wrap an engine whose client k is the k-th site."""
        self._grid, self._told, self._agreed = grid, told, agreement_record(agreement)

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per site."""
        return self._grid.get_node_ids()  # type: ignore[attr-defined, no-any-return]

    def facts(self) -> dict[str, Any]:
        """Return the engine's."""
        return self._grid.facts()

    def peak_memory_bytes(self) -> int:
        """Return the engine's."""
        return self._grid.peak_memory_bytes()

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the sites' replies in the order of the messages; an error for a site whose data have changed."""
        messages = list(messages)
        for message in messages:
            message.content["agreed"] = self._agreed
        replies = self._grid.send_and_receive(messages, timeout=timeout)
        return [self._checked(message, reply) for message, reply in zip(messages, replies, strict=True)]

    def _checked(self, message: Message, reply: Message) -> Message:
        if reply.has_error():
            return reply
        told = self._told[client_of(reply)]
        is_evaluation = message.metadata.message_type == MessageType.EVALUATE
        before, now = told.num_held_out if is_evaluation else told.num_examples, metrics_of(reply)["num-examples"]
        if now == before:
            return reply
        kind = "held-out" if is_evaluation else "training"
        return failed(
            message, f"site {told.name}: it has {now} {kind} examples, and told of {before} at the start; restore them"
        )
