"""Solver for GPUs that trains all clients of a cohort at once, with their models stacked along a leading dimension.

One step of all clients is one batched operation per layer, which keeps a GPU busy that one small model would leave
idle. Batches are padded to the same width and masked. Clients with the most steps come first, so that the clients
still at work are always the first of the stack, and nothing moves when one has finished. The examples go to the device
once, the positions of all batches are computed before the first step, and no step waits for the device.

Each solution equals the reference solver's up to rounding, which depends on the number of stacked clients.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fedprox.plan.epoch_batches import EpochBatches
from fedprox.solvers.generators import seeded
from fedprox.solvers.problem import LocalProblem, LocalSolution, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver, step

Integers = NDArray[np.int64]


class CohortSolver:
    """Local SGD of many clients side by side, for any model that `torch.func.vmap` can batch; see `accepts`."""

    is_concurrent = takes_images = False

    def __init__(self, model: nn.Module, sgd: SgdSettings, device: str = "cpu") -> None:
        """Copy the architecture to the device; its weights come with the problems."""
        self._model = copy.deepcopy(model).to(device).train()
        self._sgd = sgd
        self._trained = [name for name, param in self._model.named_parameters() if param.requires_grad]
        names = {id(own): name for name, own in [*self._model.named_parameters(), *self._model.named_buffers()]}
        # A tied parameter has several names in the state dict, but only one among the parameters.
        self._own_names = {name: names[id(own)] for name, own in self._model.state_dict(keep_vars=True).items()}

    @staticmethod
    def accepts(model: nn.Module, sgd: SgdSettings, device: str, examples: Tensor) -> bool:
        """Return whether this solver can replace the reference solver: it must agree with it on two small problems.

        It cannot if examples of a batch depend on each other (batch norm), if the model draws random numbers (dropout),
        or if an operation cannot be batched (recurrent layers, branches on values).

        Args:
            model: The architecture, with any weights.
            sgd: Settings of the local solver.
            device: Device on which to compute.
            examples: Three or more model inputs, shape (n, *input_shape).
        """
        params = {name: value.to(device, copy=True) for name, value in model.state_dict().items()}
        problems = [_trial_problem(params, examples[:size].to(device)) for size in (3, 2)]
        in_threes = replace(sgd, batch_size=3)  # so that the second client's batches are padded
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
        """Return the solutions in the order of the problems; see `fedprox.solvers.problem.BatchedSolver`."""
        solutions: dict[int, LocalSolution] = {}
        batches = [_batches(problem, self._sgd.epoch(len(problem.labels))) for problem in problems]
        longest_first = sorted(range(len(problems)), key=lambda at: -len(batches[at][0]))
        alike = [(problem.work.mu, problem.work.learning_rate_factor) for problem in problems]
        for mu, factor in set(alike):  # one, unless a strategy gives each client its own
            stack = [at for at in longest_first if alike[at] == (mu, factor)]
            of_stack = [problems[at] for at in stack]
            schedule = _schedule(of_stack, [batches[at] for at in stack])
            solved = self._solve_stack(of_stack, schedule, mu, self._sgd.scaled(factor))
            solutions.update(zip(stack, solved, strict=True))
        return [solutions[at] for at in range(len(problems))]

    def _solve_stack(
        self, problems: Sequence[LocalProblem], schedule: "_Schedule", mu: float, sgd: SgdSettings
    ) -> list[LocalSolution]:
        """Return the solutions of problems that are sorted by their numbers of steps, in descending order."""
        x, y = torch.cat([p.features for p in problems]), torch.cat([p.labels for p in problems])
        names = sorted(set(self._own_names.values()))
        state = {name: torch.stack([p.global_params[name] for p in problems]) for name in names}
        anchor = [state[name].clone() for name in self._trained]
        velocity = [torch.zeros_like(stack) for stack in anchor] if self._sgd.momentum else []
        correction = self._corrections(problems)
        positions = torch.from_numpy(schedule.positions).to(x.device)
        sizes = torch.from_numpy(schedule.sizes).to(x.device, anchor[0].dtype)
        weights = (torch.arange(positions.shape[1], device=x.device) < sizes[:, None]) / sizes[:, None]
        loss_sums = torch.zeros(len(problems), dtype=sizes.dtype, device=x.device)
        for active, steps in schedule.phases():
            own = {name: stack[:active] for name, stack in state.items()}  # views: a step changes the stack
            w, w_t = [own[name].requires_grad_() for name in self._trained], _first(active, anchor)
            v = _first(active, velocity) if self._sgd.momentum else None
            for rows in steps:
                losses = self._losses(own, x[positions[rows]], y[positions[rows]])
                means = (losses * weights[rows]).sum(dim=1)
                grads = list(torch.autograd.grad(means.sum(), w))  # each mean depends on its own client's w only
                if correction:
                    torch._foreach_add_(grads, _first(active, correction))
                step(w, grads, w_t, v, mu, sgd)
                loss_sums[:active].addcmul_(means.detach(), sizes[rows])
        return self._solutions(state, schedule, loss_sums.tolist())

    def _solutions(self, state: Params, schedule: "_Schedule", loss_sums: list[float]) -> list[LocalSolution]:
        """Return each client's part of the stack."""
        return [
            LocalSolution(
                {name: state[own_name][at].clone() for name, own_name in self._own_names.items()},
                loss_sum / max(schedule.num_seen[at], 1),
                schedule.num_steps[at],
            )
            for at, loss_sum in enumerate(loss_sums)
        ]

    def _losses(self, state: Params, x: Tensor, y: Tensor) -> Tensor:
        """Return each example's cross-entropy under its own client's model, shape (active, width)."""
        logits = vmap(lambda own, inputs: functional_call(self._model, own, (inputs,)), randomness="different")(
            state, x
        )
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)

    def _corrections(self, problems: Sequence[LocalProblem]) -> list[Tensor]:
        """Return the clients' corrections, stacked, one tensor per parameter; empty if no client has one."""
        if all(problem.work.correction is None for problem in problems):
            return []
        zeros = {name: torch.zeros_like(problems[0].global_params[name]) for name in self._trained}
        given = [problem.work.correction or zeros for problem in problems]
        return [torch.stack([correction[name] for correction in given]) for name in self._trained]


