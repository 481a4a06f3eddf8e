"""Checks of a model before round 1: its tensors, inputs and outputs, and that training reaches its parameters."""

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedprox.data.facts import Facts
from fedprox.data.federated import LabelledData
from fedprox.errors import USER_CODE_ERRORS, UserError, one_line, with_location
from fedprox.models.logistic import is_logistic
from fedprox.plan.epoch_batches import KEEP, epoch_batches
from fedprox.solvers.generators import seeded
from fedprox.solvers.losses import PAPER_LOSS, Loss
from fedprox.solvers.problem import Params
from fedprox.solvers.workspace import TrainingWorkspace, Workspace, tuned_for_cpu, with_channels_last

_EXAMPLES = 3  # for a trial
_log = logging.getLogger("fedprox")


def make_lazy_layers(model: nn.Module, target: str, data: LabelledData) -> None:
    """Give a model's lazy layers their shapes and initial weights by one forward pass; other models stay unchanged.

    The weights are drawn from the global generators, as those of other layers are when a model is created.

    Raises:
        UserError: If the model does not accept the data, or the pass does not reach a layer.
    """
    own = [*model.named_parameters(), *model.named_buffers()]
    if not any(is_lazy(tensor) for _, tensor in own):
        return
    ready = {name: tensor.clone() for name, tensor in model.named_buffers() if not is_lazy(tensor)}
    _output(model.eval(), _examples(data, 1), target)
    model.train()
    for name, buffer in model.named_buffers():
        if name in ready:  # such as a counter of forward passes
            buffer.copy_(ready[name])
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if left:
        raise UserError(
            f"model's {left[0]} has no shape after a forward pass in evaluation mode; give that layer its sizes, or "
            f"remove it from {target}"
        )


