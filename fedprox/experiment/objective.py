"""The local objective from the configuration: loss, optimiser, solver and metrics, and what does not go with them."""

import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedprox.channel.attacks import Attack
from fedprox.config.instantiate import build, function_of
from fedprox.config.schema import CHOOSE, Config, Target
from fedprox.data.federated import LabelledData
from fedprox.errors import USER_CODE_ERRORS, UserError, with_location
from fedprox.evaluation.evaluators import Metric
from fedprox.solvers.losses import PAPER_LOSS, Loss, as_loss
from fedprox.solvers.problem import KEPT, MakeOptimizer, SgdSettings, Solver

SGD = "torch.optim.SGD"
NO_AUGMENTATION = "fedprox.data.augmentation.none"
CORRECTING = (  # strategies that add something to the clients' gradients
    "fedprox.strategies.fedprox.FedDane",
    "fedprox.strategies.corrected.Scaffold",
    "fedprox.strategies.corrected.FedDyn",
)
_SETTINGS = {field.name for field in fields(SgdSettings)} - {"loss", "optimizer", "has_epoch_rates"}


def sgd_settings(config: Config) -> SgdSettings:
    """Return the settings of the local solver."""
    return SgdSettings(
        **config.model_dump(include=_SETTINGS),
        loss=loss(config),
        optimizer=optimizer(config),
        has_epoch_rates=config.schedule.step == "epoch",
    )


def loss(config: Config) -> Loss:
    """Return the loss.

    Raises:
        UserError: If it cannot be made.
    """
    return as_loss(function_of("loss", config.loss))


@dataclass(frozen=True)
class _OfTorch:
    """Makes an optimiser by a class like torch's; may be sent to other processes."""

    target: str
    arguments: Mapping[str, Any]

    def __call__(self, params: Iterable[Tensor], learning_rate: float) -> Optimizer:
        made = pkgutil.resolve_name(self.target)(list(params), lr=learning_rate, **self.arguments)
        return cast(Optimizer, made)


def optimizer(config: Config) -> MakeOptimizer | None:
    """Return what makes a client's optimiser; None for SGD.

    Raises:
        UserError: If it cannot be made, has no learning rate or weight decay, or needs a closure.
    """
    target = config.optimizer
    if target.target == SGD and not target.arguments:
        return None
    name, called = f"optimizer._target_={target.target}", pkgutil.resolve_name(target.target)
    names = inspect.signature(called).parameters
    if "lr" not in names:
        raise UserError(f"{name} must accept lr, the learning rate; name a class like those of torch.optim")
    given = dict(target.arguments)
    for setting in ("momentum", "weight_decay"):
        if setting in given:
            raise UserError(f"optimizer.{setting} is the setting {setting}; give {setting}={given[setting]}")
        if setting in names:
            given[setting] = getattr(config, setting)
        elif value := getattr(config, setting):
            raise UserError(f"{setting} must be 0 with {name}, which has none, got {value:g}; add {setting}=0")
    make = _OfTorch(target.target, given)
    _try(name + f" with {', '.join(f'{key}={value}' for key, value in given.items())}" * bool(given), make)
    return make


def _try(name: str, make: MakeOptimizer) -> None:
    """Raise UserError unless an optimiser takes two steps without a closure."""
    parameter = nn.Parameter(torch.ones(2, 2))
    try:
        made = make([parameter], 0.1)
        for _ in range(2):
            parameter.grad = torch.ones(2, 2)
            made.step()
    except USER_CODE_ERRORS as error:
        why = f"cannot take a step: {with_location(error)}"
        if "closure" in str(error):
            why = "needs a closure, which computes the loss several times in a step"
        raise UserError(f"{name} {why}; use another optimiser, such as optimizer=adam") from error


@dataclass(frozen=True)
class OwnSolver:
    """Makes a solver of a user's in any process.

    Attributes:
        target: Its class.
        asked: What the run asks of it, of `fedprox.solvers.problem.OPTIONAL`: name -> the setting that does.
    """

    target: Target
    asked: Mapping[str, str]

    def __call__(self, **offered: Any) -> Solver:
        """Return the solver, which gets what it accepts of the arguments of `fedprox.solvers.choice.choose`.

        Raises:
            UserError: If it does not have what `fedprox.solvers.problem.Solver` asks for, or does not say that it
                supports what the run asks of it.
        """
        made = build("solver", self.target, object, **offered)
        if missing := [each for each in ("is_concurrent", "takes_images", "solve") if not hasattr(made, each)]:
            raise UserError(f"solver._target_={self.target.target} must have {missing[0]}; see docs/extending.md")
        for name, setting in self.asked.items():
            if name not in getattr(made, "supports", ()):
                raise UserError(
                    f"solver._target_={self.target.target} does not say that it supports {name}, which {setting} asks "
                    "for; name it in the class's attribute supports if it does, or leave that setting out"
                )
        return cast(Solver, made)


