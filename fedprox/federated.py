"""The client API: a training script becomes a federated client by five lines.

    from fedprox import federated

    site = federated.init()  # site.client, site.name, site.data
    while federated.is_running():
        federated.receive(model)  # loads w^t; from here on every optimizer step is pulled towards it by mu
        ...  # the training loop as it was
        federated.send(model, num_examples=len(train_set), metrics={"train_loss": loss})

A task is a folder, named by the environment variable FEDPROX_TASK: `task.json` and `model.safetensors` are read from
it, `update.safetensors` and `update.json` are written into it, the latter last. The script runs once per task. Without
a task it runs as it would without these lines.

The proximal term (mu / 2) * ||w - w^t||^2 (Li et al. 2020, eq. 2) is not part of the script's loss. Its gradient,
mu * (w - w^t), is added by a hook that torch calls before every optimizer step, whatever the optimizer. So it is there
once per step, at the point at which the script's own gradient was computed, also under a gradient scaler and in
closures. Gradients that the script clips are clipped without it.
"""

import functools
import json
import operator
import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

TASK = "FEDPROX_TASK"  # the environment variable that names the task's folder
Evaluate = Callable[[Any], Mapping[str, Any]]
_OWN = ("num-examples", "num-steps", "drift", "gamma")  # what an update reports besides the script's metrics
_SHARDED = ("FullyShardedDataParallel", "FlatParameter", "DTensor")


@dataclass(frozen=True)
class Task:
    """What the server asks this client for. A script that runs on its own has the defaults.

    Attributes:
        kind: "train", "evaluate" or "initial"; only tasks to train return from `receive`.
        round_num: The round, from 1; 0 before the first one.
        client: Number of the client, 0 .. num_clients - 1.
        name: Name of the site, such as "hospital_a"; in simulation the client's number.
        data: Folder or file of the site's data, if its administrator names one.
        mu: Weight of the proximal term.
        num_epochs: Local epochs that the server asks for; fewer for stragglers. A script may have its own number.
        learning_rate: The server's learning rate in this round; None on its own. A script may have its own.
        seed: Seed of Python's, NumPy's and torch's generators in this task.
    """

    kind: Literal["train", "evaluate", "initial"] = "train"
    round_num: int = 1
    client: int = 0
    name: str = "0"
    data: str = ""
    mu: float = 0.0
    num_epochs: int = 1
    learning_rate: float | None = None
    seed: int = 0


def init() -> Task:
    """Return this client's task, which also tells its name, its number and where its data are."""
    return _session.task


def is_running() -> bool:
    """Return whether the task is not answered yet; True once if the script runs on its own."""
    return not _session.is_sent


def receive(model: nn.Module, evaluate: Evaluate | None = None) -> Task:
    """Load the global model w^t into the script's model, and pull later optimizer steps towards it by mu.

    It returns only if the task is to train. If the server asks for the initial weights, or to evaluate w^t, the answer
    is sent and the script ends with status 0.

    Args:
        model: The model that the script trains, whole on every process; a model in DistributedDataParallel or
            torch.compile counts as the one within.
        evaluate: Called with the model in evaluation mode, holding w^t; returns numbers by name, such as
            {"accuracy": 0.9, "loss": 0.3, "num_examples": 100}. Without num_examples all clients count the same.
            Without `evaluate` the script's clients measure nothing.

    Raises:
        RuntimeError: If it is called twice for a task, the model's parameters are sharded over processes, or w^t has
            other names or shapes.
    """
    return _session.receive(_unwrapped(model), evaluate)