def check_held(model: nn.Module, target: str) -> None:
    """Raise UserError unless a model's state can be copied, sent between server and clients, and saved."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) and any(own.requires_grad for own in module.parameters()):
            raise UserError(
                f"model is compiled by torch.jit, whose copies cannot be trained; use {target} without torch.jit"
            )
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise UserError(
                f"model's {name} has a hook on its gradient, which copies of a model lose; change the gradient in a "
                f"hook of the module, or in the forward pass of {target}"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if fault := _fault(tensor):
            raise UserError(f"model's {name} is {fault}, which no update can hold; make it dense float32 in {target}")
    state = model.state_dict()
    for name, entry in state.items():
        if not isinstance(entry, Tensor):
            raise UserError(
                f"model's state dict must hold only tensors, but {name} is a {type(entry).__name__}; "
                f"make it a buffer, or remove it from {target}"
            )
    places: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in state:
            raise UserError(f"model's {name} is trained, but missing from its state dict; fix state_dict() of {target}")
        other = places.setdefault(parameter.data_ptr(), name)
        if other != name and parameter.numel():
            raise UserError(
                f"model's {other} and {name} are two parameters in the same memory; tie them by giving one "
                f"nn.Parameter both names in {target}"
            )


def check_repeats(model: nn.Module, again: nn.Module, target: str) -> None:
    """Warn if two models that were made with the same seed have different initial weights."""
    own, other = model.state_dict(), again.state_dict()
    differing = [name for name in own if name not in other or not torch.equal(own[name], other[name])]
    if differing:
        _log.warning(
            "%s has other initial weights each time it is made (%s): they do not follow from the seed, and compared "
            "runs begin at different models; draw them from torch's global generator",
            *(target, differing[0]),
        )


def _fault(tensor: Tensor) -> str:
    """Return why a tensor cannot be a NumPy array of real numbers; "" if it can."""
    if tensor.is_meta:
        return "on the device meta, without values"
    if tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
        return "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
    try:
        torch.empty(0, dtype=tensor.dtype).numpy()
    except TypeError:
        return f"of type {_short(tensor.dtype)}"
    return f"of type {_short(tensor.dtype)}" if tensor.dtype.is_complex else ""


def check_takes_data(model: nn.Module, target: str, data: LabelledData) -> None:
    """Raise UserError unless a model accepts the data's examples and returns finite logits for their classes.

    The model is not changed, except that logits are taken out of an output that holds them as `logits`.
    """
    features = _examples(data, 1)
    logits = _logits(model, _copy(model, target).eval(), features, target, data.num_classes)
    if not torch.isfinite(logits).all():
        bad = [name for name, own in model.state_dict().items() if not torch.isfinite(own).all()]
        where = f": {bad[0]} holds nan or infinity" if bad else ""
        raise UserError(
            f"model gives nan or infinite logits with its initial weights{where}; fix the initial weights of "
            f"{target} (model.init), or the data"
        )
    if data.task != "classification":
        return
    if data.num_classes > 1 and bool((logits >= 0).all()) and bool(((logits.sum(dim=1) - 1).abs() < 1e-4).all()):
        _log.warning(
            "the outputs of %s look like probabilities, but the loss applies softmax itself; return logits", target
        )


def check_loss(model: nn.Module, loss: Loss, name: str, data: LabelledData) -> None:
    """Raise UserError unless a loss gives one finite number with a gradient for a model's outputs.

    Args:
        model: Has passed `check_takes_data`; it is not changed.
        loss: Of the local problem.
        name: Of the loss, in errors.
        data: Whose first examples are tried.
    """
    features = _examples(data, _EXAMPLES)
    with seeded(0), torch.no_grad():
        outputs = copy.deepcopy(model).eval()(features)
    try:
        found = loss(outputs.float().requires_grad_(), torch.from_numpy(data.labels[: len(features)]))
    except USER_CODE_ERRORS as error:
        shapes = f"outputs of shape {tuple(outputs.shape)} and labels of shape {data.labels[: len(features)].shape}"
        raise UserError(f"{name} failed for {shapes}: {with_location(error)}; fix it") from error
    got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    if not isinstance(found, Tensor) or found.dim() or not found.requires_grad:
        got += ", which does not depend on them" * (isinstance(found, Tensor) and not found.requires_grad)
        raise UserError(
            f"{name} must return the mean loss of a batch, computed from the outputs, a tensor of shape (), got {got}; "
            "return losses.mean()"
        )
    if not torch.isfinite(found):
        raise UserError(f"{name} gives {float(found.detach())} for the initial model; fix the loss, or the data")


def check_trains(
    model: nn.Module, target: str, batch_size: int, data: LabelledData, objective: Loss = PAPER_LOSS
) -> None:
    """Raise UserError unless a forward and backward pass in training mode reaches the parameters that solvers change.

    On a few examples, plain autograd and `TrainingWorkspace` must give the same gradients. The model has passed
    `check_takes_data`; it is not changed.
    """
    if is_logistic(model):
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model has nothing to train: no parameter of {target} requires a gradient")
    features = _examples(data, _EXAMPLES)
    num = min(batch_size, len(features))
    labels = torch.from_numpy(data.labels[:num])
    _logits(model, _copy(model, target).train(), features[:num], target, data.num_classes)
    tuned = tuned_for_cpu(model, features)
    laid_out = features if tuned is model else with_channels_last(features)
    plain, packed, state = Workspace(model, "cpu"), TrainingWorkspace(model, "cpu"), model.state_dict()
    solvers = packed if tuned is model else TrainingWorkspace(tuned, "cpu")
    try:
        passes = [_gradients(plain, state, features[:num], labels, objective) for _ in range(2)]
        _gradients(packed, state, features[:num], labels, objective)
        if solvers is not packed:
            _gradients(solvers, state, laid_out[:num], labels, objective)
    except USER_CODE_ERRORS as error:
        raise UserError(
            f"model cannot be trained on {num} inputs, {_described(features)}: {with_location(error)}; fix {target}"
        ) from error
    _check_reached(model, target, passes)
    _check_same(target, [gradients for gradients, _ in passes], packed.parts, solvers.parts)


def _check_reached(model: nn.Module, target: str, passes: list[tuple[Params, list[Tensor]]]) -> None:
    """Raise UserError if a pass reaches no parameter, or a tensor that is not one; warn of parameters left out."""
    (reached, leaves), (_, others) = passes
    # Tensors that only one pass has are intermediate results.
    strangers = [leaf for leaf in leaves if any(leaf is other for other in others)]
    if strangers:
        raise UserError(
            f"model computes with a trainable tensor of shape {tuple(strangers[0].shape)} that is not a parameter of "
            "its copies, so training would not reach it; make it an nn.Parameter, keep layers in nn.ModuleList, and "
            f"access both through self in {target}"
        )
    if not reached:
        raise UserError(f"model has nothing to train: no parameter of {target} gets a gradient from its logits")
    left_out = [name for name, own in model.named_parameters() if own.requires_grad and name not in reached]
    if left_out:
        more = f" and {len(left_out) - 3} more parameters" if len(left_out) > 3 else ""
        _log.warning(
            "no gradient reaches %s%s of %s: the loss does not depend on them", ", ".join(left_out[:3]), more, target
        )


def _check_same(target: str, passes: list[Params], packed: Params, solvers: Params) -> None:
    """Raise UserError unless the local solver's gradients are plain autograd's; warn if two passes of that differ.

    Another layout in memory only has to have a gradient for all: dropout draws in the order of the layout, and rounding
    may let a ReLU open or close.
    """
    expected, again = passes
    is_repeatable = _differing(again, expected, tolerance=1e-5) is None
    if not is_repeatable:
        _log.warning(
            "%s gives different gradients in a second pass: it keeps state outside its buffers, or draws from its own "
            "generator, so results depend on the number of threads and cannot be repeated",
            target,
        )
    wrong = _differing(packed, expected, tolerance=0.05 if is_repeatable else math.inf)
    if name := wrong or _differing(solvers, expected, tolerance=math.inf):
        raise UserError(
            f"model's {name} gets another gradient in the local solver, which moves parameters to its own memory, than "
            f"in plain autograd; use plain nn.Parameter and nn.Module in {target}"
        )


def _gradients(
    workspace: Workspace, state: Params, features: Tensor, labels: Tensor, objective: Loss
) -> tuple[Params, list[Tensor]]:
    """Return the gradients of the parameters that a pass reaches, and other tensors that it adds gradients to."""
    model = workspace.model.train()
    workspace.load(state)
    if not isinstance(workspace, TrainingWorkspace):
        model.zero_grad()
    with seeded(0), torch.enable_grad():
        loss = objective(model(features.clone()), labels)
        if not loss.requires_grad:
            return {}, []
        own = {id(parameter) for parameter in model.parameters()}
        strangers = [leaf for leaf in _leaves(loss) if id(leaf) not in own]
        loss.backward()  # type: ignore[no-untyped-call]
    reached = {name: own.grad.to_dense() for name, own in model.named_parameters() if own.grad is not None}
    return reached, strangers


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield the tensors to whose gradients a backward pass adds."""
    nodes: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield node.variable
        nodes += [below for below, _ in node.next_functions]


