"""Clients: FedDANE's correction, and the metrics that a client reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.engines.local import LocalGrid
from fedprox.federation.client_app import Clients, ClientSpec, has_room
from fedprox.federation.messages import node_id, task_record
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.models.cnn import cnn
from fedprox.models.logistic import logistic
from fedprox.plan.plan import ClientTask, Plan
from fedprox.plan.protocols import PaperProtocol
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.fedprox import FedDane, FedProx

SIZES = [3, 8, 5]
LR, MU = 0.25, 0.5
NUM_CLASSES, NUM_FEATURES = 3, 4
# Two to five steps in float32 on numbers of order 1: 6e-8 per operation.
FLOAT32 = 2e-6


def make_data() -> FederatedData:
    rng = np.random.default_rng(0)
    num_examples = sum(SIZES)
    data = LabelledData(
        features=rng.normal(size=(num_examples, NUM_FEATURES)).astype(np.float32),
        labels=rng.integers(NUM_CLASSES, size=num_examples),
        test_features=np.empty((0, NUM_FEATURES), dtype=np.float32),
        test_labels=np.empty(0, dtype=np.int64),
        num_classes=NUM_CLASSES,
        mean=np.zeros((), dtype=np.float32),
        std=np.ones((), dtype=np.float32),
    )
    train = ClientIndex.from_lists(np.split(rng.permutation(num_examples), np.cumsum(SIZES)[:-1]))
    return FederatedData(data, train, ClientIndex.from_lists([np.empty(0, dtype=np.int64)] * len(SIZES)))


DATA = make_data()
START = np.random.default_rng(1).normal(size=(NUM_CLASSES, NUM_FEATURES + 1))


def spec(batch_size: int = 10, solver: str = "auto", data: FederatedData = DATA) -> ClientSpec:
    return ClientSpec(data, logistic((NUM_FEATURES,), NUM_CLASSES), SgdSettings(LR, batch_size), solver=solver)


def arrays(w: np.ndarray = START) -> ArrayRecord:
    weight, bias = torch.from_numpy(w[:, :-1].astype(np.float32)), torch.from_numpy(w[:, -1].astype(np.float32))
    return ArrayRecord({"1.weight": weight.contiguous(), "1.bias": bias})


def joined(record: ArrayRecord) -> np.ndarray:
    """Return W and b side by side, in float64."""
    return np.column_stack([record["1.weight"].numpy(), record["1.bias"].numpy()]).astype(np.float64)


def gradient(w: np.ndarray, client: int) -> np.ndarray:
    """Return grad F_k(w) in float64: the mean of (softmax(W x + b) - onehot(y)) (x, 1)^T."""
    x, y = DATA.client_examples(client)
    x = np.column_stack([x, np.ones(len(x))])
    logits = x @ w.T
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    return (chances - np.eye(NUM_CLASSES)[y]).T @ x / len(x)


def train(client_spec: ClientSpec, client: int, num_steps: int, correction: np.ndarray | None = None, **config):
    """Return a client's reply after full-batch steps, one per epoch."""
    task = ClientTask(client, num_steps, num_steps, False, (0, 0, 1, client))
    content = {
        "arrays": arrays(),
        "config": ConfigRecord({"proximal-mu": MU, **config}),
        "task": task_record(task),
    }
    if correction is not None:
        content["gradient"] = arrays(correction)
    grid = LocalGrid(client_spec)
    (reply,) = grid.send_and_receive([Message(RecordDict(content), node_id(client), "train")])
    return reply.content


def ask_gradient(client_spec: ClientSpec, client: int):
    task = ClientTask(client, 1, 0, False, ())
    content = RecordDict({"arrays": arrays(), "task": task_record(task)})
    (reply,) = LocalGrid(client_spec).send_and_receive([Message(content, node_id(client), "query.gradient")])
    return reply.content


# FedDANE


