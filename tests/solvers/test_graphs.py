"""Memory that does not move, and steps that are replayed; CUDA's graphs are fakes, so no GPU is needed."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from fedprox.solvers import graphs
from fedprox.solvers.graphs import FixedMemory, Graphs


def test_memory_stays_where_it_is_until_a_value_does_not_fit():
    memory, cpu = FixedMemory(), torch.device("cpu")
    first = memory.hold("a", torch.tensor([1.0, 2.0, 3.0, 4.0]), cpu, grows=True)
    assert first[:4].tolist() == [1, 2, 3, 4]
    for value in ([7.0], [1.0] * 5):  # a quarter more is kept
        assert memory.hold("a", torch.tensor(value), cpu).data_ptr() == first.data_ptr()
    assert memory.num_moves == 1
    for value in (torch.ones(9), torch.ones(9).double(), torch.ones(9, 2)):
        moves = memory.num_moves
        assert torch.equal(memory.hold("a", value, cpu)[:9], value)
        assert memory.num_moves == moves + 1


class Gpu:
    """Stands for torch.cuda: a capture runs the step's Python once, a replay only counts.

    Attributes:
        num_replays: Replays of any graph.
        is_capturing: Whether a step is being captured.
        error: Raised by the next captures.
    """

    def __init__(self):
        self.num_replays, self.is_capturing, self.error = 0, False, None
        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.Stream, self.current_stream, self.stream = (lambda *_: stream), (lambda *_: stream), nullcontext
        self.graph_pool_handle = object
        self.CUDAGraph = lambda: SimpleNamespace(replay=self.replay)

    def replay(self):
        self.num_replays += 1

    @contextmanager
    def graph(self, graph, pool, stream):
        self.is_capturing = True
        try:
            yield
            if self.error:
                raise self.error
        finally:
            self.is_capturing = False


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    fake = Gpu()
    for name in ("Stream", "current_stream", "stream", "graph_pool_handle", "CUDAGraph", "graph"):
        monkeypatch.setattr(graphs.torch.cuda, name, getattr(fake, name))
    return fake


@pytest.fixture
def steps(gpu) -> list[str]:
    """Return a list that a step writes to: "run", or "capture" if it is captured."""
    return []


def run(made: Graphs, gpu: Gpu, steps: list[str], times: int, key: str = "a") -> None:
    with made.on_own_stream():
        for _ in range(times):
            made.run(key, lambda: steps.append("capture" if gpu.is_capturing else "run"))


def test_a_step_runs_three_times_and_is_then_captured_once_and_replayed(gpu, steps):
    made = Graphs(torch.device("cpu"))
    run(made, gpu, steps, 10)
    assert (steps, gpu.num_replays) == (["run"] * 3 + ["capture"], 7)
    run(made, gpu, steps, 2)
    assert (len(steps), gpu.num_replays) == (4, 9)
    run(made, gpu, steps, 3, key="b")  # another step begins anew
    assert (steps[4:], gpu.num_replays) == (["run"] * 3, 9)


def test_after_memory_has_moved_a_step_is_captured_again(gpu, steps):
    made = Graphs(torch.device("cpu"))
    run(made, gpu, steps, 5)
    made.memory.hold("x", torch.ones(2), torch.device("cpu"))
    run(made, gpu, steps, 1)
    assert (steps[3:], gpu.num_replays) == (["capture", "capture"], 3)
    made.memory.hold("x", torch.zeros(2), torch.device("cpu"))
    run(made, gpu, steps, 1)
    assert (len(steps), gpu.num_replays) == (5, 4)


def test_a_step_that_cannot_be_captured_runs_every_time_and_is_reported_once(gpu, steps, caplog):
    made = Graphs(torch.device("cpu"))
    gpu.error = RuntimeError("operation not permitted when stream is capturing")
    run(made, gpu, steps, 6)
    assert (steps, gpu.num_replays) == (["run"] * 3 + ["capture"] + ["run"] * 3, 0)
    assert caplog.text.count("cannot be captured as a CUDA graph") == 1


def test_too_little_memory_for_a_graph_is_an_error_after_which_all_can_be_forgotten(gpu, steps):
    made = Graphs(torch.device("cpu"))
    made.memory.hold("x", torch.ones(2), torch.device("cpu"))
    gpu.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        run(made, gpu, steps, 4)
    made.forget()
    gpu.error = None
    assert made.memory.num_moves == 0
    run(made, gpu, steps, 4)
    assert (steps[4:], gpu.num_replays) == (["run"] * 3 + ["capture"], 1)
