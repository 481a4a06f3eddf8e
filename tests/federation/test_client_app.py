"""The Flower client: FedDANE's correction, and what a client measures beside its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import nn

from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.engines.local import LocalGrid
from fedprox.federation.client_app import Clients, ClientSpec, make_client_app
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


def side(batch_size: int = 10, solver: str = "auto", data: FederatedData = DATA) -> ClientSpec:
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


def train(client_side: ClientSpec, client: int, num_steps: int, correction: np.ndarray | None = None, **config):
    """Return a client's reply after full-batch steps, one per epoch."""
    task = ClientTask(client, num_steps, num_steps, False, (0, 0, 1, client))
    content = {
        "arrays": arrays(),
        "config": ConfigRecord({"proximal-mu": MU, **config}),
        "task": task_record(task),
    }
    if correction is not None:
        content["gradient"] = arrays(correction)
    grid = LocalGrid(client_side)
    (reply,) = grid.send_and_receive([Message(RecordDict(content), node_id(client), "train")])
    return reply.content


def ask_gradient(client_side: ClientSpec, client: int):
    task = ClientTask(client, 1, 0, False, ())
    content = RecordDict({"arrays": arrays(), "task": task_record(task)})
    (reply,) = LocalGrid(client_side).send_and_receive([Message(content, node_id(client), "query.gradient")])
    return reply.content


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
def test_a_message_to_the_client_app_alone_gets_the_engines_reply(solver):
    # As in a deployment, where there is no engine: the app's own way from message to reply.
    client_side = side(4, solver)
    grid = LocalGrid(client_side)
    app = make_client_app(Clients(client_side, client_side.make_solver()))
    for client in range(3):
        asked = message(client, None)
        context = Context(run_id=1, node_id=node_id(client), node_config={}, state=RecordDict(), run_config={})
        replies = [app(asked, context), *grid.send_and_receive([asked])]
        one, other = (joined(reply.content["arrays"]) for reply in replies)
        assert np.array_equal(one, other)
        assert dict(replies[0].content["metrics"]) == dict(replies[1].content["metrics"])
        assert not np.allclose(one, START, atol=0.01)


# FedDANE


@pytest.mark.parametrize("solver", ["auto", "cohort"])
@pytest.mark.parametrize("client", range(3))
def test_the_first_phase_gives_the_full_gradient_and_the_number_of_examples(client, solver):
    content = ask_gradient(side(batch_size=2, solver=solver), client)
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
        reply = joined(train(side(solver=solver), client, num_steps, global_gradient)["arrays"])
        np.testing.assert_allclose(reply, w, rtol=FLOAT32, atol=FLOAT32)
        if num_steps == 1:
            np.testing.assert_allclose(w, START - LR * global_gradient, rtol=1e-12, atol=1e-12)


def message(client: int, correction: np.ndarray | None) -> Message:
    """Return one epoch of mini-batches with mu = 0."""
    task = ClientTask(client, 1, 2, False, (0, 0, 1, client))
    content = {"arrays": arrays(), "config": ConfigRecord({"proximal-mu": 0.0}), "task": task_record(task)}
    if correction is not None:
        content["gradient"] = arrays(correction)
    return Message(RecordDict(content), node_id(client), "train")


def one_round(strategy, client_side: ClientSpec, sizes: list[int], num_epochs: int = 3) -> np.ndarray:
    plan = Plan(np.array(sizes), len(sizes), num_epochs, 10, 0.0, PaperProtocol(), seed=0)
    planned, grid = PlannedStrategy(strategy, plan), LocalGrid(client_side)
    messages = planned.configure_train(1, arrays(), ConfigRecord({"proximal-mu": MU}), grid)
    return joined(planned.aggregate_train(1, grid.send_and_receive(messages))[0])


def test_with_one_client_feddane_is_fedprox_because_its_gradient_is_the_global_one():
    alone = replace(DATA, train=ClientIndex.from_lists([DATA.train[1]]), held_out=ClientIndex.from_lists([[]]))
    dane, prox = (one_round(strategy, side(data=alone), [8]) for strategy in (FedDane(), FedProx()))
    assert np.array_equal(dane, prox)  # the correction is a difference of equal numbers: no rounding
    assert not np.allclose(prox, START, atol=0.01)


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
    found = one_round(FedDane(), side(), SIZES)
    np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)
    assert np.abs(one_round(FedProx(), side(), SIZES) - expected).max() > 1e-3