@pytest.mark.parametrize("solver", ["auto", "cohort"])
@pytest.mark.parametrize("client", range(3))
def test_the_first_phase_gives_the_full_gradient_and_the_number_of_examples(client, solver):
    content = ask_gradient(spec(batch_size=2, solver=solver), client)
    assert content["metrics"]["num-examples"] == SIZES[client]
    np.testing.assert_allclose(joined(content["gradient"]), gradient(START, client), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_every_step_is_corrected_by_the_global_less_the_local_gradient_at_the_global_model(solver, num_steps):
    # w <- w - lr * (grad F_k(w) + (g_t - grad F_k(w^t)) + mu * (w - w^t)) with all examples in each batch. In the
    # first step the two local gradients cancel: it is -lr * g_t.
    global_gradient = np.random.default_rng(2).normal(size=START.shape)
    for client in range(3):
        w = START.copy()
        for _ in range(num_steps):
            w -= LR * (gradient(w, client) + global_gradient - gradient(START, client) + MU * (w - START))
        reply = joined(train(spec(solver=solver), client, num_steps, global_gradient)["arrays"])
        np.testing.assert_allclose(reply, w, rtol=FLOAT32, atol=FLOAT32)
        if num_steps == 1:
            np.testing.assert_allclose(w, START - LR * global_gradient, rtol=1e-12, atol=1e-12)


def one_round(strategy, client_spec: ClientSpec, sizes: list[int], num_epochs: int = 3) -> np.ndarray:
    plan = Plan(np.array(sizes), len(sizes), num_epochs, 10, 0.0, PaperProtocol(), seed=0)
    planned, grid = PlannedStrategy(strategy, plan), LocalGrid(client_spec)
    messages = planned.configure_train(1, arrays(), ConfigRecord({"proximal-mu": MU}), grid)
    return joined(planned.aggregate_train(1, grid.send_and_receive(messages))[0])


def test_a_whole_round_of_feddane_follows_the_formula():
    # All three clients are in both cohorts: g_t = sum n_k grad F_k(w^t) / n, then the n_k-weighted mean of the models.
    n = np.array(SIZES)
    global_gradient = sum(size * gradient(START, client) for client, size in enumerate(SIZES)) / n.sum()
    models = []
    for client in range(3):
        w = START.copy()
        for _ in range(3):
            w -= LR * (gradient(w, client) + global_gradient - gradient(START, client) + MU * (w - START))
        models.append(w)
    expected = sum(size * w for size, w in zip(SIZES, models, strict=True)) / n.sum()
    found = one_round(FedDane(), spec(), SIZES)
    np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)
    assert np.abs(one_round(FedProx(), spec(), SIZES) - expected).max() > 1e-3


# Gamma


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
def test_gamma_is_measured_if_asked_for(solver):
    # ||grad F_k(w_k) + mu (w_k - w^t)|| / ||grad F_k(w^t)|| at the model that the client sends back.
    assert "gamma" not in train(spec(solver=solver), 0, 3)["metrics"]
    assert "gamma" not in train(spec(solver=solver), 0, 3, **{"measure-gamma": False})["metrics"]
    for client in range(3):
        content = train(spec(solver=solver), client, 3, **{"measure-gamma": True})
        w = joined(content["arrays"])
        residual = gradient(w, client) + MU * (w - START)
        expected = np.linalg.norm(residual) / np.linalg.norm(gradient(START, client))
        assert 0 < expected < 1
        assert content["metrics"]["gamma"] == pytest.approx(expected, rel=1e-5)


def test_the_general_path_corrects_gradients_like_the_compiled_one():
    # An Identity takes logistic regression off its compiled path; both paths must agree.
    model = nn.Sequential(nn.Flatten(), nn.Linear(NUM_FEATURES, NUM_CLASSES), nn.Identity())
    global_gradient = np.random.default_rng(2).normal(size=START.shape)
    general = train(replace(spec(), model=model), 1, 4, global_gradient, **{"measure-gamma": True})
    special = train(spec(), 1, 4, global_gradient, **{"measure-gamma": True})
    np.testing.assert_allclose(joined(general["arrays"]), joined(special["arrays"]), rtol=FLOAT32, atol=FLOAT32)
    assert general["metrics"]["gamma"] == pytest.approx(special["metrics"]["gamma"], rel=1e-5)


