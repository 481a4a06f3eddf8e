"""One client's update in one round of a run, computed again: a run records models, not updates, but repeats exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import nn

from fedprox.cli.resume import whole_command
from fedprox.config.compose import compose
from fedprox.config.schema import Config
from fedprox.data.federated import Features, Integers, LabelledData
from fedprox.errors import UserError
from fedprox.experiment.beginning import check_same_data
from fedprox.experiment.build import Experiment
from fedprox.experiment.data import divided_data
from fedprox.experiment.model import initial_model
from fedprox.experiment.objective import sgd_settings
from fedprox.experiment.personal import local_names
from fedprox.federation.channel import Layout
from fedprox.federation.messages import client_of, record_of, task_of
from fedprox.runs.checkpoint import Checkpoint, of_round, rounds_of
from fedprox.runs.reader import read_record, read_rows
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.updates import Arrays, arrays_of, metrics_of

_SAME = 1e-3  # relative difference of drifts; a GPU rounds differently


@dataclass(frozen=True)
class RecordedUpdate:
    """What a client sent, what the server knew, and the examples that it should not know.

    Attributes:
        config: Of the run.
        round_num: The round.
        client: The client.
        model: The architecture.
        before: w^t.
        after: w_k.
        names: The trained parameters that travel.
        num_steps: Steps of SGD between the two.
        sgd: Settings of these steps, with the round's learning rate.
        mu: Weight of the proximal term.
        features: The client's training examples as stored, shape (n_k, *input_shape).
        labels: Their classes, shape (n_k,).
        examples: The data set, for its range, mean and std.
    """

    config: Config
    round_num: int
    client: int
    model: nn.Module
    before: Arrays
    after: Arrays
    names: Sequence[str]
    num_steps: int
    sgd: SgdSettings
    mu: float
    features: Features
    labels: Integers
    examples: LabelledData

    @property
    def delta(self) -> dict[str, NDArray[np.float64]]:
        """w_k - w^t of the trained parameters."""
        return {name: self.after[name].astype(np.float64) - self.before[name].astype(np.float64) for name in self.names}


def recorded_update(run_dir: Path, round_num: int, client: int | None, overrides: Sequence[str]) -> RecordedUpdate:
    """Return a client's update in a round of a run.

    Args:
        run_dir: The run.
        round_num: The round, >= 1.
        client: The client; None for the one with the fewest examples among those whose updates counted.
        overrides: Settings that a record may not decide; see `fedprox.runs.trust`.

    Raises:
        UserError: If the update cannot be computed again.
    """
    config = _config_of(run_dir, overrides)
    drifts = _recorded_drifts(run_dir, round_num)
    start = _start(run_dir, round_num, config)
    experiment = Experiment.of(config)
    check_same_data({"fingerprint": experiment.facts.fingerprint()}, read_record(run_dir / "run.json"), str(run_dir))
    sizes = experiment.facts.sizes
    chosen = min(drifts, key=lambda each: int(sizes[each])) if client is None else client
    if chosen not in drifts:
        raise UserError(
            f"client={client} has no recorded update in round {round_num} of {run_dir}; those of clients "
            f"{', '.join(map(str, sorted(drifts)))} count there"
        )
    return _computed(experiment, start, round_num, chosen, drifts[chosen])


def _config_of(run_dir: Path, overrides: Sequence[str]) -> Config:
    """Return a run's configuration on this machine, as if the run was resumed."""
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{run_dir} is not a run directory: run.json is missing; name a directory that has it")
    words = whole_command([f"resume={run_dir}", "engine=local", *overrides])
    config = compose([word for word in words[2:] if not word.startswith("hydra.")], words[1])
    if config.client.script is not None:
        raise UserError(f"{run_dir} has no recorded updates: with client=script only the script can compute them again")
    if config.momentum_buffer == "kept" or config.schedule.step == "epoch":
        raise UserError(
            f"{run_dir} has updates that are no sums of one round's gradients at one learning rate, with "
            "momentum_buffer=kept or schedule.step=epoch; name a run without them"
        )
    if not sgd_settings(config).is_plain:
        raise UserError(
            f"{run_dir} was trained with another loss, another optimiser or clipped gradients, but leakage "
            "reconstructs examples from steps of SGD on the cross-entropy alone; name another run"
        )
    return config


