"""Clients' steps that depend on more than their round: a velocity that is kept, and a learning rate for each epoch."""

from collections.abc import Collection

from flwr.app import ArrayRecord

from fedprox.config.schema import Config
from fedprox.errors import UserError
from fedprox.experiment.personal import check_size
from fedprox.federation.client_state import Velocities

_KEPT = "momentum_buffer=kept"


def check_steps(config: Config) -> None:
    """Raise UserError for settings with which a kept velocity, or a learning rate for each epoch, has no meaning."""
    if config.momentum_buffer == "kept":
        _check_kept(config)
    if config.schedule.step == "epoch":
        _check_epochs(config)


def _check_kept(config: Config) -> None:
    if config.optimizer.target != "torch.optim.SGD" or config.optimizer.arguments:
        raise UserError(
            f"{_KEPT} is for optimizer=sgd, whose velocity a client keeps, got "
            f"optimizer._target_={config.optimizer.target}, whose state it does not; leave it out"
        )
    if not config.momentum:
        raise UserError(f"{_KEPT} needs momentum, got momentum=0; set momentum=0.9, or leave it out")
    where = "the server holds each client's velocity"
    one_state = "which keeps arrays of each client, too"
    for is_wrong, what, why in (
        (config.client.script is not None, "client=script", "only the script knows its optimiser"),
        (config.has_sites, "dataset=sites", f"{where}, which real sites keep to themselves"),
        (config.is_deployment, "engine=deployment", f"{where}, which real sites keep to themselves"),
        (config.personalisation.name != "none", f"personalisation={config.personalisation.name}", one_state),
        (config.batch_statistics == "local", "batch_statistics=local", one_state),
        (config.sampling == "proportional", "sampling=proportional", "by which a client may train twice in a round"),
    ):
        if is_wrong:
            raise UserError(f"{_KEPT} does not go with {what}: {why}; use momentum_buffer=reset")


def _check_epochs(config: Config) -> None:
    for is_wrong, what, why in (
        (config.client.script is not None, "client=script", "a script gets one learning rate for a round"),
        (
            config.personalisation.name == "fine_tuning",
            "personalisation=fine_tuning",
            "its epochs come after those of a round",
        ),
    ):
        if is_wrong:
            raise UserError(f"schedule.step=epoch does not go with {what}: {why}; use schedule.step=round")


def velocities(config: Config, arrays: ArrayRecord, trained: Collection[str], num_clients: int) -> Velocities | None:
    """Return the clients' velocities; None if they are not kept.

    Raises:
        UserError: If they could need too much memory.
    """
    if config.momentum_buffer == "reset":
        return None
    check_size(config, trained, arrays, num_clients, _KEPT)
    return Velocities(arrays, trained, config.on_divergence)