def solver(config: Config) -> str | OwnSolver:
    """Return the name of one of our solvers, or what makes a user's."""
    target = config.solver
    return str(target.arguments["name"]) if target.target == CHOOSE else OwnSolver(target, _asked(config))


def _asked(config: Config) -> dict[str, str]:
    """Return what a run asks of a solver besides plain SGD steps from w^t, each with the setting that does."""
    sgd, personal = sgd_settings(config), config.personalisation.name
    asked = {
        "loss": (sgd.loss != PAPER_LOSS, f"loss={config.loss.name}"),
        "momentum": (sgd.momentum > 0, f"momentum={sgd.momentum:g}"),
        "optimizer": (sgd.optimizer is not None, f"optimizer={config.optimizer.name}"),
        "max_grad_norm": (sgd.max_grad_norm is not None, f"max_grad_norm={sgd.max_grad_norm}"),
        "correction": (config.strategy.target in CORRECTING, f"strategy={config.strategy.name}"),
        "start": (personal in ("local", "ditto", "apfl", "fedrep"), f"personalisation={personal}"),
        "shifts": (config.augmentation.target != NO_AUGMENTATION, f"augmentation={config.augmentation.name}"),
        "epoch_factors": (sgd.has_epoch_rates, "schedule.step=epoch"),
        "velocity": (sgd.momentum_buffer == KEPT, f"momentum_buffer={KEPT}"),
        "corrects_steps": (
            sgd.momentum > 0 and config.strategy.arguments.get("correct") == "steps",
            "strategy.correct=steps",
        ),
    }
    return {name: setting for name, (is_asked, setting) in asked.items() if is_asked}


def metrics(config: Config) -> dict[str, Metric]:
    """Return what is measured besides loss and accuracy, by name."""
    return {name: function_of(f"metrics.{name}", target) for name, target in config.metrics.items()}


def check_objective(config: Config, attack: Attack | None) -> None:
    """Raise UserError for settings that need classes, or a server with examples, if there are none."""
    task, settings = loss(config).task or "classification", sgd_settings(config)
    if config.personalisation.name == "apfl" and (settings.optimizer or settings.max_grad_norm):
        raise UserError(
            "personalisation=apfl scales the steps of SGD, but not with another optimizer or with max_grad_norm; use "
            "optimizer=sgd without max_grad_norm, or personalisation=ditto"
        )
    if config.metrics and (config.has_sites or config.client.script is not None):
        raise UserError(
            "metrics= are measured on the server's test examples, which it does not have here; leave it out"
        )
    if task == "classification":
        return
    refused = {
        "evaluation.per_class=true": config.evaluation.per_class,
        "evaluation.per_client=true": config.evaluation.per_client and task == "regression",
        f"personalisation={config.personalisation.name}": config.personalisation.name != "none"
        and task == "regression",
        f"attack={type(attack).__name__}": attack is not None and attack.changes_data,
        "dataset=sites": config.has_sites,
    }
    if name := next((name for name, is_given in refused.items() if is_given), None):
        raise UserError(
            f"{name} is for classes, but loss={config.loss.name} is for {task}; leave it out, or use another loss"
        )


def check_task(config: Config, examples: LabelledData) -> None:
    """Raise UserError unless the loss and the metrics take the labels of the data."""
    wanted = loss(config).task
    if wanted not in (None, examples.task):
        remedy = {"classification": "cross_entropy", "regression": "mse", "multilabel": "bce"}[examples.task]
        raise UserError(
            f"loss={config.loss.name} is for {wanted}, but the labels of the data are for {examples.task}; use "
            f"loss={remedy}, or other data"
        )
    for name, target in config.metrics.items():
        is_of_numbers = target.name.endswith("_error") or target.name in ("r2_score", "explained_variance_score")
        if examples.task == "classification" and is_of_numbers and target.target.startswith("sklearn.metrics."):
            raise UserError(
                f"metrics.{name} measures numbers, but the labels of the data are classes, whose numbers mean nothing; "
                "use metrics=classification, or leave it out"
            )
    weights = config.loss.arguments.get("class_weights")
    if weights is not None and len(weights) != examples.num_classes:
        raise UserError(
            f"loss.class_weights must have a factor for each of {examples.num_classes} classes, got {len(weights)}"
        )
