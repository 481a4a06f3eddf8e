"""The engine that computes all clients in this process."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Message, MessageType

from fedprox.engines.identity import act_as_server
from fedprox.engines.scripts import ScriptGrid
from fedprox.errors import USER_CODE_ERRORS, UserError, with_location
from fedprox.federation.client_app import Clients, ClientSpec
from fedprox.federation.messages import Engine, failed, late, node_id, task_of
from fedprox.federation.script_client import ScriptSpec
from fedprox.solvers.generators import Generators, seeded
from fedprox.solvers.kernels.logistic import has_kernels
from fedprox.solvers.problem import BatchedSolver, LocalSolution, Solver
from fedprox.solvers.threads import Pool, one_thread

Argument = TypeVar("Argument")
Result = TypeVar("Result")
_log = logging.getLogger("fedprox")

MAX_THREADS = 1024
_DRAWS = (
    "the model draws random numbers: its clients are computed one after another from now on, each with its own seed, "
    "so that results do not depend on the number of threads"
)


def local_grid(spec: ClientSpec | ScriptSpec, *, num_threads: int | None = None) -> Engine:
    """Return the engine that answers messages in this process, or in processes that it starts here.

    Args:
        spec: Everything needed to play clients.
        num_threads: Clients computed at the same time, or threads of all scripts together if those have one or more
            each; None for torch's number of threads, which is one per core unless OMP_NUM_THREADS is set.

    Raises:
        UserError: If num_threads is out of range, or a script cannot be used.
    """
    if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
        rule = f"an integer >= 1 and <= {MAX_THREADS} or null (one per core)"
        raise UserError(f"engine.num_threads must be {rule}, got {num_threads}")
    at_once = num_threads or torch.get_num_threads()
    if isinstance(spec, ScriptSpec):
        return ScriptGrid(spec, max(1, at_once // spec.num_threads))
    return LocalGrid(spec, num_threads=at_once)


class LocalGrid:
    """A Flower Grid whose nodes are clients played in this process.

    Attributes:
        choice: The solver that was chosen, and why.
    """

    def __init__(self, spec: ClientSpec, *, num_threads: int | None = None) -> None:
        """Prepare the client app.

        Args:
            spec: Everything needed to play clients.
            num_threads: Clients computed at the same time if the solver allows it; None for torch's number of threads.
        """
        act_as_server()
        self._spec = spec
        self.choice = spec.choose_solver()
        self._use(self.choice.solver)
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
        """Return the clients' replies in the order of the messages; the reply of a client that raised is an error.

        Args:
            messages: The messages of a round, each with a task.
            timeout: Seconds after which no further client starts; those are late. Clients that have started may
                finish; a solver that computes all clients in one call starts all of them.

        Raises:
            UserError: If a client raises one: it is about a setting.
        """
        messages, until = list(messages), inf if timeout is None else time.monotonic() + timeout
        if _are(messages, MessageType.EVALUATE):  # one client after another, each in several threads
            return [self._guarded(self._clients.evaluation, message, message, until) for message in messages]
        with one_thread():
            if not _are(messages, MessageType.TRAIN):
                sizes = [int(self._sizes[task_of(message).client]) for message in messages]
                return self._in_threads(lambda at: self._clients.gradient(messages[at]), messages, sizes, until)
            solutions = self._solutions(messages, until)
            # Plain Python runs outside the threads, which would only take turns with it.
            return [
                solution if isinstance(solution, Message) else self._clients.reply(message, solution)
                for message, solution in zip(messages, solutions, strict=True)
            ]

    def _solutions(self, messages: list[Message], until: float) -> Sequence[LocalSolution | Message]:
        """Return each client's solution, or an error reply."""
        if isinstance(self._solver, BatchedSolver) and time.monotonic() <= until:
            solutions = self._solutions_of_one_call(messages, self._solver)
            if solutions:
                return solutions
        works = list(map(self._clients.work, messages))
        steps = [work.num_steps for work in works]
        return self._in_threads(lambda at: self._clients.solve(messages[at], works[at]), messages, steps, until)

    def _solutions_of_one_call(self, messages: list[Message], solver: BatchedSolver) -> list[LocalSolution]:
        """Return the solutions of all clients computed in one call; empty if they must be computed one by one."""
        try:
            with seeded(0, torch.device(self._spec.device)) as generators:
                solutions = self._clients.solve_together(messages, solver)
                draws = generators.have_moved()
        except UserError:
            raise
        except USER_CODE_ERRORS as error:  # some client fails; computing them one by one shows which
            _log.warning("computing all clients in one call failed: %s; now one by one", with_location(error))
            return []
        if not draws:
            return solutions
        _log.warning(_DRAWS)
        self._use(replace(self._spec, solver="reference").choose_solver().solver)
        self._solver.is_concurrent = False
        return []

    def _in_threads(
        self, function: Callable[[int], Result], messages: list[Message], work: Sequence[int], until: float
    ) -> list[Result | Message]:
        """Return the function's result for each message, or an error reply.

        The longest work starts first, so that no thread is left with it at the end. If the model turns out to draw
        random numbers in threads, all clients are computed again one after another, each with its own seed.
        """

        def guarded(at: int) -> Result | Message:
            return self._guarded(function, at, messages[at], until)

        order, is_watched = np.argsort(work)[::-1].tolist(), self._may_draw and self._solver.is_concurrent
        before = Generators() if is_watched else None
        results = (self._pool if self._solver.is_concurrent else self._alone).map(guarded, order)
        if before and before.have_moved():
            _log.warning(_DRAWS)
            before.restore()
            self._solver.is_concurrent = False
            results = self._alone.map(guarded, order)
        return [results[at] for at in range(len(messages))]

    @staticmethod
    def _guarded(
        function: Callable[[Argument], Result], argument: Argument, message: Message, until: float
    ) -> Result | Message:
        """Return the function's result, or the error reply to a message if it raises or starts too late."""
        if time.monotonic() > until:
            return late(message)
        try:
            return function(argument)
        except UserError:
            raise
        except USER_CODE_ERRORS as error:  # the user's model may raise anything
            return failed(message, with_location(error))

    def facts(self) -> dict[str, Any]:
        """Return the solver, and the times of the trial in which it was chosen."""
        return {"solver": {"name": self.choice.name, "ms_per_step": dict(self.choice.ms_per_step)}}

    def peak_memory_bytes(self) -> int:
        """Return 0, because there is no other process."""
        return 0


def _are(messages: list[Message], kind: str) -> bool:
    return all(message.metadata.message_type == kind for message in messages)