def send(model: nn.Module, *, num_examples: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Answer the task with the trained model.

    Args:
        model: The model, or a copy of it from the best epoch.
        num_examples: Number of examples that it was trained on (n_k), its weight in the average.
        metrics: Numbers by name, the same names in every task; `train_loss` is the column of that name.

    Raises:
        RuntimeError: If nothing was received, the task is answered already, the model is not the one that was
            received, it was not trained, or mu > 0 and no optimizer step was pulled.
        ValueError: If num_examples is not an integer >= 1, or a metric is not a number.
    """
    _session.send(_unwrapped(model), num_examples, metrics or {})


def patch(trainer: Any, num_examples: int | None = None) -> None:
    """Let a Lightning trainer's `fit` receive and send, and its `validate` answer the server's request to evaluate.

    The script calls both on one LightningModule, `while federated.is_running()`, `validate` first; without `validate`
    its clients measure nothing. Metrics are the values that the module logs; "val_" before a name is left out.

    Args:
        trainer: A `lightning.Trainer`; on its own it works as before.
        num_examples: Number of training examples; None counts the data sets of the training data loaders.
    """
    fit, validate = trainer.fit, trainer.validate

    @functools.wraps(fit)
    def federated_fit(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if not _session.has_task:
            fit(model, *args, **kwargs)
            _session.is_sent = True
            return
        if kwargs.get("ckpt_path"):
            raise RuntimeError("trainer.fit(ckpt_path=...) would replace the global model; leave ckpt_path out")
        receive(model)
        fit(model, *args, **kwargs)
        size = _num_examples(trainer.train_dataloader) if num_examples is None else num_examples
        send(model, num_examples=size, metrics=trainer.callback_metrics)

    @functools.wraps(validate)
    def federated_validate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def measured(model: nn.Module) -> dict[str, Any]:
            results = validate(model, *args, **kwargs)
            merged = {name.removeprefix("val_"): value for each in results for name, value in each.items()}
            return {**merged, "num_examples": _num_examples(trainer.val_dataloaders)}

        if _session.has_task and _session.task.kind == "train":
            return []  # the server asks for evaluations by tasks of their own
        if _session.has_task:
            receive(model, measured)
        return validate(model, *args, **kwargs)

    trainer.fit, trainer.validate = federated_fit, federated_validate


def _num_examples(loaders: Any) -> int:
    """Return the number of examples of Lightning's data loaders: one, or a list or dict of them."""
    leaves = torch.utils._pytree.tree_leaves(loaders)
    try:
        return sum(len(loader.dataset) for loader in leaves)
    except TypeError:
        raise RuntimeError(
            "the data loader's examples cannot be counted; use federated.patch(trainer, num_examples=n)"
        ) from None


def begin(folder: str | None) -> None:
    """Begin the task in a folder, in place of any other, and seed the global generators from it; None for no task.

    Importing this module begins the task that the environment names. A process that was forked after the import calls
    it by itself.
    """
    global _session
    _session.close()
    _session = _Session(folder)


class _Session:
    """One task, from its folder to its answer."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None
        self.task = Task()
        self.is_sent = False
        self._is_received = False
        self._pull: _ProximalPull | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._start: dict[str, Tensor] = {}
        if self._folder:
            self.task = Task(**json.loads((self._folder / "task.json").read_text(encoding="utf-8")))
            random.seed(self.task.seed)
            np.random.seed(self.task.seed % 2**32)
            torch.manual_seed(self.task.seed)

    @property
    def has_task(self) -> bool:
        """Whether a server has given this process a task."""
        return self._folder is not None

    def close(self) -> None:
        """Leave later optimizer steps alone."""
        if self._pull:
            self._pull.close()

    def receive(self, model: nn.Module, evaluate: Evaluate | None) -> Task:
        if self._is_received:
            raise RuntimeError("federated.receive() was called twice for one task; call federated.send() in between")
        self._is_received = True
        if not self._folder:
            return self.task
        _check_whole(model)
        if self.task.kind == "initial":
            self._write(model.state_dict(), {"evaluates": int(evaluate is not None)})
            raise SystemExit(0)
        self._load(model, self._folder / "model.safetensors")
        if self.task.kind == "evaluate":
            self._write(None, _measured(model, evaluate))
            raise SystemExit(0)
        self._shapes = _shapes(model.state_dict())
        self._start = {name: own.detach().clone() for name, own in model.named_parameters()}
        self._pull = _ProximalPull(model.parameters(), self.task.mu)
        return self.task

    def send(self, model: nn.Module, num_examples: int, metrics: Mapping[str, Any]) -> None:
        if self.is_sent:
            raise RuntimeError("federated.send() was called twice for one task; call it once, after the training")
        if not self._is_received:
            raise RuntimeError(
                "federated.send() before federated.receive(): the script has trained its own initial weights; call "
                "receive(model) before the training"
            )
        size, numbers = _count(num_examples), _numbers(metrics)
        if self._folder and self._pull:
            state = model.state_dict()
            drift = self._drift(state)
            self._pull.check(drift)
            facts = {"num-examples": size, "num-steps": self._pull.num_steps, "drift": drift, **numbers}
            self._write(state, facts)
        self.close()
        self.is_sent = True

    def _load(self, model: nn.Module, file: Path) -> None:
        try:
            model.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise RuntimeError(f"the global model does not fit the model given to receive(): {error}") from None

    def _drift(self, state: Mapping[str, Any]) -> float:
        """Return ||w - w^t|| over the parameters, after checking that the state is one of the received model."""
        if _shapes(state) != self._shapes:
            raise RuntimeError("federated.send() was given another model than federated.receive(); give both the same")
        squares = [
            (state[name].detach().double() - start.to(state[name].device).double()).square().sum().item()
            for name, start in self._start.items()
        ]
        return float(sum(squares) ** 0.5)

    def _write(self, state: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> None:
        """Write the answer; `update.json` takes its name last, so that an answer is whole or missing."""
        if self._folder is None or not _is_first_process():
            return
        if state is not None:
            save_file({name: _plain(name, entry) for name, entry in state.items()}, self._folder / "update.safetensors")
        partial = self._folder / "update.json.part"
        partial.write_text(json.dumps(facts), encoding="utf-8")
        partial.replace(self._folder / "update.json")


class _ProximalPull:
    """Adds mu * (w - w^t) to the gradients of some parameters before every optimizer step, and counts the steps.

    Attributes:
        num_steps: Optimizer steps on any of the parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], mu: float) -> None:
        """Begin with the parameters' present values as w^t."""
        self._mu = mu
        self._start = {id(own): (own, own.detach().clone()) for own in parameters}  # holding them keeps the ids theirs
        self.num_steps, self._num_pulled, self._num_others = 0, 0, 0
        self._stepping: torch.optim.Optimizer | None = None
        self._hooks = [register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)]

    def close(self) -> None:
        """End."""
        for hook in self._hooks:
            hook.remove()

    def check(self, drift: float) -> None:
        """Raise RuntimeError unless optimizer steps have trained the parameters, pulled by mu."""
        if self._num_others and not self.num_steps:
            raise RuntimeError(
                "the optimizer trains another model than federated.receive() was given; make it with the parameters of "
                "the model that is received"
            )
        if self._mu and not self._num_pulled:
            raise RuntimeError(
                f"mu={self._mu:g}, but no step of a torch optimizer was pulled towards the global model; train the "
                "model given to federated.receive() by a torch.optim.Optimizer, or set mu=0"
            )
        if not self.num_steps and not drift:
            raise RuntimeError("federated.send() was given the model as it was received: nothing has trained it")

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Add the proximal gradient before a step, or after each call of the step's closure."""
        if self._stepping not in (None, optimizer):
            return None  # an optimizer within another one, whose gradients are pulled already
        if not any(id(own) in self._start for own in _parameters(optimizer)):
            self._num_others += 1
            return None
        self._stepping = optimizer
        self.num_steps += 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not self._mu:
            return None
        if closure is None:
            self._add(optimizer, getattr(optimizer, "grad_scale", None))  # set by a GradScaler for fused optimizers
            return None

        def pulled() -> Any:
            loss = closure()
            self._add(optimizer)
            # LBFGS searches along a line by the loss; others only return it.
            return loss + self._term(optimizer) if isinstance(optimizer, torch.optim.LBFGS) else loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": pulled}
        return (args[0], pulled, *args[2:]), kwargs

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._stepping is optimizer:
            self._stepping = None

    @torch.no_grad()
    def _add(self, optimizer: torch.optim.Optimizer, scale: Tensor | None = None) -> None:
        """Add mu * (w - w^t), times the scale of the gradients, to the gradients."""
        for own in _parameters(optimizer):
            if id(own) not in self._start or not own.requires_grad:
                continue
            difference = own - self._start_of(own)
            if scale is not None:
                difference *= scale.to(own.device)
            if own.grad is None:  # the script's loss does not depend on it, but the proximal term does
                own.grad = self._mu * difference
            elif own.grad.layout != torch.strided:
                raise RuntimeError("mu > 0 needs dense gradients; use sparse=False in nn.Embedding")
            else:
                own.grad.add_(difference, alpha=self._mu)
            self._num_pulled += 1

    @torch.no_grad()
    def _term(self, optimizer: torch.optim.Optimizer) -> float:
        """Return (mu / 2) * ||w - w^t||^2 over an optimizer's parameters."""
        owns = [own for own in _parameters(optimizer) if id(own) in self._start]
        return self._mu / 2 * sum((own - self._start_of(own)).square().sum().item() for own in owns)

    def _start_of(self, own: nn.Parameter) -> Tensor:
        """Return a parameter's part of w^t on its device."""
        start = self._start[id(own)][1]
        if start.device != own.device:
            start = start.to(own.device)
            self._start[id(own)] = (own, start)
        return start


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [own for group in optimizer.param_groups for own in group["params"]]


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within torch.compile and DistributedDataParallel, whose names have no prefix."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _check_whole(model: nn.Module) -> None:
    """Raise RuntimeError for a model of which each process holds only a part."""
    kinds = {
        type(own).__name__ for own in (*model.modules(), *model.parameters(), *(p.data for p in model.parameters()))
    }
    if kinds & set(_SHARDED):
        raise RuntimeError("the model's parameters are sharded over processes (FSDP); use DistributedDataParallel")


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry.shape) for name, entry in state.items() if isinstance(entry, Tensor)}


