"""Solver that trains all clients of a cohort at once, with their models stacked along a leading dimension.

One step of all clients is one batched operation per layer, which keeps a GPU busy that one small model would leave
idle. Batches are padded to the same width and masked. Clients with the most steps come first, so that the clients
still at work are always the first of the stack, and nothing moves when one has finished. The positions of all batches
are computed before the first step, and no step waits for the device.

On a GPU a step is captured once for each number of clients at work and then replayed (`fedprox.solvers.graphs`), if all
problems share the examples that stay on the device. With `at_once=1` the clients are trained one after another, which
suits models so large that a single client keeps the GPU busy.

Each solution equals the reference solver's up to rounding, which depends on the number of stacked clients.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedprox.solvers.batch_norm import mask_batch_norm
from fedprox.solvers.batches import DeviceImageInput, ImageInput
from fedprox.solvers.dropout import SeededDropout, seed_dropout
from fedprox.solvers.generators import seeded
from fedprox.solvers.graphs import FixedMemory, Graphs
from fedprox.solvers.precision import precision
from fedprox.solvers.problem import KEPT, LocalProblem, LocalSolution, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver, add_proximal, descend, move, shortening
from fedprox.solvers.schedule import ClientBatches, Integers, Schedule
from fedprox.solvers.stacked_optimizer import StackedOptimizer

_log = logging.getLogger("fedprox")


class CohortSolver:
    """Local SGD of many clients side by side, for any model that `torch.func.vmap` can batch; see `accepts`."""

    is_concurrent = False

    def __init__(
        self,
        model: nn.Module,
        sgd: SgdSettings,
        device: str = "cpu",
        image_input: ImageInput | None = None,
        *,
        at_once: int | None = None,
    ) -> None:
        """Copy the architecture to the device; its weights come with the problems.

        Args:
            model: The architecture.
            sgd: Settings of the local solver.
            device: Device on which to compute.
            image_input: How uint8 features become model input; None if there are none.
            at_once: Largest number of clients trained side by side; None for no limit.
        """
        self.takes_images = image_input is not None
        self.at_once = at_once
        self._device = torch.device(device)
        self._image_input = DeviceImageInput(image_input, self._device) if image_input else None
        self._model = copy.deepcopy(model).to(device).train()
        self._sgd = sgd
        dropouts = seed_dropout(self._model)
        self._dropouts = [cast(SeededDropout, self._model.get_submodule(name)) for name in dropouts]
        self._keys = [f"{name}.key" for name in dropouts]
        self._shares = [f"{name}.shares" for name in mask_batch_norm(self._model)]
        self._trained = [name for name, param in self._model.named_parameters() if param.requires_grad]
        own = [*self._model.named_parameters(), *self._model.named_buffers()]
        names = {id(tensor): name for name, tensor in own if name not in self._keys}
        # A tied parameter has several names in the state dict, but only one among the parameters.
        self._own_names = {name: names[id(tensor)] for name, tensor in self._model.state_dict(keep_vars=True).items()}
        self._graphs = Graphs(self._device) if self._device.type == "cuda" else None
        self._width = 0  # of the rows that graphs were captured with

    @staticmethod
    def accepts(
        model: nn.Module, sgd: SgdSettings, device: str, examples: Tensor, labels: Tensor | None = None
    ) -> bool:
        """Return whether this solver can replace the reference solver: it must agree with it on two small problems.

        It cannot if examples of a batch depend on each other (other than by torch's batch norm), if
        the model draws random numbers other than by dropout layers, if an operation cannot be batched (recurrent
        layers, branches on values), or if an optimiser does not treat every number by itself.

        Args:
            model: The architecture, with any weights.
            sgd: Settings of the local solver.
            device: Device on which to compute.
            examples: Three or more model inputs, shape (n, *input_shape).
            labels: Their labels, for their form; None for classes.
        """
        if sgd.optimizer and sgd.has_epoch_rates:  # one optimiser for all clients has one learning rate
            return False
        params = {name: value.to(device, copy=True) for name, value in model.state_dict().items()}
        pool, zeros = examples.to(device), zero_labels(examples, labels).to(device)
        problems = [_trial_problem(params, pool, zeros, size) for size in (3, 2)]
        # Batches of three, so that the second client's are padded; bfloat16 would make the two solutions differ
        in_threes = replace(sgd, batch_size=3, mixed_precision=False)
        try:
            with seeded(0, torch.device(device)) as generators:
                together = CohortSolver(model, in_threes, device).solve_all(problems)
                if generators.have_moved():
                    return False
            reference = ReferenceSolver(model, in_threes, device)
            alone = list(map(reference.solve, problems))
        except Exception:  # the reference solver will report the reason, if there is one
            return False
        return all(_agree(one.params, other.params, params) for one, other in zip(together, alone, strict=True))

    def solve(self, problem: LocalProblem) -> LocalSolution:
        """Return one client's solution; see `fedprox.solvers.problem.Solver`."""
        return self.solve_all([problem])[0]

    def solve_all(self, problems: Sequence[LocalProblem]) -> list[LocalSolution]:
        """Return the solutions in the order of the problems; see `fedprox.solvers.problem.BatchedSolver`.

        If the GPU's memory does not suffice, fewer clients are trained side by side from then on.
        """
        while True:
            try:
                with precision(self._device, reduced=self._sgd.mixed_precision):
                    return self._solve_all(problems)
            except torch.OutOfMemoryError:
                at_once = min(self.at_once or len(problems), len(problems))
                if at_once == 1:
                    raise
                self.at_once = -(-at_once // 2)
            _log.warning("the GPU's memory does not hold %d clients at once; now %d", at_once, self.at_once)
            if self._graphs:
                self._graphs.forget()
            torch.cuda.empty_cache()

    def _solve_all(self, problems: Sequence[LocalProblem]) -> list[LocalSolution]:
        batches = [ClientBatches.of(problem, self._sgd.epoch(problem.num_examples)) for problem in problems]
        solved: list[tuple[list[int], _Solved]] = []
        for stack in self._stacks(problems, [len(each.sizes) for each in batches]):
            solved.append((stack, self._solve_stack([problems[at] for at in stack], [batches[at] for at in stack])))
        sums = torch.cat([one.sums for _, one in solved], dim=1).tolist() if solved else [[], []]  # the only wait
        order = [at for stack, _ in solved for at in stack]
        parts = [(one, at) for _, one in solved for at in range(len(one.schedule.num_steps))]
        solutions = {
            at: self._solution(one, number, loss_sum, square)
            for at, (one, number), loss_sum, square in zip(order, parts, *sums, strict=True)
        }
        return [solutions[at] for at in range(len(problems))]

    def _stacks(self, problems: Sequence[LocalProblem], num_steps: Sequence[int]) -> Iterator[list[int]]:
        """Yield the problems to solve side by side, those with the most steps first."""
        longest_first = sorted(range(len(problems)), key=lambda at: -num_steps[at])
        works = [problem.work for problem in problems]
        alike = [(one.mu, one.learning_rate_factor, one.epoch_factors, one.corrects_steps) for one in works]
        for kind in dict.fromkeys(alike):  # one, unless a strategy gives each client its own
            of_kind = [at for at in longest_first if alike[at] == kind]
            size = self.at_once or len(of_kind)
            yield from (of_kind[start : start + size] for start in range(0, len(of_kind), size))

    def _solve_stack(self, problems: Sequence[LocalProblem], batches: Sequence[ClientBatches]) -> "_Solved":
        """Return the solutions of problems that are sorted by their numbers of steps, in descending order."""
        features, labels, places = _pooled(problems)
        is_pooled = all(problem.positions is not None for problem in problems)
        graphs = self._graphs if is_pooled and self._sgd.optimizer is None else None
        schedule = Schedule.of(batches, places, self._width if graphs else 0, len(self._dropouts))
        with graphs.on_own_stream() if graphs else nullcontext():
            anchor, start = self._anchor(problems), self._start(problems)
            if graphs:
                self._width = schedule.positions.shape[1]
                stack = self._stack(problems, schedule, anchor, start, graphs.memory)
                self._replay(graphs, stack, schedule, (features, labels))
            else:
                stack = self._stack(problems, schedule, anchor, start, None)
                optimizer = self._optimizer(stack)
                for active, steps in schedule.phases():
                    for rows in steps:
                        self._step(stack, (features, labels), active, rows, optimizer)
            return self._solved(stack, anchor, schedule)

    def _anchor(self, problems: Sequence[LocalProblem]) -> Params:
        """Return w^t of each client, shape (clients, *shape) for each name."""
        return self._stacked([problem.global_params for problem in problems])

    def _start(self, problems: Sequence[LocalProblem]) -> Params:
        """Return where each client starts, shape (clients, *shape) for each name."""
        return self._stacked(
            [problem.global_params if problem.start is None else problem.start for problem in problems]
        )

    def _stacked(self, models: Sequence[Params]) -> Params:
        """Return models along a leading dimension, without copies if all are the same."""
        names, first = sorted(set(self._own_names.values())), models[0]
        if all(model is first for model in models):
            return {name: first[name].expand(len(models), *first[name].shape) for name in names}
        return {name: torch.stack([model[name] for model in models]) for name in names}

    def _stack(
        self,
        problems: Sequence[LocalProblem],
        schedule: Schedule,
        anchor: Params,
        start: Params,
        memory: FixedMemory | None,
    ) -> "_Stack":
        """Return the memory of a stack of clients before their first step."""

        def held(name: str, value: Tensor, *, grows: bool = False) -> Tensor:
            if memory:
                return memory.hold(name, value, self._device, grows=grows)
            return value.to(self._device, copy=True).contiguous()

        def rows(name: str, values: NDArray[np.generic]) -> Tensor:
            return held(name, torch.from_numpy(values), grows=True)

        work = problems[0].work
        sgd, dtype = self._sgd.scaled(work.learning_rate_factor), start[self._trained[0]].dtype
        velocity = self._velocities(problems, start) if sgd.momentum else []
        rates = None
        if schedule.factors is not None:
            rates = held("rates", torch.from_numpy(-sgd.learning_rate * schedule.factors).to(dtype), grows=True)
        correction = self._corrections(problems)
        return _Stack(
            state={name: held(f"state {name}", value) for name, value in start.items()},
            anchor=[held(f"anchor {name}", anchor[name]) for name in self._trained] if work.mu else [],
            velocity=[held(f"v {name}", one) for name, one in zip(self._trained, velocity, strict=False)],
            correction=[held(f"c {name}", one) for name, one in zip(self._trained, correction, strict=False)],
            corrects_steps=work.corrects_steps,
            positions=rows("positions", schedule.positions),
            sizes=held("sizes", torch.from_numpy(schedule.sizes).to(dtype), grows=True),
            shifts=None if schedule.shifts is None else rows("shifts", schedule.shifts),
            keys=rows("keys", schedule.keys),
            loss_sums=held("losses", torch.zeros(len(problems), dtype=dtype)),
            settings=held("settings", torch.tensor([work.mu, -sgd.learning_rate], dtype=dtype)),
            rates=rates,
            next_row=held("next row", torch.zeros(1, dtype=torch.int64)),
            mu=work.mu,
            sgd=sgd,
        )

    def _optimizer(self, stack: "_Stack") -> StackedOptimizer | None:
        """Return the optimiser of a stack before its first step; None for SGD."""
        make, learning_rate = stack.sgd.optimizer, stack.sgd.learning_rate
        return make and StackedOptimizer(make, [stack.state[name] for name in self._trained], learning_rate)

    def _step(
        self,
        stack: "_Stack",
        examples: tuple[Tensor, Tensor],
        active: int,
        rows: slice,
        optimizer: StackedOptimizer | None,
    ) -> None:
        """Take one step of the first clients of a stack."""
        params, grads = self._gradients(stack, examples, active, rows)
        if stack.rates is not None:
            _device_step(params, grads, stack, active, stack.rates[rows])
            return
        add_proximal(params, grads, _first(active, stack.anchor) or params, stack.mu)
        _clip_each(grads, stack.sgd.max_grad_norm)
        if optimizer:
            optimizer.step(grads, active)
        else:
            descend(params, grads, _first(active, stack.velocity) or None, stack.sgd)
            if stack.corrects_steps:
                move(params, _first(active, stack.correction), stack.sgd)

    def _replay(self, graphs: Graphs, stack: "_Stack", schedule: Schedule, examples: tuple[Tensor, Tensor]) -> None:
        """Take all steps by graphs, in which mu, the learning rate and the next rows are values on the device."""
        features, labels = examples
        kind = (
            *(bool(stack.mu), bool(stack.correction), stack.corrects_steps, stack.rates is None, stack.shifts is None),
            *(features.data_ptr(), labels.data_ptr()),
        )
        for active, steps in schedule.phases():

            def one_step(active: int = active) -> None:
                rows = stack.next_row + torch.arange(active, device=self._device)
                params, grads = self._gradients(stack, examples, active, rows)
                _device_step(params, grads, stack, active, None if stack.rates is None else stack.rates[rows])
                stack.next_row.add_(active)

            for _ in steps:
                graphs.run((active, *kind), one_step)

    def _gradients(
        self, stack: "_Stack", examples: tuple[Tensor, Tensor], active: int, rows: slice | Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters of the first clients of a stack, and the gradients of their next batches' losses.

        The sums of the losses are updated.
        """
        own = {name: tensor[:active] for name, tensor in stack.state.items()}  # views: a step changes the stack
        params = [own[name].requires_grad_() for name in self._trained]
        keys = stack.keys[rows]
        for layer, (dropout, name) in enumerate(zip(self._dropouts, self._keys, strict=True)):
            dropout.begin_step()
            own[name] = keys[:, layer]
        features, labels = examples
        positions, sizes = stack.positions[rows], stack.sizes[rows]
        is_counted = torch.arange(positions.shape[1], device=self._device) < sizes[:, None]
        shares = is_counted / sizes[:, None]
        own |= dict.fromkeys(self._shares, shares)
        x = self._input(features, positions, None if stack.shifts is None else stack.shifts[rows])
        losses = self._losses(own, x, labels[positions])
        means = (losses * shares).sum(dim=1)
        grads = list(torch.autograd.grad(means.sum(), params))  # each mean depends on its own client's w only
        stack.loss_sums[:active].addcmul_(means.detach(), sizes)
        if stack.correction and not stack.corrects_steps:
            torch._foreach_add_(grads, _first(active, stack.correction))
        return params, grads

    def _input(self, features: Tensor, positions: Tensor, shifts: Tensor | None) -> Tensor:
        """Return examples as model input, shape (*positions.shape, *input_shape)."""
        if self._image_input and features.dtype == torch.uint8:
            x = self._image_input(features, positions.flatten(), None if shifts is None else shifts.flatten(0, 1))
        else:
            x = features.index_select(0, positions.flatten())
        return x.view(*positions.shape, *x.shape[1:])

    def _losses(self, state: Params, x: Tensor, y: Tensor) -> Tensor:
        """Return each example's loss under its own client's model, shape (active, width)."""
        # The cache would keep copies of weights beyond the graph that they belong to.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._sgd.mixed_precision, cache_enabled=False):
            logits = vmap(lambda own, inputs: functional_call(self._model, own, (inputs,)), randomness="different")(
                state, x
            )
            return self._sgd.loss(logits.flatten(0, 1), y.flatten(0, 1), "none").view(y.shape[:2])

    def _velocities(self, problems: Sequence[LocalProblem], start: Params) -> list[Tensor]:
        """Return the clients' velocities before their first step, stacked, one tensor per parameter."""
        if all(problem.velocity is None for problem in problems):
            return [torch.zeros_like(start[name]) for name in self._trained]
        zeros = {name: torch.zeros_like(start[name][0]) for name in self._trained}
        given = [zeros if problem.velocity is None else problem.velocity for problem in problems]
        return [torch.stack([velocity[name] for velocity in given]) for name in self._trained]

    def _corrections(self, problems: Sequence[LocalProblem]) -> list[Tensor]:
        """Return the clients' corrections, stacked, one tensor per parameter; empty if no client has one."""
        if all(problem.work.correction is None for problem in problems):
            return []
        zeros = {name: torch.zeros_like(problems[0].global_params[name]) for name in self._trained}
        given = [problem.work.correction or zeros for problem in problems]
        return [torch.stack([correction[name] for correction in given]) for name in self._trained]

    def _solved(self, stack: "_Stack", anchor: Params, schedule: Schedule) -> "_Solved":
        """Return copies of a stack's models, with the sums of their losses and the squares of their drifts."""
        num = len(schedule.num_steps)
        state = {name: tensor[:num].detach().clone() for name, tensor in stack.state.items()}
        squares = sum(
            torch.linalg.vector_norm((state[name] - anchor[name]).flatten(1), dim=1, dtype=torch.float64).square()
            for name in self._trained
        )
        models = {name: tensor.unbind() for name, tensor in state.items()}
        kept = zip(self._trained, stack.velocity, strict=False) if self._sgd.momentum_buffer == KEPT else ()
        velocities = {name: tensor[:num].clone().unbind() for name, tensor in kept}
        sums = torch.stack([stack.loss_sums[:num].double(), cast(Tensor, squares)])
        return _Solved(schedule, models, velocities, sums)

    def _solution(self, solved: "_Solved", at: int, loss_sum: float, square: float) -> LocalSolution:
        """Return one client's part of a stack."""
        return LocalSolution(
            {name: solved.models[own_name][at] for name, own_name in self._own_names.items()},
            loss_sum / max(solved.schedule.num_seen[at], 1),
            solved.schedule.num_steps[at],
            drift=square**0.5,
            velocity={name: each[at] for name, each in solved.velocities.items()} or None,
        )


@dataclass(frozen=True)
class _Stack:
    """What the steps of some clients read and write; all tensors begin with a dimension of clients or rows.

    Attributes:
        state: Parameters and buffers of all clients.
        anchor: w^t for each trained parameter; empty without a proximal term.
        velocity: For each trained parameter; empty without momentum.
        correction: For each trained parameter; empty without corrections.
        corrects_steps: See `LocalWork`.
        positions: See `Schedule`.
        sizes: See `Schedule`.
        shifts: See `Schedule`.
        keys: See `Schedule`.
        loss_sums: Sum over the examples that each client has processed.
        settings: mu, and the learning rate with a minus.
        rates: The learning rate of each row with a minus, shape (rows,); None if it is the same in all.
        next_row: The first row of the next step, if the device counts.
        mu: Weight of the proximal term.
        sgd: With the learning rate of this round.
    """

    state: Params
    anchor: list[Tensor]
    velocity: list[Tensor]
    correction: list[Tensor]
    corrects_steps: bool
    positions: Tensor
    sizes: Tensor
    shifts: Tensor | None
    keys: Tensor
    loss_sums: Tensor
    settings: Tensor
    rates: Tensor | None
    next_row: Tensor
    mu: float
    sgd: SgdSettings


@dataclass(frozen=True)
class _Solved:
    """A stack after its last step.

    Attributes:
        schedule: What was done.
        models: Each client's tensor of each name.
        velocities: Each client's velocity of each trained parameter; empty if it is not kept.
        sums: Sums of losses, and squares of drifts, float64, shape (2, clients).
    """

    schedule: Schedule
    models: dict[str, tuple[Tensor, ...]]
    velocities: dict[str, tuple[Tensor, ...]]
    sums: Tensor


@torch.no_grad()
def _device_step(
    params: list[Tensor], grads: list[Tensor], stack: _Stack, active: int, rates: Tensor | None = None
) -> None:
    """Take the step of `fedprox.solvers.reference.step` with mu and the learning rate as values on the device.

    Args:
        params: Of the clients at work, shape (active, *shape) each.
        grads: Their gradients.
        stack: The clients.
        active: Number of clients at work.
        rates: The learning rate of each of them with a minus, shape (active,); None for the stack's.
    """
    mu, minus_rate = stack.settings[0], stack.settings[1]
    if stack.mu:
        pull = torch._foreach_sub(params, _first(active, stack.anchor))
        torch._foreach_mul_(pull, mu)
        torch._foreach_add_(grads, pull)
    _clip_each(grads, stack.sgd.max_grad_norm)
    if stack.sgd.weight_decay:
        torch._foreach_add_(grads, params, alpha=stack.sgd.weight_decay)
    if stack.velocity:
        velocity = _first(active, stack.velocity)
        torch._foreach_mul_(velocity, stack.sgd.momentum)
        torch._foreach_add_(velocity, grads)
        grads = velocity
    for param, grad in zip(params, grads, strict=True):
        param.addcmul_(grad, minus_rate if rates is None else _of_each(rates, param))
    if stack.corrects_steps:
        for param, correction in zip(params, _first(active, stack.correction), strict=False):
            param.addcmul_(correction, minus_rate if rates is None else _of_each(rates, param))


def _clip_each(grads: list[Tensor], max_norm: float | None) -> None:
    """Shorten each client's gradients in place, shape (active, *shape), to a norm; None for no limit."""
    if max_norm is None:
        return
    norms = torch.stack([torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads], dim=1)
    factors = shortening(torch.linalg.vector_norm(norms, dim=1), max_norm)
    for grad in grads:
        grad.mul_(_of_each(factors, grad))


def _of_each(values: Tensor, stack: Tensor) -> Tensor:
    """Return one number for each client, shape (active,), in a form that multiplies a stack, (active, *shape)."""
    return values.view(-1, *[1] * (stack.dim() - 1))


def _pooled(problems: Sequence[LocalProblem]) -> tuple[Tensor, Tensor, list[Integers]]:
    """Return the examples of all problems, their labels, and the place of each problem's examples among them."""
    first = problems[0]
    if all(each.positions is not None and each.features is first.features for each in problems):
        return first.features, first.labels, [cast(Integers, each.positions) for each in problems]
    own = [each.alone() for each in problems]
    offsets = np.cumsum([0, *(each.num_examples for each in own)])
    places = [offset + np.arange(each.num_examples) for each, offset in zip(own, offsets, strict=False)]
    return torch.cat([each.features for each in own]), torch.cat([each.labels for each in own]), places


def _first(active: int, stacks: list[Tensor]) -> list[Tensor]:
    return [stack[:active] for stack in stacks]


def zero_labels(examples: Tensor, labels: Tensor | None) -> Tensor:
    """Return the label 0 for each example, of the type and shape of some labels; None for classes."""
    like = torch.zeros(1, dtype=torch.int64) if labels is None else labels
    return torch.zeros(len(examples), *like.shape[1:], dtype=like.dtype)


def _trial_problem(global_params: Params, features: Tensor, labels: Tensor, size: int) -> LocalProblem:
    """Return a problem of two epochs on the first examples."""
    work = LocalWork([np.arange(size)] * 2, 4, mu=1.0)
    return LocalProblem(global_params, features, labels, work, positions=np.arange(size))


def _agree(params: Params, reference: Params, start: Params) -> bool:
    """Return whether two solutions agree up to rounding.

    A batch that differs from the reference's would change a step by about the size of the step.
    """
    own, same, before = ({name: value.double() for name, value in each.items()} for each in (params, reference, start))
    return all(
        bool((own[name] - value).abs().max() <= 0.05 * (value - before[name]).abs().max() + 1e-6)
        for name, value in same.items()
    )