@dataclass(frozen=True)
class _Schedule:
    """The examples of every step of every client: one row for each, sorted by step and then by client.

    Attributes:
        positions: Positions in the concatenated examples of all clients, shape (rows, width); short batches are padded
            with one of their examples.
        sizes: Number of positions that count, shape (rows,).
        num_steps: Steps of each client, in descending order, shape (clients,).
        num_seen: Examples that each client processes, shape (clients,).
    """

    positions: Integers
    sizes: Integers
    num_steps: list[int]
    num_seen: list[int]

    def phases(self) -> Iterator[tuple[int, list[slice]]]:
        """Yield the number of clients at work and the rows of each step, for each period between two clients' ends."""
        row = done = 0
        for active in range(len(self.num_steps), 0, -1):
            finished = self.num_steps[active - 1]
            end = row + active * (finished - done)
            yield active, [slice(at, at + active) for at in range(row, end, active)]
            row, done = end, finished


def _schedule(problems: Sequence[LocalProblem], batches: Sequence[tuple[Integers, Integers]]) -> _Schedule:
    """Return the schedule of problems from their batches; the problems with the most batches come first."""
    num_steps = [len(sizes) for _, sizes in batches]
    width = max(positions.shape[1] for positions, _ in batches)
    offsets = np.cumsum([0, *(len(problem.labels) for problem in problems)])
    rows = [
        np.pad(positions, ((0, 0), (0, width - positions.shape[1])), mode="edge") + offset
        for (positions, _), offset in zip(batches, offsets, strict=False)
    ]
    by_step = np.argsort(np.concatenate([np.arange(steps) for steps in num_steps]), kind="stable")
    positions, sizes = np.concatenate(rows)[by_step], np.concatenate([sizes for _, sizes in batches])[by_step]
    return _Schedule(positions, sizes, num_steps, [int(sizes.sum()) for _, sizes in batches])


def _batches(problem: LocalProblem, batches: EpochBatches) -> tuple[Integers, Integers]:
    """Return the positions of a client's batches, shape (steps, width), and their sizes, shape (steps,).

    Batches shorter than the longest are padded with their first example.
    """
    num_examples, orders = len(problem.labels), list(problem.work.orders)
    starts = np.arange(batches.num_batches) * batches.batch_size
    ends = np.append(starts[1:], batches.num_taken)
    columns = starts[:, None] + np.arange(batches.largest)
    columns = np.where(columns < ends[:, None], columns, starts[:, None])
    positions = np.reshape(orders, (len(orders), num_examples))[:, columns].reshape(-1, columns.shape[1])
    sizes = np.tile(ends - starts, len(orders))
    num_steps = problem.work.num_steps
    return positions[:num_steps].astype(np.int64), sizes[:num_steps]


def _first(active: int, stacks: list[Tensor]) -> list[Tensor]:
    return [stack[:active] for stack in stacks]


def _trial_problem(global_params: Params, features: Tensor) -> LocalProblem:
    """Return a problem of two epochs on a few examples of class 0."""
    labels = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    return LocalProblem(global_params, features, labels, LocalWork([np.arange(len(features))] * 2, 4, mu=1.0))


def _agree(params: Params, reference: Params, start: Params) -> bool:
    """Return whether two solutions agree up to rounding, on a GPU up to that of TF32 (2^-11 per operation).

    A batch that differs from the reference's would change a step by about the size of the step.
    """
    own, same, before = ({name: value.double() for name, value in each.items()} for each in (params, reference, start))
    return all(
        bool((own[name] - value).abs().max() <= 0.05 * (value - before[name]).abs().max() + 1e-6)
        for name, value in same.items()
    )