def _is_first_process() -> bool:
    """Return whether this process is the only one of the script, or the first of torchrun's or Lightning's."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def _measured(model: nn.Module, evaluate: Evaluate | None) -> dict[str, float]:
    """Return what a script's function measures on its model."""
    if evaluate is None:
        raise RuntimeError("the server asks to evaluate, but federated.receive() has no function evaluate=")
    measured = dict(evaluate(model.eval()))
    size = measured.pop("num_examples", 1)
    return {"num-examples": _count(size), **_numbers(measured)}


def _count(num_examples: Any) -> int:
    try:
        count = operator.index(num_examples)
    except TypeError:
        count = 0
    if count < 1 or isinstance(num_examples, bool):
        raise ValueError(f"num_examples must be an integer >= 1, got {num_examples!r}")
    return count


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as floats; `train_loss` by the name that it has in messages."""
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        key = "train-loss" if name == "train_loss" else name
        if not isinstance(name, str) or key in _OWN or key in numbers:
            raise ValueError(f"metrics must have names that are free, got {name!r}; rename it")
        try:
            numbers[key] = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError):
            raise ValueError(f"metrics must be numbers, got {name}={value!r:.80}") from None
    return numbers


def _plain(name: str, entry: Any) -> Tensor:
    """Return an entry of a state dict as a dense tensor of a type that NumPy has, too."""
    if not isinstance(entry, Tensor) or entry.is_complex() or entry.layout != torch.strided:
        raise RuntimeError(f"the model's state dict must hold dense real tensors, but {name} is not one")
    tensor = entry.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # bfloat16
    return tensor.clone(memory_format=torch.contiguous_format)  # tensors that share memory would be refused


_session = _Session(None)
begin(os.environ.get(TASK))