# Gamma


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
def test_gamma_is_measured_where_it_is_asked_for(solver):
    # ||grad F_k(w_k) + mu (w_k - w^t)|| / ||grad F_k(w^t)|| at the model that the client sends back.
    assert "gamma" not in train(side(solver=solver), 0, 3)["metrics"]
    assert "gamma" not in train(side(solver=solver), 0, 3, **{"measure-gamma": False})["metrics"]
    for client in range(3):
        content = train(side(solver=solver), client, 3, **{"measure-gamma": True})
        w = joined(content["arrays"])
        residual = gradient(w, client) + MU * (w - START)
        expected = np.linalg.norm(residual) / np.linalg.norm(gradient(START, client))
        assert 0 < expected < 1
        assert content["metrics"]["gamma"] == pytest.approx(expected, rel=1e-5)


def test_a_module_with_other_layers_is_corrected_by_autograd():
    # The same logistic regression behind an Identity is nobody's special case, so both ways must agree.
    model = nn.Sequential(nn.Flatten(), nn.Linear(NUM_FEATURES, NUM_CLASSES), nn.Identity())
    global_gradient = np.random.default_rng(2).normal(size=START.shape)
    general = train(replace(side(), model=model), 1, 4, global_gradient, **{"measure-gamma": True})
    special = train(side(), 1, 4, global_gradient, **{"measure-gamma": True})
    np.testing.assert_allclose(joined(general["arrays"]), joined(special["arrays"]), rtol=FLOAT32, atol=FLOAT32)
    assert general["metrics"]["gamma"] == pytest.approx(special["metrics"]["gamma"], rel=1e-5)


# Pictures


def picture_side(augmentation: PadCropFlip | None = None, momentum: float = 0.5, **settings) -> ClientSpec:
    """Return clients that hold colour pictures, as they are stored; momentum is what the reference solver is for."""
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


def picture_replies(client_side: ClientSpec, round_num: int = 1, **config) -> list[Message]:
    last_batch = client_side.sgd.last_batch
    planned = PlannedStrategy(
        FedProx(), Plan(np.array(SIZES), 3, 2, 3, 0.0, PaperProtocol(), seed=0, last_batch=last_batch)
    )
    settings = ConfigRecord({"proximal-mu": MU, **config})
    grid = LocalGrid(client_side)
    start = ArrayRecord(client_side.model.state_dict())
    return grid.send_and_receive(planned.configure_train(round_num, start, settings, grid))


def assert_same_models(one: list[Message], other: list[Message], tolerance: float) -> None:
    for mine, its in zip(one, other, strict=True):
        for name, array in mine.content["arrays"].items():
            difference = np.abs(array.numpy() - its.content["arrays"][name].numpy()).max()
            assert difference <= tolerance, (name, difference)


@pytest.mark.parametrize("last_batch", ["keep", "drop", "merge"])
def test_pictures_give_what_their_model_input_gives(last_batch):
    # Of 3, 8 and 5 in batches of 3; merged ones have up to 5.
    side_of_pictures = picture_side()
    side_of_pictures = replace(side_of_pictures, sgd=replace(side_of_pictures.sgd, last_batch=last_batch))
    data = side_of_pictures.data
    floats = replace(
        data.examples,
        features=data.examples.model_input(data.examples.features),
        mean=np.zeros((), np.float32),
        std=np.ones((), np.float32),
    )
    as_floats = replace(side_of_pictures, data=replace(data, examples=floats))
    assert side_of_pictures.make_solver().takes_pictures
    assert not as_floats.make_solver().takes_pictures
    assert_same_models(picture_replies(side_of_pictures), picture_replies(as_floats), 1e-5)


def test_augmentation_that_moves_nothing_changes_nothing():
    still = PadCropFlip(pad=0, flip=False)
    assert_same_models(picture_replies(picture_side(still)), picture_replies(picture_side()), 0.0)


