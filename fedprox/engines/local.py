"""All clients in this process."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Message, MessageType

from fedprox.engines.identity import act_as_server
from fedprox.errors import USERS, UserError, reason
from fedprox.federation.client_app import Clients, ClientSpec
from fedprox.federation.messages import failed, late, node_id, task_of
from fedprox.solvers.generators import Generators, seeded
from fedprox.solvers.kernels.logistic import has_kernels
from fedprox.solvers.problem import BatchedSolver, LocalSolution, Solver
from fedprox.solvers.threads import Pool, one_thread

Result = TypeVar("Result")
_log = logging.getLogger("fedprox")

MAX_THREADS = 1024
_DRAWS = (
    "the model draws random numbers: from now on its clients are computed one after another, each with its own seed, "
    "so that results do not depend on the number of threads"
)


class LocalGrid:
    """A Flower Grid whose nodes are clients played in this process."""

    def __init__(self, spec: ClientSpec, *, num_threads: int | None = None) -> None:
        """Prepare the client app.

        Args:
            spec: What is needed to play clients.
            num_threads: Clients that are computed at once, where the solver allows it; None for as
                many as torch has threads: one per core, or what OMP_NUM_THREADS says.
        """
        if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
            rule = f"an integer >= 1 and <= {MAX_THREADS} or null (one per core)"
            raise UserError(f"engine.num_threads must be {rule}, got {num_threads}")
        act_as_server()
        self._spec = spec
        self._use(spec.make_solver())
        self._pool, self._alone = Pool(num_threads or torch.get_num_threads()), Pool(1)
        self._may_draw = not has_kernels(spec.model, spec.device)
        self._sizes = spec.data.train.sizes
        self._num_clients = spec.data.num_clients

    def _use(self, solver: Solver) -> None:
        self._solver = solver
        self._clients = Clients(self._spec, solver)

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return range(node_id(0), node_id(self._num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages; that of a client that raised says why.

        Args:
            messages: The messages of a round, each with a task.
            timeout: Seconds after which no further client begins; those are late. Who has begun is waited for, and
                a solver that computes all clients in one call begins with all of them.

        Raises:
            UserError: If a client raised one: it is about a setting.
        """
        messages, until = list(messages), inf if timeout is None else time.monotonic() + timeout
        with one_thread():
            if not _all_train(messages):
                sizes = [int(self._sizes[task_of(message).client]) for message in messages]
                return self._in_threads(lambda at: self._clients.gradient(messages[at]), messages, sizes, until)
            solutions = self._solutions(messages, until)
            # What is plain Python is done here, before and after: several threads would only take turns with it.
            return [
                solution if isinstance(solution, Message) else self._clients.reply(message, solution)
                for message, solution in zip(messages, solutions, strict=True)
            ]

    def _solutions(self, messages: list[Message], until: float) -> Sequence[LocalSolution | Message]:
        """Return each client's solution, or the reply that says why there is none."""
        if isinstance(self._solver, BatchedSolver) and time.monotonic() <= until:
            solutions = self._solutions_of_one_call(messages, self._solver)
            if solutions:
                return solutions
        works = list(map(self._clients.work, messages))
        steps = [work.num_steps for work in works]
        return self._in_threads(lambda at: self._clients.solve(messages[at], works[at]), messages, steps, until)

    def _solutions_of_one_call(self, messages: list[Message], solver: BatchedSolver) -> list[LocalSolution]:
        """Return the solutions of all clients computed together; none if they must be computed one by one."""
        try:
            with seeded(0, torch.device(self._spec.device)) as generators:
                solutions = self._clients.solve_together(messages, solver)
                draws = generators.have_moved()
        except UserError:
            raise
        except USERS as error:  # of one of them; which one, only trying tells
            _log.warning("all clients in one call: %s; now one by one", reason(error))
            return []
        if not draws:
            return solutions
        _log.warning(_DRAWS)
        self._use(replace(self._spec, solver="reference").make_solver())
        self._solver.is_concurrent = False
        return []

    def _in_threads(
        self, function: Callable[[int], Result], messages: list[Message], work: Sequence[int], until: float
    ) -> list[Result | Message]:
        """Return the function's result for each message, or the reply that says why there is none.

        The longest work comes first: no long one is left at the end. Where threads were at work and it turns out that
        the model draws random numbers, everything is done anew, one client after another, each with its own seed.
        """

        def guarded(at: int) -> Result | Message:
            if time.monotonic() > until:
                return late(messages[at])
            try:
                return function(at)
            except UserError:
                raise
            except USERS as error:  # the user's model may raise anything
                return failed(messages[at], reason(error))

        order, is_watched = np.argsort(work)[::-1].tolist(), self._may_draw and self._solver.is_concurrent
        before = Generators() if is_watched else None
        results = (self._pool if self._solver.is_concurrent else self._alone).map(guarded, order)
        if before and before.have_moved():
            _log.warning(_DRAWS)
            before.restore()
            self._solver.is_concurrent = False
            results = self._alone.map(guarded, order)
        return [results[at] for at in range(len(messages))]

    def peak_memory_bytes(self) -> int:
        """Return 0: there is no process besides this one."""
        return 0


def _all_train(messages: list[Message]) -> bool:
    return all(message.metadata.message_type == MessageType.TRAIN for message in messages)
