"""The engine that computes all clients in this process."""

import random
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedprox.engines import local
from fedprox.engines.local import LocalGrid
from fedprox.errors import UserError
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.messages import client_of, is_late, node_id, task_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.models.cnn import cnn
from fedprox.models.logistic import logistic
from fedprox.plan.plan import epoch_orders
from fedprox.solvers.choice import Choice
from fedprox.solvers.cohort import CohortSolver
from fedprox.solvers.generators import Generators
from fedprox.solvers.problem import LocalProblem, LocalWork, SgdSettings
from fedprox.solvers.reference import ReferenceSolver
from fedprox.strategies.fedprox import FedDane, FedProx


@pytest.fixture
def grid(federation) -> LocalGrid:
    return LocalGrid(federation.spec)


def params(reply) -> dict[str, torch.Tensor]:
    return reply.content["arrays"].to_torch_state_dict()


def equal(one, other) -> bool:
    """Return whether two replies are the same bit by bit."""
    same_model = all(torch.equal(params(one)[name], params(other)[name]) for name in params(one))
    return same_model and dict(one.content["metrics"]) == dict(other.content["metrics"])


def test_replies_come_in_the_order_of_the_messages_and_from_their_clients(federation, grid):
    assert list(grid.get_node_ids()) == [node_id(client) for client in range(6)]
    messages = federation.messages()
    replies = grid.send_and_receive(messages)
    assert [reply.metadata.src_node_id for reply in replies] == [m.metadata.dst_node_id for m in messages]
    sizes = [int(federation.spec.data.train.sizes[task_of(message).client]) for message in messages]
    assert [reply.content["metrics"]["num-examples"] for reply in replies] == sizes
    steps = [reply.content["metrics"]["num-steps"] for reply in replies]
    assert steps == [task_of(message).num_steps for message in messages]


@pytest.mark.parametrize("last_batch", ["keep", "drop", "merge"])
def test_clients_do_the_planned_steps_with_any_treatment_of_short_batches(federation, last_batch):
    # Batches of 4 of 1, 9, 4, 23, 7 and 12 examples: of 9, 23 and 7 the last one is short.
    spec = replace(federation.spec, sgd=replace(federation.spec.sgd, last_batch=last_batch))
    planned = PlannedStrategy(FedProx(), replace(federation.plan, last_batch=last_batch))
    messages = planned.configure_train(1, federation.start, ConfigRecord({"proximal-mu": 0.5}), None)
    num_batches = [1, 3, 1, 6, 2, 3] if last_batch == "keep" else [1, 2, 1, 5, 1, 3]
    for message, reply in zip(messages, LocalGrid(spec).send_and_receive(messages), strict=True):
        task = task_of(message)
        assert reply.content["metrics"]["num-steps"] == task.num_steps == task.num_epochs * num_batches[task.client]


@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("sampling", ["uniform", "proportional"])
def test_each_reply_is_the_reference_solvers_on_the_clients_own_examples(federation, grid, mu, sampling):
    spec = federation.spec
    messages = (federation.messages if sampling == "uniform" else federation.drawn_messages)(round_num=2, mu=mu)
    for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
        task = task_of(message)
        positions = spec.data.train[task.client]
        features = torch.from_numpy(spec.data.examples.features[positions])
        labels = torch.from_numpy(spec.data.examples.labels[positions])
        orders = epoch_orders(task, len(labels))
        work = LocalWork(orders, task.num_steps, mu, seed=(0, 0, 2, task.client, *([task.draw] if task.draw else [])))
        expected = ReferenceSolver(spec.model, spec.sgd).solve(
            LocalProblem(federation.start.to_torch_state_dict(), features, labels, work)
        )
        for name, value in expected.params.items():  # the same operations in the same order: no tolerance
            assert torch.equal(params(reply)[name], value)
        assert reply.content["metrics"]["train-loss"] == expected.train_loss


def test_a_reply_depends_neither_on_other_clients_nor_on_earlier_rounds(federation, grid):
    together = grid.send_and_receive(federation.messages())
    grid.send_and_receive(federation.messages(round_num=2))
    backwards = grid.send_and_receive(federation.messages()[::-1])[::-1]
    alone = [LocalGrid(federation.spec).send_and_receive([message])[0] for message in federation.messages()]
    assert all(equal(one, other) for one, other in zip(together, backwards, strict=True))
    assert all(equal(one, other) for one, other in zip(together, alone, strict=True))


def test_the_global_model_and_the_shared_data_stay_as_they_were(federation, grid):
    data = federation.spec.data.examples
    before = (data.features.copy(), {n: a.numpy().copy() for n, a in federation.start.items()})
    weights = {name: value.clone() for name, value in federation.spec.model.state_dict().items()}
    grid.send_and_receive(federation.messages())
    assert np.array_equal(data.features, before[0])
    assert all(np.array_equal(federation.start[name].numpy(), value) for name, value in before[1].items())
    assert all(torch.equal(federation.spec.model.state_dict()[name], value) for name, value in weights.items())