def test_augmented_pictures_are_drawn_anew_in_every_round_and_alike_every_time():
    side_of_pictures = picture_side(PadCropFlip(2))
    first, again = picture_replies(side_of_pictures), picture_replies(side_of_pictures)
    assert_same_models(first, again, 0.0)
    plain = picture_replies(picture_side())
    with pytest.raises(AssertionError):
        assert_same_models(first, plain, 1e-3)
    works = [
        Clients(side_of_pictures, side_of_pictures.make_solver()).work(message)
        for round_num in (1, 2)
        for message in PlannedStrategy(
            FedProx(), Plan(np.array(SIZES), 3, 2, 3, 0.0, PaperProtocol(), seed=0)
        ).configure_train(round_num, ArrayRecord(), ConfigRecord({"proximal-mu": MU}), LocalGrid(side_of_pictures))
    ]
    drawn = {work.shifts[epoch].tobytes() for work in works for epoch in range(2)}
    assert len(drawn) == 2 * 3 * 2  # rounds, clients, epochs


def test_gamma_and_fed_danes_correction_take_pictures_as_model_input():
    for reply in picture_replies(picture_side(), **{"measure-gamma": True}):
        assert 0 < reply.content["metrics"]["gamma"] < 10
    grid = LocalGrid(picture_side())
    planned = PlannedStrategy(FedDane(), Plan(np.array(SIZES), 3, 1, 10, 0.0, PaperProtocol(), seed=0))
    start = ArrayRecord(picture_side().model.state_dict())
    replies = grid.send_and_receive(planned.configure_train(1, start, ConfigRecord({"proximal-mu": 0.0}), grid))
    assert all(np.isfinite(reply.content["metrics"]["train-loss"]) for reply in replies)


@pytest.mark.parametrize("solver", ["logistic", "reference", "cohort"])
def test_the_learning_rate_is_the_settings_times_the_rounds_factor(solver):
    # One full-batch step from w^t: it is lr * factor * gradient long.
    name = "auto" if solver == "logistic" else solver
    whole = train(side(solver=name), client=1, num_steps=1)
    half = train(side(solver=name), client=1, num_steps=1, **{"learning-rate-factor": 0.5})
    steps = [joined(reply["arrays"]) - START.astype(np.float32) for reply in (whole, half)]
    np.testing.assert_allclose(steps[1], steps[0] / 2, atol=FLOAT32)
    assert np.abs(steps[0]).max() > 0.01


# Drift


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
def test_the_drift_is_the_distance_of_the_model_sent_back_from_the_global_one(solver):
    for client in range(3):
        content = train(side(solver=solver), client, 3)
        distance = np.linalg.norm(joined(content["arrays"]) - joined(arrays()))
        assert content["metrics"]["drift"] == pytest.approx(distance, rel=FLOAT32)
        assert distance > 0.1


@pytest.mark.parametrize("solver", ["auto", "reference", "cohort"])
def test_a_client_without_work_has_not_drifted(solver):
    assert train(side(solver=solver), 0, 0)["metrics"]["drift"] == 0.0


def test_only_what_is_trained_drifts():
    # The second layer is frozen; batch norm's mean, variance and count change, and are no parameters.
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(NUM_FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, NUM_CLASSES).requires_grad_(False)
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    task = ClientTask(1, 2, 2, False, (0, 0, 1, 1))
    config = ConfigRecord({"proximal-mu": 0.0})
    content = RecordDict({"arrays": ArrayRecord(start), "config": config, "task": task_record(task)})
    (reply,) = LocalGrid(replace(side(), model=model)).send_and_receive([Message(content, node_id(1), "train")])
    moved = {name: array.numpy() - start[name].numpy() for name, array in reply.content["arrays"].items()}
    changed = {name for name, change in moved.items() if np.any(change)}
    assert {"1.weight", "2.running_mean", "2.num_batches_tracked"} <= changed
    assert not {"3.weight", "3.bias"} & changed
    trained = np.concatenate([moved[name].ravel() for name in ("1.weight", "1.bias", "2.weight", "2.bias")])
    assert reply.content["metrics"]["drift"] == pytest.approx(np.linalg.norm(trained.astype(np.float64)), rel=1e-12)


def test_the_averaged_model_has_moved_at_most_by_the_mean_drift():
    # The triangle inequality for sum n_k (w_k - w^t) / n; equality would need clients that all go the same way.
    drifts = [train(side(), client, 3)["metrics"]["drift"] for client in range(3)]
    moved = np.linalg.norm(one_round(FedProx(), side(), SIZES) - joined(arrays()))
    assert 0 < moved < np.average(drifts, weights=SIZES)
