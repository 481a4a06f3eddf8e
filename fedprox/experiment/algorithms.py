"""What the strategies that step beyond the mean need to know, and what does not go with them."""

from collections.abc import Sequence

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.errors import UserError
from fedprox.experiment.data import attack_of
from fedprox.experiment.objective import sgd_settings
from fedprox.experiment.personal import check_size
from fedprox.federation.channel import Layout
from fedprox.federation.strategy_state import layers
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.corrected import Corrected, FedDyn, Scaffold
from fedprox.strategies.fednova import FedNova
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.server_optimisers import ServerOptimiser
from fedprox.strategies.server_step import EXAMPLES, ServerStep


def check_algorithm(config: Config, strategy: Strategy) -> None:
    """Raise UserError for settings with which a strategy, or one that it wraps, has no meaning."""
    used, schedule = layers(strategy), config.server_schedule.name
    if schedule != "constant" and not any(isinstance(layer, (ServerOptimiser, Scaffold)) for layer in used):
        raise UserError(
            f"server_schedule.name={schedule} needs a server's learning rate, which strategy={_choice(strategy)} does "
            "not have; use strategy=fedavgm, fedadagrad, fedadam, fedyogi or scaffold, or leave it out"
        )
    for layer in used:
        if isinstance(layer, (Scaffold, FedNova)):
            _check_steps(config, _choice(layer))
            _check_gradients(config, layer)
        if isinstance(layer, FedProx):
            _check_weights(config, layer)
        if isinstance(layer, (Corrected, FedNova)) and config.client.script is not None:
            raise UserError(
                f"strategy={_choice(layer)} depends on the clients' steps of SGD, but with client=script only the "
                "script knows them; use strategy=fedprox"
            )
        if isinstance(layer, FedDyn):
            _check_alpha(config)
        if isinstance(layer, Corrected):
            _check_corrected(config, _choice(layer))


def _check_steps(config: Config, name: str) -> None:
    """Raise UserError unless the weights of a client's gradients in its update are known, and positive."""
    if config.mu * config.learning_rate >= 1:
        raise UserError(
            f"mu times learning_rate must be below 1 with strategy={name}, whose weights of a client's gradients would "
            f"change signs, got {config.mu:g} times {config.learning_rate:g}; lower one of them"
        )
    sgd = sgd_settings(config)
    if sgd.optimizer or sgd.max_grad_norm:
        setting = f"max_grad_norm={sgd.max_grad_norm:g}" if sgd.max_grad_norm else f"optimizer={config.optimizer.name}"
        raise UserError(
            f"strategy={name} computes with the steps of SGD, of which {setting} makes others; leave it out, or use "
            "strategy=fedprox"
        )


def _check_gradients(config: Config, strategy: Scaffold | FedNova) -> None:
    """Raise UserError if a strategy takes a client's update for a sum of its round's gradients, and it is not."""
    corrects_steps = isinstance(strategy, Scaffold) and strategy.corrects_steps
    for is_wrong, what, remedy in (
        (config.momentum_buffer == "kept", "momentum_buffer=kept", "momentum_buffer=reset"),
        (config.schedule.step == "epoch", "schedule.step=epoch", "schedule.step=round"),
    ):
        if is_wrong and not corrects_steps:
            other = ", or strategy.correct=steps" * isinstance(strategy, Scaffold)
            raise UserError(
                f"strategy={_choice(strategy)} computes with a round's gradients at one learning rate, of which {what} "
                f"makes other updates; use {remedy}{other}"
            )


def _check_weights(config: Config, strategy: FedProx) -> None:
    """Raise UserError if the average would have other weights than the strategy's setting asks for."""
    key = strategy.weighted_by_key
    for is_wrong, what, why in (
        (config.sampling == "proportional", "sampling=proportional", "takes a simple mean"),
        (config.arrival.name == "buffered", "arrival=buffered", "weighs updates by their staleness alone"),
        (config.privacy.is_on, "privacy=client", "takes a simple mean"),
    ):
        if is_wrong and key != EXAMPLES:
            raise UserError(f"strategy.weighted_by_key={key} has no effect with {what}, which {why}; leave it out")


def _check_alpha(config: Config) -> None:
    if config.adaptive_mu.enabled:
        raise UserError(
            "adaptive_mu.enabled=true may lower mu to 0, by which strategy=feddyn divides; give mu a value above 0"
        )
    if not config.mu:
        raise UserError(
            "mu must be above 0 with strategy=feddyn, whose alpha it is, got 0; set mu=0.01, or use strategy=fedprox "
            "mu=0 for FedAvg's steps"
        )


def _check_corrected(config: Config, name: str) -> None:
    """Raise UserError for settings under which a client has no state of its own, or is not what keeps it."""
    attack, update = attack_of(config), config.update
    kept = "keeps one vector of each client"
    for is_wrong, what, why in (
        (
            config.sampling == "proportional",
            "sampling=proportional",
            f"{kept}, and a client may train twice in a round; use sampling=uniform",
        ),
        (
            config.personalisation.name not in ("none", "fine_tuning"),
            f"personalisation={config.personalisation.name}",
            f"{kept} already; use personalisation=none or fine_tuning",
        ),
        (
            config.batch_statistics == "local",
            "batch_statistics=local",
            f"{kept} already; use batch_statistics=averaged",
        ),
        (
            bool(attack and attack.changes_updates),
            f"attack={config.attack.name}",
            "makes a client's vector of the honest update; use an attack on training data, such as label_flip",
        ),
        (
            bool(update.top_k or update.quantise or update.names),
            "a lossy update=",
            "makes a client's vector of the whole update; use update=none or float32",
        ),
    ):
        if is_wrong:
            raise UserError(f"strategy={name} does not go with {what}: it {why}")


def prepare(config: Config, strategy: Strategy, facts: Facts, layout: Layout, arrays: ArrayRecord) -> None:
    """Tell a strategy what it needs to know of the model and the clients.

    Raises:
        UserError: If what it keeps of the clients could need too much memory.
    """
    names = _parameters(arrays, layout)
    for layer in layers(strategy):
        if isinstance(layer, Corrected):
            check_size(config, names, arrays, facts.num_clients, f"strategy={_choice(layer)}")
        if isinstance(layer, ServerStep):
            layer.prepare(names, facts.sizes, sgd_settings(config))


def more_bytes(strategy: Strategy, arrays: ArrayRecord, layout: Layout) -> int:
    """Return the bytes that travel each way besides the model: those of SCAFFOLD's variates."""
    sends_two = any(isinstance(layer, Scaffold) for layer in layers(strategy))
    return sum(to_numpy(arrays[name]).nbytes for name in layout.trained) if sends_two else 0


def _parameters(arrays: ArrayRecord, layout: Layout) -> Sequence[str]:
    """Return the names of the parameters that travel: tied ones by each of their names, and frozen ones, too."""
    return [name for name in arrays if name not in layout.buffers and name not in layout.local]


def _choice(strategy: Strategy) -> str:
    """Return the choice of the group `strategy` that makes a strategy of ours, or its class."""
    name = type(strategy).__name__
    return name.lower() if isinstance(strategy, ServerStep) else name