def _recorded_drifts(run_dir: Path, round_num: int) -> dict[int, float]:
    """Return client -> drift of the updates that counted in a round."""
    header, rows = read_rows(run_dir / "clients.csv")
    named = [dict(zip(header, row, strict=True)) for row in rows]
    drifts = {
        int(row["client"]): float(row["drift"])
        for row in reversed(named)  # of a client drawn twice the first
        if row["round"] == str(round_num) and row["counted"] == "True"
    }
    if not drifts:
        last = max((int(row["round"]) for row in named), default=0)
        raise UserError(
            f"round={round_num} of {run_dir} has no recorded updates; name a round from 1 to {last} in which a client "
            "counts"
        )
    return drifts


def _start(run_dir: Path, round_num: int, config: Config) -> Checkpoint | None:
    """Return a run's last checkpoint before a round; None for the beginning of a new run."""
    earlier = [each for each in rounds_of(run_dir) if each < round_num]
    if earlier:
        return of_round(earlier[-1], run_dir)
    if config.branch_from:
        raise UserError(
            f"round={round_num} of {run_dir} has no recorded updates: it is computed again from an earlier checkpoint, "
            "and this run, a branch, has none before it; name a later round"
        )
    return None


def _model_before(experiment: Experiment, start: Checkpoint | None, round_num: int) -> ArrayRecord:
    """Return w^t, and bring strategy and mu into their state before the round, by the rounds since a checkpoint."""
    if start and start.round_num == round_num - 1:
        experiment.strategy.restore(start.carried["strategy"])
        experiment.settings.mu.restore(start.carried["mu"])
        return start.arrays
    return next(each.arrays for each in experiment.rounds(start) if each.round_num == round_num - 1)


def _computed(
    experiment: Experiment, start: Checkpoint | None, round_num: int, client: int, drift: float
) -> RecordedUpdate:
    """Return a client's update, after a check that it is the recorded one."""
    config, settings = experiment.config, experiment.settings
    arrays = _model_before(experiment, start, round_num)
    asked = settings.config(round_num)
    messages = experiment.strategy.configure_train(round_num, arrays, asked, cast(Grid, experiment.grid))
    message = next(each for each in messages if task_of(each).client == client)
    reply = _reply(experiment, message)
    found = float(metrics_of(reply)["drift"])
    if abs(found - drift) > _SAME * drift:
        raise UserError(
            f"the update of client {client} in round {round_num} cannot be computed again: its drift is {found:g}, but "
            f"clients.csv has {drift:g}; use the versions and the device of the run"
        )
    data, model = divided_data(config), initial_model(config, experiment.facts)
    unsent = {*experiment.channel.kept, *local_names(config, model)}
    factor = settings.learning_rate_factor(round_num)
    return RecordedUpdate(
        *(config, round_num, client, model),
        before={name: to_numpy(array) for name, array in cast(ArrayRecord, record_of(message, "arrays")).items()},
        after=arrays_of(reply),
        names=[name for name in Layout.of(model).trained if name not in unsent],
        num_steps=int(metrics_of(reply)["num-steps"]),
        sgd=sgd_settings(config).scaled(factor),
        mu=settings.mu.value,
        features=data.stored_examples(client)[0],
        labels=data.examples.classes[data.train[client]],
        examples=data.examples,
    )


def _reply(experiment: Experiment, message: Message) -> Message:
    (reply,) = experiment.grid.send_and_receive([message])
    if reply.has_error():
        raise UserError(f"client {client_of(reply)} cannot compute its update again: {reply.error.reason}")
    return reply
