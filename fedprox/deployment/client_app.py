"""The ClientApp of a SuperNode: plays the client that a message names, in a process of its own per message.

Flower starts a message again if its process does not report within 30 s: so nothing heavy is imported before a message
is answered.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
_RAISED = 2  # Flower's code for a client app that raised


@app.query("who")
def who(message: Message, context: Context) -> Message:
    """Answer whom this node plays, by its node config: partition-id=3, clients="0-332", or site="hospital_a"."""
    config = context.node_config
    names = {name: str(config.get(name, "")) for name in ("site", "name")}
    facts = ConfigRecord({**names, "clients": clients_of(config)})
    return Message(RecordDict({"facts": facts}), reply_to=message)


def clients_of(config: Mapping[str, Any]) -> list[int]:
    """Return the clients that a node config numbers; none if it names a site.

    >>> clients_of({"clients": "0-2,7"})
    [0, 1, 2, 7]
    >>> clients_of({"partition-id": 3, "num-partitions": 10})
    [3]

    Raises:
        ValueError: If `clients` is not of this form.
    """
    if "site" in config:
        return []
    if "clients" not in config:
        return [int(config["partition-id"])] if "partition-id" in config else []
    found: list[int] = []
    for part in str(config["clients"]).split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the client's update."""
    return _played(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with what the client measures on its held-out examples."""
    return _played(message, context)


@app.query("facts")
def facts(message: Message, context: Context) -> Message:
    """Answer with what this node's site tells about its data."""
    from fedprox.deployment import job
    from fedprox.experiment.sites import tell_facts

    return _answered(message, lambda: tell_facts(job.read(), context.node_config, message))


@app.query("initial")
def initial(message: Message, context: Context) -> Message:
    """Answer with the script's own initial weights."""
    return _played(message, context)


@app.query("gradient")
def gradient(message: Message, context: Context) -> Message:
    """Answer with the client's full gradient."""
    return _played(message, context)


def _played(message: Message, context: Context) -> Message:
    """Return the reply of the client that a message names, as engine=local makes it."""
    return _answered(message, lambda: _grid(message, context).send_and_receive([message])[0])


def _answered(message: Message, answer: Callable[[], Message]) -> Message:
    """Return an answer as an ordinary message, or the error reply if there is none."""
    from fedprox.errors import USER_CODE_ERRORS, UserError, one_line, with_location

    try:
        reply = answer()
    except USER_CODE_ERRORS as error:
        reason = one_line(error) if isinstance(error, (UserError, OSError, MemoryError)) else with_location(error)
        return Message(Error(_RAISED, reason), reply_to=message)
    # The reply may make its content only when it is read.
    return reply if reply.has_error() else Message(reply.content, reply_to=message)


def _grid(message: Message, context: Context):  # type: ignore[no-untyped-def]  # its type would be an import
    """Return an engine that plays this node's clients."""
    from dataclasses import replace

    from fedprox.data.facts import Facts
    from fedprox.deployment import job
    from fedprox.engines.local import local_grid
    from fedprox.experiment import build
    from fedprox.experiment.data import divided_data
    from fedprox.experiment.model import initial_model
    from fedprox.experiment.scripts import script_spec
    from fedprox.experiment.sites import data_of_site

    config, node = job.read(), context.node_config
    if config.client.script is not None:
        script = script_spec(config)
        return local_grid(
            replace(script, site=str(node["site"]) if "site" in node else None, data=str(node.get("data", script.data)))
        )
    data = data_of_site(config, node, message) if config.has_sites else divided_data(config)
    spec = build.client_spec(config, data, initial_model(config, Facts.of(data)))
    return local_grid(replace(spec, device=str(node.get("device", spec.device))))