def _differing(gradients: Params, expected: Params, tolerance: float) -> str | None:
    """Return the first parameter whose gradient is missing, 0 or off by more than `tolerance` of its largest value."""
    for name, gradient in expected.items():
        size, given = gradient.abs().max(), gradients.get(name, torch.zeros_like(gradient))
        if size > 0 and not (given.any() and (given - gradient).abs().max() <= tolerance * size):
            return name
    return None


def check_smallest_batch(model: nn.Module, batch_size: int, facts: Facts, last_batch: str = KEEP) -> None:
    """Raise UserError if a client has a batch of one example and the model cannot be trained on one.

    Batch norm cannot if an example gives one number per channel, which has no variance.
    """
    sizes = np.unique(facts.sizes[facts.sizes > 0]).tolist()  # at a site, other clients have none
    ones = [size for size in sizes if epoch_batches(size, batch_size, last_batch).smallest == 1]
    is_alone = np.isin(facts.sizes, ones)
    if not is_alone.any():
        return
    try:
        with torch.no_grad(), seeded(0):
            copy.deepcopy(model).train()(_examples(facts.examples, 1))
    except ValueError as error:
        raise UserError(
            f"batch_size={batch_size} leaves one example in the last batch of {int(is_alone.sum())} clients, such as "
            f"client {int(is_alone.argmax())}, and the model cannot be trained on one: {one_line(error)}; "
            "set last_batch=drop or merge, choose another batch_size, or a model without batch norm such as resnet18_gn"
        ) from error
    except USER_CODE_ERRORS:  # `check_trains` reports it
        return


def _logits(model: nn.Module, copied: nn.Module, features: Tensor, target: str, num_classes: int) -> Tensor:
    """Return the logits of a model's copy; a hook makes the model return them if its output holds more."""
    with seeded(0):
        output = _output(copied, features, target)
    logits = take_logits(copied, (), output)
    if logits is not output:
        model.register_forward_hook(take_logits)
    expected = (len(features), num_classes)
    got = f"a {type(logits).__name__}"
    if isinstance(logits, Tensor):
        if tuple(logits.shape) == expected and logits.is_floating_point():
            return logits
        got = f"{_short(logits.dtype)} of shape {tuple(logits.shape)}"
    raise UserError(
        f"model must give {num_classes} logits for each of {len(features)} inputs, {_described(features)}, so shape "
        f"{expected}, got {got}{_in_mode(copied)}; return only the logits, or an object with `logits`, or choose "
        f"another model than {target}"
    )


def take_logits(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Return the logits of an output that also holds more, as HuggingFace's models return; any other output unchanged.

    A forward hook, because it leaves the names in the state dict unchanged.
    """
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


def _output(model: nn.Module, features: Tensor, target: str) -> Any:
    """Return a model's output for a copy of some inputs, without gradients."""
    try:
        with torch.no_grad():
            return model(features.clone())
    except USER_CODE_ERRORS as error:
        tokens = ", or give numbers that are not tokens as float32 (in JSON 5.0, not 5)"
        raise UserError(
            f"model does not accept the data's inputs{_in_mode(model)}, {_described(features)}: "
            f"{with_location(error)}; choose another model than {target}"
            f"{tokens if features.dtype == torch.int64 else ''}"
        ) from error


def _copy(model: nn.Module, target: str) -> nn.Module:
    """Return a copy of a model that has loaded the model's state dict."""
    try:
        copied = copy.deepcopy(model)
        copied.load_state_dict(model.state_dict())
    except Exception as error:
        raise UserError(
            "model must be copyable and load its own state dict, as in every thread and worker: "
            f"{with_location(error)}; fix {target}"
        ) from error
    return copied


def _examples(data: LabelledData, num: int) -> Tensor:
    return torch.from_numpy(data.model_input(data.features[:num])).clone()  # a copy: tokens are the data set's arrays


def _in_mode(model: nn.Module) -> str:
    return " in training mode" if model.training else ""


def _described(features: Tensor) -> str:
    return f"{_short(features.dtype)} of shape {tuple(features.shape[1:])}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
