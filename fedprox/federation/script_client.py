"""Clients that are runs of a training script: a message becomes a task folder, and the script's answer a reply.

The script's side of the folder is `fedprox.federated`.
"""

import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from safetensors.numpy import save_file
from safetensors.torch import load_file

from fedprox.errors import UserError
from fedprox.federated import Task
from fedprox.federation.messages import record_of, task_of
from fedprox.federation.script_files import libraries
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.updates import TrainReply

INITIAL = "query.initial"  # asks for the script's own initial weights, and whether it evaluates
_KINDS = {MessageType.TRAIN: "train", MessageType.EVALUATE: "evaluate", INITIAL: "initial"}
_PLACEHOLDER = re.compile(r"\{(site|data|client|round)\}")


@dataclass(frozen=True)
class ScriptSpec:
    """Everything a process needs to play any client by a script.

    Attributes:
        script: The script's absolute path.
        folder: The working directory of its processes.
        num_clients: Number of clients.
        args: Its arguments as in a shell; {site}, {data}, {client} and {round} stand for the task's.
        data: Folder or file of a client's data, with the same placeholders but {data}.
        learning_rate: The server's learning rate before its schedule, for scripts that use it.
        at_once: Processes at the same time; None leaves that to the engine.
        num_threads: Threads that libraries use in each process; results may depend on it.
        preload: Whether the libraries that the script imports are loaded once for all of its processes.
        output: Folder for what the processes print; None keeps only the last line of those that fail.
        site: The client's name; None for its number.
    """

    script: str
    folder: str
    num_clients: int
    args: str = ""
    data: str = ""
    learning_rate: float | None = None
    at_once: int | None = None
    num_threads: int = 1
    preload: bool = True
    output: str | None = None
    site: str | None = None

    def check(self) -> None:
        """Raise UserError unless the script is a Python program and its arguments can be taken apart."""
        libraries(Path(self.script))
        try:
            shlex.split(self.args)
        except ValueError as error:
            raise UserError(f"client.args={self.args} is not a list of arguments as in a shell: {error}") from None


def task_for(spec: ScriptSpec, message: Message) -> Task:
    """Return the task that a message is for a script."""
    task, config = task_of(message), cast(ConfigRecord, record_of(message, "config") or ConfigRecord())
    round_num = int(config.get("server-round", 0))  # type: ignore[arg-type]
    site = str(task.client) if spec.site is None else spec.site
    factor = float(config.get("learning-rate-factor", 1.0))  # type: ignore[arg-type]
    seed = np.random.SeedSequence(task.batch_key or (task.client, task.epochs_before)).generate_state(1)[0]
    places = {"site": site, "client": task.client, "round": round_num}
    return Task(
        kind=_KINDS[message.metadata.message_type],  # type: ignore[arg-type]
        round_num=round_num,
        client=task.client,
        name=site,
        data=_filled(spec.data, places),
        mu=float(config.get("proximal-mu", 0.0)),  # type: ignore[arg-type]
        num_epochs=task.num_epochs,
        learning_rate=None if spec.learning_rate is None else spec.learning_rate * factor,
        seed=int(seed),
    )


def arguments(spec: ScriptSpec, task: Task) -> list[str]:
    """Return the script's arguments for a task."""
    places = {"site": task.name, "data": task.data, "client": task.client, "round": task.round_num}
    return [_filled(each, places) for each in shlex.split(spec.args)]


def _filled(text: str, places: dict[str, Any]) -> str:
    """Return a text with values in place of the names in braces; other braces stay."""
    return _PLACEHOLDER.sub(lambda found: str(places.get(found[1], found[0])), text)


def write_task(folder: Path, task: Task, message: Message) -> None:
    """Write a task, with the model that the message carries and the client's own batch statistics, into its folder."""
    records = [cast(ArrayRecord, record_of(message, name) or ArrayRecord()) for name in ("arrays", "local")]
    arrays = {name: to_numpy(array) for record in records for name, array in record.items()}
    if arrays:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors")
    (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")


def answer(folder: Path, message: Message) -> Message | None:
    """Return the reply that a script has written into a task's folder; None if there is none."""
    facts, arrays = folder / "update.json", folder / "update.safetensors"
    if not facts.exists():
        return None
    metrics = json.loads(facts.read_text(encoding="utf-8"))
    kind = message.metadata.message_type
    if kind == MessageType.EVALUATE:
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
    update = load_file(arrays)
    if kind == INITIAL:
        return Message(RecordDict({"arrays": to_record(update), "metrics": MetricRecord(metrics)}), reply_to=message)
    order = cast(ArrayRecord, record_of(message, "arrays"))
    return TrainReply(message, {name: update[name] for name in order}, metrics)