# Images


def image_spec(augmentation: PadCropFlip | None = None, momentum: float = 0.5, **settings) -> ClientSpec:
    """Return clients that hold colour images, as they are stored; momentum selects the reference solver."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (sum(SIZES), 8, 6, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    mean, std = (rng.uniform(50, 100, (3, 1, 1)).astype(np.float32) for _ in range(2))
    labels = rng.integers(NUM_CLASSES, size=len(images))
    data = LabelledData(images, labels, images[:0], labels[:0], NUM_CLASSES, mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cnn((3, 8, 6), NUM_CLASSES)
    sgd = SgdSettings(LR, 3, momentum)
    return ClientSpec(FederatedData(data, DATA.train, DATA.held_out), model, sgd, augmentation=augmentation, **settings)


def image_replies(client_spec: ClientSpec, round_num: int = 1, **config) -> list[Message]:
    last_batch = client_spec.sgd.last_batch
    planned = PlannedStrategy(
        FedProx(), Plan(np.array(SIZES), 3, 2, 3, 0.0, PaperProtocol(), seed=0, last_batch=last_batch)
    )
    settings = ConfigRecord({"proximal-mu": MU, **config})
    grid = LocalGrid(client_spec)
    start = ArrayRecord(client_spec.model.state_dict())
    return grid.send_and_receive(planned.configure_train(round_num, start, settings, grid))


def assert_same_models(one: list[Message], other: list[Message], tolerance: float) -> None:
    for mine, its in zip(one, other, strict=True):
        for name, array in mine.content["arrays"].items():
            difference = np.abs(array.numpy() - its.content["arrays"][name].numpy()).max()
            assert difference <= tolerance, (name, difference)


@pytest.mark.parametrize("last_batch", ["keep", "drop", "merge"])
def test_stored_images_give_the_same_models_as_their_model_input(last_batch):
    # Of 3, 8 and 5 in batches of 3; merged ones have up to 5.
    spec = image_spec()
    spec = replace(spec, sgd=replace(spec.sgd, last_batch=last_batch))
    data = spec.data
    floats = replace(
        data.examples,
        features=data.examples.model_input(data.examples.features),
        mean=np.zeros((), np.float32),
        std=np.ones((), np.float32),
    )
    as_floats = replace(spec, data=replace(data, examples=floats))
    assert spec.choose_solver().solver.takes_images
    assert not as_floats.choose_solver().solver.takes_images
    assert_same_models(image_replies(spec), image_replies(as_floats), 1e-5)


def test_augmentation_that_moves_nothing_changes_nothing():
    still = PadCropFlip(pad=0, flip=False)
    assert_same_models(image_replies(image_spec(still)), image_replies(image_spec()), 0.0)


def test_augmentation_differs_between_rounds_and_repeats():
    spec = image_spec(PadCropFlip(2))
    first, again = image_replies(spec), image_replies(spec)
    assert_same_models(first, again, 0.0)
    plain = image_replies(image_spec())
    with pytest.raises(AssertionError):
        assert_same_models(first, plain, 1e-3)
    planned = PlannedStrategy(FedProx(), Plan(np.array(SIZES), 3, 2, 3, 0.0, PaperProtocol(), seed=0))
    works = [
        Clients(spec, spec.choose_solver().solver).work(message)
        for round_num in (1, 2)
        for message in planned.configure_train(round_num, ArrayRecord(), ConfigRecord({"proximal-mu": MU}), None)
    ]
    drawn = {work.shifts[epoch].tobytes() for work in works for epoch in range(2)}
    assert len(drawn) == 2 * 3 * 2  # rounds, clients, epochs


def test_gamma_and_fed_danes_correction_take_images_as_model_input():
    for reply in image_replies(image_spec(), **{"measure-gamma": True}):
        assert 0 < reply.content["metrics"]["gamma"] < 10
    grid = LocalGrid(image_spec())
    planned = PlannedStrategy(FedDane(), Plan(np.array(SIZES), 3, 1, 10, 0.0, PaperProtocol(), seed=0))
    start = ArrayRecord(image_spec().model.state_dict())
    replies = grid.send_and_receive(planned.configure_train(1, start, ConfigRecord({"proximal-mu": 0.0}), grid))
    assert all(np.isfinite(reply.content["metrics"]["train-loss"]) for reply in replies)


@pytest.mark.parametrize("solver", ["logistic", "reference", "cohort"])
def test_the_learning_rate_is_multiplied_by_the_rounds_factor(solver):
    # One full-batch step from w^t: it is lr * factor * gradient long.
    name = "auto" if solver == "logistic" else solver
    whole = train(spec(solver=name), client=1, num_steps=1)
    half = train(spec(solver=name), client=1, num_steps=1, **{"learning-rate-factor": 0.5})
    steps = [joined(reply["arrays"]) - START.astype(np.float32) for reply in (whole, half)]
    np.testing.assert_allclose(steps[1], steps[0] / 2, atol=FLOAT32)
    assert np.abs(steps[0]).max() > 0.01


# Drift


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
def test_the_drift_is_the_distance_of_the_model_sent_back_from_the_global_one(solver):
    for client in range(3):
        content = train(spec(solver=solver), client, 3)
        distance = np.linalg.norm(joined(content["arrays"]) - joined(arrays()))
        assert content["metrics"]["drift"] == pytest.approx(distance, rel=FLOAT32)
        assert distance > 0.1
    assert train(spec(solver=solver), 0, 0)["metrics"]["drift"] == 0.0


def test_only_what_is_trained_drifts():
    # The second layer is frozen; batch norm's mean, variance and count change, and are no parameters.
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(NUM_FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, NUM_CLASSES).requires_grad_(False)
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    task = ClientTask(1, 2, 2, False, (0, 0, 1, 1))
    config = ConfigRecord({"proximal-mu": 0.0})
    content = RecordDict({"arrays": ArrayRecord(start), "config": config, "task": task_record(task)})
    (reply,) = LocalGrid(replace(spec(), model=model)).send_and_receive([Message(content, node_id(1), "train")])
    moved = {name: array.numpy() - start[name].numpy() for name, array in reply.content["arrays"].items()}
    changed = {name for name, change in moved.items() if np.any(change)}
    assert {"1.weight", "2.running_mean", "2.num_batches_tracked"} <= changed
    assert not {"3.weight", "3.bias"} & changed
    trained = np.concatenate([moved[name].ravel() for name in ("1.weight", "1.bias", "2.weight", "2.bias")])
    assert reply.content["metrics"]["drift"] == pytest.approx(np.linalg.norm(trained.astype(np.float64)), rel=1e-12)


@pytest.mark.parametrize("solver", ["reference", "cohort"])
@pytest.mark.parametrize("augmentation", [None, PadCropFlip(2)])
def test_examples_that_stay_on_the_device_give_the_same_replies(monkeypatch, solver, augmentation):
    # As on a GPU; here the device is the CPU.
    images = replace(image_spec(augmentation), solver=solver)
    floats = replace(spec(solver=solver), data=DATA)
    expected = image_replies(images, **{"measure-gamma": True}), train(floats, 1, 9)
    monkeypatch.setattr("fedprox.federation.client_app.has_room", lambda device, size_bytes: True)
    found = image_replies(images, **{"measure-gamma": True}), train(floats, 1, 9)
    assert_same_models(found[0], expected[0], 1e-5)
    for reply, same in zip(found[0], expected[0], strict=True):
        assert reply.content["metrics"]["gamma"] == pytest.approx(same.content["metrics"]["gamma"], rel=1e-4)
    assert np.array_equal(joined(found[1]["arrays"]), joined(expected[1]["arrays"]))


def test_only_a_gpu_keeps_all_examples_and_only_in_a_quarter_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
    assert has_room("cuda:1", 100)
    assert not has_room("cuda:1", 101)
    assert not has_room("cpu", 1)
