"""Experiments whose clients are runs of a training script (client=script): settings, and the script's first model."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.data.federated import LabelledData
from fedprox.errors import UserError, one_line
from fedprox.experiment.data import NATURAL
from fedprox.experiment.objective import SGD, solver
from fedprox.federation.messages import Engine, TaskMessage, is_late
from fedprox.federation.script_client import INITIAL, ScriptSpec
from fedprox.plan.plan import ClientTask
from fedprox.seeds import Stream, generator
from fedprox.strategies.arrays import to_record
from fedprox.strategies.updates import Arrays, arrays_of, metrics_of

MODEL_OF_CLIENTS, DATA_OF_CLIENTS = "fedprox.models.of_clients.of_clients", "fedprox.data.sources.of_clients.of_clients"
# Settings of fedprox's own clients, with the values that client=script leaves them.
UNUSED = {
    "batch_size": 10,
    "last_batch": "keep",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "mixed_precision": False,
    "max_grad_norm": None,
    "hold_out": 0.1,
}
_UNUSED_GROUPS = {
    "dataset": DATA_OF_CLIENTS,
    "partition": NATURAL,
    "feature_skew": "fedprox.data.feature_skew.none",
    "augmentation": "fedprox.data.augmentation.none",
    "attack": "fedprox.channel.attacks.none",
    "loss": "fedprox.solvers.losses.CrossEntropy",
    "optimizer": SGD,
}


class FirstModel(NamedTuple):
    """The answer of a script before round 1.

    Attributes:
        arrays: The initial global model.
        evaluates: Whether the script measures global models.
    """

    arrays: ArrayRecord
    evaluates: bool


def check_script(config: Config) -> None:
    """Raise UserError for settings that mean nothing to a script, or that only fedprox's own clients can follow."""
    for name, value in UNUSED.items():
        if (given := getattr(config, name)) != value:
            raise UserError(
                f"{name}={given} is for fedprox's own clients, but client=script trains as the script does; leave it "
                f"out, or pass it on with client.args"
            )
    for group, target in _UNUSED_GROUPS.items():
        if getattr(config, group).target != target:
            raise UserError(
                f"{group}={getattr(config, group).name} is for fedprox's own clients, but with client=script only the "
                "script sees its data; leave it out"
            )
    if (asked := solver(config)) != "auto":
        named = asked if isinstance(asked, str) else config.solver.target
        raise UserError(
            f"solver={named} is for fedprox's own clients, but client=script trains as the script does; leave it out"
        )
    if config.num_clients is None:
        raise UserError("num_clients must be given with client=script, got null; add num_clients=4, for example")
    if config.evaluation.name == "clients" or config.evaluation.per_class:
        setting = "evaluation=clients" if config.evaluation.name == "clients" else "evaluation.per_class=true"
        raise UserError(
            f"{setting} needs the clients' examples, but with client=script only the script sees them; leave it out: "
            "the script measures by federated.receive(model, evaluate=...)"
        )
    if config.sampling == "proportional":
        raise UserError(
            "sampling=proportional needs the clients' numbers of examples before round 1, which only scripts know; use "
            "sampling=uniform"
        )
    if config.strategy.name == "FedDane":
        raise UserError(
            "strategy=feddane asks clients for full gradients, which a script does not give; use strategy=fedprox"
        )
    if config.model.target == MODEL_OF_CLIENTS and config.model.init == "zeros":
        raise UserError("model.init=zeros is for fedprox's own models; with client=script use default or a file")
    script_spec(config).check()


def script_spec(config: Config) -> ScriptSpec:
    """Return what an engine's processes need to play any client by the configuration's script."""
    client, folder = config.client, Path.cwd()
    return ScriptSpec(
        script=str(folder / str(client.script)),
        folder=str(folder),
        num_clients=config.num_clients or 1,
        args=client.args,
        data=client.data,
        learning_rate=config.learning_rate,
        at_once=client.at_once,
        num_threads=client.num_threads,
        preload=client.preload,
        output=None if client.output is None else str(folder / client.output),
    )


def facts_about(spec: ScriptSpec) -> Facts:
    """Return the little that is known about the data of a script's clients."""
    nothing = LabelledData(
        features=np.zeros((1, 1), dtype=np.float32),
        labels=np.zeros(1, dtype=np.int64),
        test_features=np.empty((0, 1), dtype=np.float32),
        test_labels=np.empty(0, dtype=np.int64),
        num_classes=1,
        mean=np.zeros((), dtype=np.float32),
        std=np.ones((), dtype=np.float32),
    )
    digest = hashlib.sha256(Path(spec.script).read_bytes()).hexdigest()[:32]
    return Facts(
        examples=nothing,
        sizes=np.ones(spec.num_clients, dtype=np.int64),
        held_out_sizes=np.zeros(spec.num_clients, dtype=np.int64),
        client_ids=(),
        num_tested=0,
        num_left_over=0,
        fingerprint=lambda: {"script": digest},
        has_sizes=False,
    )


def first_model(config: Config, grid: Engine, given: Arrays | None) -> FirstModel:
    """Return the initial model: the script's own, or a given one that fits it.

    Args:
        config: The configuration.
        grid: Reaches the clients, the first of which is asked.
        given: The state dict of the model that the configuration names; None for the script's.

    Raises:
        UserError: If the script fails, or the models differ.
    """
    seed = int(generator(config.seed, Stream.INIT, repetition=config.repeat_num).integers(2**31))
    message = TaskMessage({}, ClientTask(0, config.num_epochs, 1, False, (seed,)), INITIAL)
    (reply,) = grid.send_and_receive([message], timeout=config.round_timeout)
    name = f"client.script={config.client.script}"
    if is_late(reply):
        raise UserError(f"{name} did not reach federated.receive() within round_timeout={config.round_timeout:g} s")
    if reply.has_error():
        raise UserError(f"{name} failed before round 1: {reply.error.reason}")
    own, source = arrays_of(reply), f"model={config.model.name}"
    if given is None:
        given, source = own, f"model.init={config.model.init}"
        if config.model.init != "default":
            given = _weights(config.model.init)
    _check_same_shapes(own, given, f"{source} is another model than that of {name}")
    return FirstModel(to_record({key: given[key] for key in own}), bool(metrics_of(reply)["evaluates"]))


def _weights(file: str) -> Arrays:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model.init={file} cannot be read: {one_line(error)}; use default or a safetensors file"
        ) from None


def _check_same_shapes(own: Arrays, given: Arrays, fault: str) -> None:
    """Raise UserError unless two state dicts have the same names, shapes and kinds of numbers."""
    ours, theirs = ({key: (array.shape, array.dtype.kind) for key, array in each.items()} for each in (own, given))
    if ours != theirs:
        key = min(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        sizes = [f"shape {each[key][0]}" if key in each else "missing" for each in (theirs, ours)]
        raise UserError(f"{fault}: {key} is {sizes[0]}, and {sizes[1]} in the script; let both have the same")
