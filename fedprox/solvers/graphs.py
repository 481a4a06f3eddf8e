"""Steps captured as CUDA graphs: a GPU repeats all operations of a step without waiting for Python to launch each.

A graph repeats the operations on the memory that they were captured with. So everything that a step reads or writes
lies in a `FixedMemory`, and the rows of the schedule that are next are counted on the device.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fedprox.errors import one_line

_log = logging.getLogger("fedprox")
_STEPS_BEFORE = 3  # steps run as usual before one is captured: libraries choose their algorithms and allocate memory
_SPARE = 1.25  # memory for schedules, compared with what is needed now: other cohorts have more steps


class FixedMemory:
    """Named tensors that stay where they are as long as what they must hold fits into them.

    Attributes:
        num_moves: How often a tensor was placed anew, after which earlier graphs must not be replayed.
    """

    def __init__(self) -> None:
        """Begin without tensors."""
        self.num_moves = 0
        self._tensors: dict[str, Tensor] = {}

    def hold(self, name: str, value: Tensor, device: torch.device, *, grows: bool = False) -> Tensor:
        """Copy a value, shape (n, ...), to the tensor of this name and return all of it, shape (at least n, ...).

        Args:
            name: Of the tensor.
            value: On any device.
            device: Of the tensor.
            grows: Whether a later value may well be longer.
        """
        kept = self._tensors.get(name)
        if kept is None or kept.dtype != value.dtype or kept.shape[1:] != value.shape[1:] or len(kept) < len(value):
            num_rows = int(_SPARE * len(value)) if grows else len(value)
            kept = torch.zeros((num_rows, *value.shape[1:]), dtype=value.dtype, device=device)
            self._tensors[name] = kept
            self.num_moves += 1
        kept[: len(value)].copy_(value)
        return kept


class Graphs:
    """CUDA graphs of steps, by what distinguishes them.

    Attributes:
        memory: What the steps read and write.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare to capture on a GPU."""
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Free all graphs and their memory."""
        self.memory = FixedMemory()
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._num_run: dict[Hashable, int] = {}
        self._num_moves = 0

    @contextmanager
    def on_own_stream(self) -> Iterator[None]:
        """Let the operations of this context follow all earlier ones, and later ones follow them."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step; from the fourth time on by replaying its graph. Call it within `on_own_stream`.

        A step that cannot be captured runs as usual every time.

        Args:
            key: Steps with the same key do the same operations on the same memory.
            step: The operations; it must not depend on values, nor return any.
        """
        if self._num_moves != self.memory.num_moves:
            self._graphs.clear()
            self._num_moves = self.memory.num_moves
        self._num_run[key] = self._num_run.get(key, 0) + 1
        if key not in self._graphs and self._num_run[key] > _STEPS_BEFORE:
            self._graphs[key] = self._captured(step)
        graph = self._graphs.get(key)
        if graph is None:
            step()
        else:
            graph.replay()

    def _captured(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Return the graph of a step, which is not run; None if it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning("a step cannot be captured as a CUDA graph, so it takes longer: %s", one_line(error))
            return None
        return graph