def test_torchs_number_of_threads_is_restored_even_after_an_error(federation, grid):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grid.send_and_receive(federation.messages())
        assert torch.get_num_threads() == 2
        message = federation.messages()[0]
        message.content["task"]["client"] = 99
        with pytest.raises(Exception, match="99"):
            grid.send_and_receive([message])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Clients that raise


class Choosy(torch.nn.Module):
    """Logistic regression that raises on batches of the one client with a single example."""

    def __init__(self, error: type[Exception] = ArithmeticError) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 4)
        self.error = error

    def forward(self, x):
        if self.training and torch.isclose(x, MARK).any():
            raise self.error("no logits")
        return self.linear(x.flatten(1))


MARK = torch.tensor(123.0)


def choosy(federation, *, raising: int, solver: str = "auto", **settings) -> ClientSpec:
    """Return a spec whose client `raising` has an example on which the model raises."""
    data = federation.spec.data
    features = data.examples.features.copy()
    features[data.train[raising][-1]] = float(MARK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Choosy(**settings)
    return ClientSpec(
        replace(data, examples=replace(data.examples, features=features)), model, SgdSettings(0.1, 4), "cpu", solver
    )


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_client_that_raises_is_named_and_the_others_reply_as_without_it(federation, num_threads):
    spec = choosy(federation, raising=3)
    grid = LocalGrid(spec, num_threads=num_threads)
    messages = federation.messages(arrays=ArrayRecord(spec.model.state_dict()))
    replies = grid.send_and_receive(messages)
    line = next(at for at, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise self.error(" in text)
    clients = [task_of(message).client for message in messages]
    for message, client, reply in zip(messages, clients, replies, strict=True):
        assert reply.metadata.src_node_id == node_id(client)
        if client == 3:
            assert not reply.has_content()
            assert reply.error.reason == f"ArithmeticError: no logits (test_local.py:{line})"
        else:
            assert equal(reply, LocalGrid(spec).send_and_receive([message])[0])
    assert sorted(clients) == list(range(6))


def test_gradients_of_a_client_that_raises_are_an_error_too(federation):
    spec = choosy(federation, raising=3)
    grid = LocalGrid(spec)
    message = federation.messages(arrays=ArrayRecord({}))[0]  # the weights are missing, so every client fails
    query = Message(message.content, dst_node_id=message.metadata.dst_node_id, message_type="query.gradient")
    assert "Error" in grid.send_and_receive([query])[0].error.reason


def test_an_error_about_a_setting_is_raised(federation):
    spec = choosy(federation, raising=3, error=UserError)
    with pytest.raises(UserError, match="no logits"):
        LocalGrid(spec).send_and_receive(federation.messages(arrays=ArrayRecord(spec.model.state_dict())))


def test_clients_that_have_not_started_in_time_are_late_and_the_longest_start_first(federation, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Choosy):
        def forward(self, x):
            now[0] += 0.02
            return super().forward(x)

    spec = replace(choosy(federation, raising=3), model=Slow())
    features = federation.spec.data.examples.features  # no client raises
    spec = replace(spec, data=replace(spec.data, examples=replace(spec.data.examples, features=features)))
    messages = federation.messages(arrays=ArrayRecord(spec.model.state_dict()))
    replies = LocalGrid(spec, num_threads=1).send_and_receive(messages, timeout=0.01)
    steps = [task_of(message).num_steps for message in messages]
    # The first client takes 0.02 s for each step, so that no other starts within 0.01 s.
    assert [is_late(reply) for reply in replies] == [steps[at] != max(steps) for at in range(6)]
    assert [reply.content["metrics"]["num-steps"] for reply in replies if reply.has_content()] == [max(steps)]
    assert all(is_late(reply) for reply in LocalGrid(spec).send_and_receive(messages, timeout=-1.0))


class FailingTogether(CohortSolver):
    """The cohort solver, which raises for a cohort with the marked example in it."""

    def solve_all(self, problems):
        if any(torch.isclose(problem.features, MARK).any() for problem in problems):
            raise MemoryError
        return super().solve_all(problems)


def test_clients_are_computed_one_by_one_if_one_call_for_all_fails(federation, monkeypatch):
    spec = choosy(federation, raising=3)
    monkeypatch.setattr(
        ClientSpec,
        "choose_solver",
        lambda self: Choice(FailingTogether(self.model, self.sgd, self.device), "failing"),
    )
    model = torch.nn.Sequential(torch.nn.Flatten(), spec.model.linear)
    messages = federation.messages(arrays=ArrayRecord(model.state_dict()))
    replies = LocalGrid(replace(spec, model=model)).send_and_receive(messages)
    failed = [reply for reply in replies if reply.has_error()]
    assert [client_of(reply) for reply in failed] == [3]
    assert failed[0].error.reason.startswith("MemoryError (")
    assert [reply.content["metrics"]["num-steps"] for reply in replies if reply.has_content()] == [
        task_of(message).num_steps for message in messages if task_of(message).client != 3
    ]


# Several threads


class SlowRecord(ArrayRecord):
    """A global model whose decoding takes so long that all threads ask for it before the first is done."""

    def to_torch_state_dict(self):
        time.sleep(0.05)
        return super().to_torch_state_dict()


@pytest.fixture(params=["logistic", "cnn"])
def concurrent(federation, request) -> ClientSpec:
    """Return a federation of 8 x 8 images and 10 classes, and a model whose solver may be used by several threads."""
    data, rng = federation.spec.data, np.random.default_rng(1)
    features = rng.normal(size=(len(data.examples.labels), 8, 8)).astype(np.float32)
    labels = rng.integers(10, size=len(features))
    data = replace(data, examples=replace(data.examples, features=features, labels=labels, num_classes=10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {"logistic": logistic, "cnn": cnn}[request.param]((8, 8), 10)
    spec = ClientSpec(data, model, SgdSettings(0.01, 4))
    assert spec.choose_solver().solver.is_concurrent
    return spec


def trajectory(federation, spec: ClientSpec, strategy: FedProx, num_threads: int, num_rounds: int = 4) -> list[list]:
    """Return the replies of several rounds, each of which starts at the average of the one before."""
    grid, planned = LocalGrid(spec, num_threads=num_threads), PlannedStrategy(strategy, federation.plan)
    arrays, rounds = SlowRecord(spec.model.state_dict()), []
    for round_num in range(1, num_rounds + 1):
        config = ConfigRecord({"proximal-mu": 0.5, "measure-gamma": True})
        rounds.append(grid.send_and_receive(planned.configure_train(round_num, arrays, config, grid)))
        arrays = SlowRecord(planned.aggregate_train(round_num, rounds[-1])[0].to_torch_state_dict())
    return rounds


@pytest.mark.parametrize("num_threads", [2, 6])
@pytest.mark.parametrize("strategy", [FedProx, FedDane])
def test_several_threads_give_the_replies_of_one_in_every_round(federation, concurrent, strategy, num_threads):
    # The model changes from round to round: a thread that meets the last round's model would answer otherwise. Full
    # gradients (gamma, FedDANE) are matrix products, which more threads of torch's would round differently.
    alone, together = (trajectory(federation, concurrent, strategy(), number) for number in (1, num_threads))
    for one, other in zip(alone, together, strict=True):
        assert [reply.metadata.src_node_id for reply in one] == [reply.metadata.src_node_id for reply in other]
        assert all(equal(reply, same) for reply, same in zip(one, other, strict=True))
    assert not any(equal(first, last) for first, last in zip(alone[0], alone[-1], strict=True))


def test_without_a_setting_there_are_as_many_threads_as_torch_has(concurrent, monkeypatch):
    for number in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        assert LocalGrid(concurrent)._pool.num_threads == number


def test_parameters_that_are_not_floats_do_not_count_for_the_drift(federation):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    masked = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    masked.load_state_dict(model.state_dict())
    masked.mask = torch.nn.Parameter(torch.ones(3, dtype=torch.bool), requires_grad=False)
    one, other = (
        LocalGrid(ClientSpec(federation.spec.data, each, SgdSettings(0.1, 4), solver="reference")).send_and_receive(
            federation.messages(arrays=ArrayRecord(each.state_dict()))
        )
        for each in (model, masked)
    )
    assert [dict(reply.content["metrics"]) for reply in one] == [dict(reply.content["metrics"]) for reply in other]


class SometimesNoisy(torch.nn.Module):
    """Logistic regression that draws random numbers for batches of four, unseen by a trial with three examples."""

    def __init__(self, draw, *, draws_in_training: bool) -> None:
        super().__init__()
        self.linear, self.draw, self.draws_in_training = torch.nn.Linear(6, 4), draw, draws_in_training

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return logits * self.draw() if self.training == self.draws_in_training and len(x) >= 4 else logits


DRAWS = {"torch": lambda: torch.rand(()), "numpy": lambda: np.random.rand(), "python": lambda: random.random()}


@pytest.mark.parametrize(
    ("kind", "draws_in_training", "strategy"),
    [
        ("torch", True, FedProx),
        ("numpy", True, FedProx),
        ("python", True, FedProx),
        ("numpy", False, FedProx),  # gamma is measured in evaluation mode
        ("torch", False, FedDane),  # and so are FedDANE's gradients
    ],
)
def test_unexpected_random_numbers_do_not_depend_on_the_threads(federation, caplog, kind, draws_in_training, strategy):
    model = SometimesNoisy(DRAWS[kind], draws_in_training=draws_in_training)
    spec = ClientSpec(federation.spec.data, model, SgdSettings(0.1, 4))
    assert spec.choose_solver().solver.is_concurrent
    one, other, again = (trajectory(federation, spec, strategy(), number, num_rounds=2) for number in (1, 3, 3))
    for replies, *others in zip(one, other, again, strict=True):
        assert all(equal(reply, same) for each in others for reply, same in zip(replies, each, strict=True))
    assert sum("the model draws random numbers" in record.message for record in caplog.records) == 3  # once a grid


def test_unexpected_random_numbers_leave_the_generators_unchanged(federation):
    model = SometimesNoisy(lambda: sum(draw() for draw in DRAWS.values()), draws_in_training=True)
    messages = federation.messages(arrays=ArrayRecord(model.state_dict()))
    grid, before = LocalGrid(ClientSpec(federation.spec.data, model, SgdSettings(0.1, 4))), Generators()
    for _ in range(2):  # the draws are noticed in the first round, and expected in the second
        assert not any(reply.has_error() for reply in grid.send_and_receive(messages))
        assert not before.have_moved()


def test_a_batched_solver_whose_model_draws_is_replaced(federation, caplog):
    model = SometimesNoisy(DRAWS["torch"], draws_in_training=True)
    spec = ClientSpec(federation.spec.data, model, SgdSettings(0.1, 4))
    batched = replace(spec, solver="cohort")
    assert isinstance(batched.choose_solver().solver, CohortSolver)
    one, other = (trajectory(federation, each, FedProx(), 2, num_rounds=2) for each in (spec, batched))
    for replies, same in zip(one, other, strict=True):
        assert all(equal(reply, expected) for reply, expected in zip(replies, same, strict=True))
    assert sum("the model draws random numbers" in record.message for record in caplog.records) == 2


# The whole round at once


@pytest.fixture
def batched(concurrent) -> ClientSpec:
    return replace(concurrent, sgd=SgdSettings(0.01, 4, momentum=0.5), solver="cohort")


@pytest.mark.parametrize("strategy", [FedProx, FedDane])
def test_a_batched_solvers_rounds_are_the_reference_solvers(federation, batched, strategy):
    one, other = (
        trajectory(federation, spec, strategy(), 1, num_rounds=2)
        for spec in (batched, replace(batched, solver="reference"))
    )
    for replies, expected in zip(one, other, strict=True):
        for reply, same in zip(replies, expected, strict=True):
            assert reply.metadata.src_node_id == same.metadata.src_node_id
            for name, value in params(same).items():
                # Two rounds of up to 18 float32 steps: 6e-8 per operation, which a CNN may enlarge a thousandfold.
                torch.testing.assert_close(params(reply)[name], value, rtol=1e-4, atol=1e-4)
            for name in ("num-examples", "num-steps"):
                assert reply.content["metrics"][name] == same.content["metrics"][name]
            for name in ("train-loss", "gamma"):
                assert reply.content["metrics"][name] == pytest.approx(same.content["metrics"][name], rel=1e-3)


def test_a_batched_solver_gets_the_whole_round_in_one_call(federation, batched, monkeypatch):
    grid, calls = LocalGrid(batched), []
    solve_all = grid._solver.solve_all
    monkeypatch.setattr(grid._solver, "solve_all", lambda problems: calls.append(len(problems)) or solve_all(problems))
    messages = federation.messages(arrays=ArrayRecord(batched.model.state_dict()))
    for round_messages in (messages, messages[:1], []):
        assert len(grid.send_and_receive(round_messages)) == len(round_messages)
    assert calls == [6, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", [FedProx, FedDane])
@pytest.mark.parametrize("solver", ["auto", "reference"])
def test_clients_on_a_gpu_give_the_replies_of_those_on_the_cpu(federation, batched, strategy, solver):
    on_gpu = trajectory(federation, replace(batched, device="cuda", solver=solver), strategy(), 1, num_rounds=2)
    on_cpu = trajectory(federation, replace(batched, solver="reference"), strategy(), 1, num_rounds=2)
    for replies, expected in zip(on_gpu, on_cpu, strict=True):
        for reply, same in zip(replies, expected, strict=True):
            for name, value in params(same).items():
                torch.testing.assert_close(params(reply)[name], value, rtol=1e-3, atol=1e-4)
            assert reply.content["metrics"]["gamma"] == pytest.approx(same.content["metrics"]["gamma"], rel=1e-2)
