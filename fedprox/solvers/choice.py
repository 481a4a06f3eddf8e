"""Choice of the solver that a run uses."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedprox.errors import UserError
from fedprox.solvers.batches import ImageInput
from fedprox.solvers.cohort import CohortSolver, zero_labels
from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.memory import clients_at_once
from fedprox.solvers.problem import SgdSettings, Solver
from fedprox.solvers.reference import ReferenceSolver
from fedprox.solvers.trial import seconds_per_step

REFERENCE, COHORT, ONE_BY_ONE, COMPILED = "reference", "cohort", "cohort, one client after another", "compiled"
_log = logging.getLogger("fedprox")


@dataclass(frozen=True)
class Choice:
    """A solver and why it was chosen.

    Attributes:
        solver: The solver.
        name: "reference", "cohort", "cohort, one client after another" or "compiled".
        ms_per_step: Milliseconds for a step of all clients of a round with each solver that was tried; empty without a
            trial.
    """

    solver: Solver
    name: str
    ms_per_step: Mapping[str, float] = field(default_factory=dict)


def choose(
    name: str,
    model: nn.Module,
    sgd: SgdSettings,
    device: str,
    examples: Tensor | None = None,
    image_input: ImageInput | None = None,
    clients_per_round: int = 1,
    labels: Tensor | None = None,
) -> Choice:
    """Return the solver of a name; "auto" decides by the model and the device.

    "auto" is the compiled solver for logistic regression by SGD on the cross-entropy on the CPU, and the reference
    solver for anything else there. On a GPU it tries the reference solver, the cohort solver, and that with one client
    after another, for a few steps, and takes the fastest.

    Args:
        name: "auto", "reference" or "cohort".
        model: The architecture.
        sgd: Settings of the local solver.
        device: Device on which clients compute, such as "cpu" or "cuda".
        examples: Three or more model inputs, shape (n, *input_shape), to try the model on; without them the cohort
            solver is not considered, and the reference solver uses one thread.
        image_input: How stored images become model input; None if the examples are not stored images.
        clients_per_round: K, for the trial.
        labels: Labels like those of the clients, shape (n, ...), for their form; None for classes.

    Raises:
        UserError: If there is no solver of that name, or it cannot solve the model's problems.
    """
    if name not in ("auto", REFERENCE, COHORT):
        raise UserError(f"solver must be auto, reference or cohort, got {name}; or name your own in solver._target_")
    augments = image_input is not None and image_input.augmentation is not None
    if name == "auto" and is_compiled(model, sgd, device, augments=augments):
        return Choice(LogisticSolver(sgd), COMPILED)
    is_tried = name == "auto" and torch.device(device).type == "cuda"
    if name == "cohort" or is_tried:
        if examples is not None and CohortSolver.accepts(model, sgd, device, examples, labels):
            at_once = clients_at_once(model, sgd, examples, clients_per_round, device)
            cohort = CohortSolver(model, sgd, device, image_input, at_once=at_once)
            if not is_tried:
                return Choice(cohort, COHORT)
            one_by_one = CohortSolver(model, sgd, device, image_input, at_once=1)
            reference = ReferenceSolver(model, sgd, device, None, image_input)
            solvers: dict[str, Solver] = {COHORT: cohort, ONE_BY_ONE: one_by_one, REFERENCE: reference}
            zeros = zero_labels(examples, labels).to(device)
            return _fastest(solvers, model, (examples.to(device), zeros), sgd.batch_size, clients_per_round)
        if name == "cohort":
            raise UserError(
                "solver=cohort needs a model that computes all clients in one batch, without recurrent layers, and "
                "draws random numbers only in nn.Dropout and nn.Dropout2d, which this "
                f"{type(model).__name__} does not{_and_more(sgd)}; use solver=auto or reference"
            )
    return Choice(ReferenceSolver(model, sgd, device, examples, image_input), REFERENCE)


def _and_more(sgd: SgdSettings) -> str:
    """Return what else may be the reason that the cohort solver differs from the reference."""
    if sgd.optimizer and sgd.has_epoch_rates:
        return ", or optimizer=sgd with schedule.step=epoch"
    return "" if sgd.is_plain else ", or a loss that is a mean over examples, or an optimiser like Adam"


def _fastest(
    solvers: Mapping[str, Solver],
    model: nn.Module,
    examples: tuple[Tensor, Tensor],
    batch_size: int,
    clients_per_round: int,
) -> Choice:
    """Return the solver that is the fastest in a trial; the first of equals."""
    params = {name: value.to(examples[0].device, copy=True) for name, value in model.state_dict().items()}
    seconds = seconds_per_step(solvers, params, *examples, batch_size, clients_per_round)
    name = min(solvers, key=lambda each: seconds[each])
    ms_per_step = {each: round(1000 * one, 3) for each, one in seconds.items() if math.isfinite(one)}
    times = ", ".join(f"{each} {ms:g} ms" for each, ms in ms_per_step.items())
    _log.info("solver=auto takes %s; a step of %d clients took: %s", name, clients_per_round, times)
    return Choice(solvers[name], name, ms_per_step)


def fastest_device(name: object, model: nn.Module, sgd: SgdSettings, device: str, *, augments: bool = False) -> str:
    """Return the device on which clients compute: the CPU for models that "auto" computes faster there.

    The compiled solver for logistic regression needs less time for a step than a GPU needs to begin one.

    Args:
        name: "auto", "reference", "cohort", or anything else for another solver.
        model: The architecture.
        sgd: Settings of the local solver.
        device: The device that the settings name.
        augments: Whether training images are changed.
    """
    return "cpu" if name == "auto" and is_compiled(model, sgd, "cpu", augments=augments) else device


def is_compiled(model: nn.Module, sgd: SgdSettings, device: str, *, augments: bool) -> bool:
    """Return whether the compiled solver can do the work; it neither changes images nor computes in bfloat16."""
    return LogisticSolver.accepts(model, sgd, device) and not augments and not sgd.mixed_precision
