"""Batch norm's statistics: averaged like weights, or kept by each client."""

import copy
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped
from fedprox.experiment import build
from fedprox.experiment import data as data_assembly
from fedprox.experiment import run as experiment
from fedprox.experiment.model import initial_model
from fedprox.federation.client_state import LocalArrays, PersonalModels, statistics_of
from fedprox.federation.messages import client_of, node_id, task_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.plan.plan import ClientTask, epoch_orders
from fedprox.plan.protocols import PaperProtocol
from fedprox.strategies.arrays import to_params, to_record
from fedprox.strategies.fedprox import FedDane, FedProx
from fedprox.strategies.updates import TrainReply, arrays_of, replace_arrays
from tests.settings import config_of

MU, LR, BATCH, ROUNDS = 0.3, 0.05, 4, 4
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def normalised(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a small model with batch norm after a convolution and before the last layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, input_shape[0])),
        nn.Conv2d(1, 3, kernel_size=3, stride=2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.BatchNorm2d(3, momentum=None),  # the mean over all batches, so the number of batches matters
        nn.Flatten(),
        nn.Linear(27, num_classes),
    )


def plain(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a model without buffers that no compiled solver accepts."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Tanh())


SETTINGS = (
    *("dataset=digits", "engine=local", "engine.num_threads=2", "protocol=paper", "evaluation=clients"),
    *("num_clients=5", "clients_per_round=3", "stragglers_fraction=0.5", "num_epochs=2", f"num_rounds={ROUNDS}"),
    *(f"batch_size={BATCH}", f"learning_rate={LR}", f"mu={MU}", "batch_statistics=local", "seed=3"),
)


def config(**changes) -> Config:
    return config_of(*SETTINGS, **{"model": {"_target_": f"{__name__}.normalised"}, **changes})


def run(folder: Path, **changes) -> dict[str, torch.Tensor]:
    """Return the last global model."""
    folder.mkdir()
    experiment.run(config(**changes), folder)
    return load_file(folder / "model.safetensors")


def is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS)


def by_hand(settings: Config) -> dict[str, torch.Tensor]:
    """Return the last global model of the same experiment, as a loop over rounds, clients and batches.

    Each client has its own running statistics, from the initial model and then from the client's last round.
    """
    data = data_assembly.divided_data(settings)
    model = initial_model(settings, Facts.of(data))
    plan = build.plan(settings, Facts.of(data), PaperProtocol())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    own = {client: {n: v for n, v in state.items() if is_statistic(n)} for client in range(5)}
    for round_num in range(1, ROUNDS + 1):
        replies, weights = [], []
        for task in plan.tasks(round_num):
            x, y = map(torch.from_numpy, data.client_examples(task.client))
            model.load_state_dict(state | own[task.client])
            train(model.train(), state, x, y, task)
            reply = {name: value.clone() for name, value in model.state_dict().items()}
            own[task.client] = {name: value for name, value in reply.items() if is_statistic(name)}
            replies.append(reply)
            weights.append(len(y))
        for name, value in state.items():
            mean = sum(n * reply[name].double() for n, reply in zip(weights, replies, strict=True)) / sum(weights)
            state[name] = (mean if value.is_floating_point() else mean.round()).to(value.dtype)
    return state


def train(model: nn.Module, start: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, task: ClientTask) -> None:
    """Do a client's steps of w <- w - lr * (grad F_B(w) + mu * (w - w^t))."""
    steps = 0
    for order in epoch_orders(task, len(y)):
        for batch in torch.split(torch.from_numpy(order), BATCH):
            if steps == task.num_steps:
                return
            steps += 1
            model.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            with torch.no_grad():
                for name, param in model.named_parameters():
                    param -= LR * (param.grad + MU * (param - start[name]))


def test_local_statistics_are_those_of_a_hand_written_loop(tmp_path):
    # Three of five clients in each of four rounds: some take part again and continue from their own statistics.
    ours, expected = run(tmp_path / "run"), by_hand(config())
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        # Four rounds of some dozen steps in float32, whose sums are taken in another order.
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
        assert ours[name].dtype == value.dtype


def test_local_and_averaged_runs_differ_only_in_the_statistics(tmp_path):
    # Batch norm normalises by the batch during training: no step reads running statistics.
    local, averaged = (run(tmp_path / name, batch_statistics=name) for name in ("local", "averaged"))
    assert local.keys() == averaged.keys()
    for name, value in local.items():
        assert torch.equal(value, averaged[name]) != is_statistic(name), name


def test_without_batch_norm_both_settings_give_the_same_bits(tmp_path, caplog):
    model = {"_target_": f"{__name__}.plain"}
    local, averaged = (run(tmp_path / name, batch_statistics=name, model=model) for name in ("local", "averaged"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "batch_statistics=local changes nothing: this model has no batch norm with running statistics"
    ]
    assert local.keys() == averaged.keys()
    assert all(torch.equal(value, averaged[name]) for name, value in local.items())


# Statistics on the server


@pytest.fixture
def start() -> ArrayRecord:
    act_as_server()
    return to_record(normalised((8, 8), 10).state_dict())


def reply(client: int, arrays: ArrayRecord) -> Message:
    message = Message(RecordDict({}), node_id(client), "train")
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


def train_reply(client: int, params: dict, personal: dict | None = None, *, has_crossed: bool = False) -> Message:
    message = Message(RecordDict({}), node_id(client), "train")
    made = TrainReply(message, params, {"num-examples": 1}, personal)
    return copy.deepcopy(made) if has_crossed else made


def test_a_clients_statistics_are_its_last_ones_or_the_initial_models(start):
    statistics = LocalArrays(start, statistics_of(start))
    trained = to_params(start)
    trained["2.running_mean"] += 5.0
    answer = reply(7, to_record(trained))
    assert client_of(answer) == 7
    statistics.keep(1, [answer], start)
    of_the_model = {f"{layer}.{name}" for layer in (2, 4) for name in STATISTICS}
    for client, mean in ((7, 5.0), (6, 0.0), (0, 0.0)):
        own = to_params(statistics.of(client))
        assert own.keys() == of_the_model
        assert own["2.running_mean"].tolist() == [mean] * 3
    statistics.keep(1, [reply(7, start)], start)
    assert to_params(statistics.of(7))["2.running_mean"].tolist() == [0.0] * 3


def test_a_client_that_fails_keeps_the_statistics_it_had(start):
    statistics = LocalArrays(start, statistics_of(start))
    failed = Message(Error(0), reply_to=Message(RecordDict({}), node_id(1), "train"))
    statistics.keep(1, [failed], start)
    assert to_params(statistics.of(1)).keys() == to_params(statistics.of(0)).keys()


@pytest.mark.parametrize("has_crossed", [False, True])  # a process: then its records have been made
def test_what_is_not_shared_is_kept_and_replaced_by_the_servers(start, has_crossed):
    local = LocalArrays(start, unshared=("6.weight",))
    trained = {name: value + 1 for name, value in to_params(start).items()}
    answer = train_reply(3, trained, has_crossed=has_crossed)
    local.keep(1, [answer], start)
    arrived, head = arrays_of(answer), to_params(start)["6.weight"].numpy()
    assert (arrived["6.weight"] == head).all()
    assert all((arrived[name] == trained[name].numpy()).all() for name in trained if name != "6.weight")
    assert torch.equal(to_params(local.of(3))["6.weight"], trained["6.weight"])
    assert len(local.of(4)) == 0  # it continues from the server's values


@pytest.mark.parametrize("has_crossed", [False, True])
def test_a_personal_model_is_taken_out_of_a_reply(start, has_crossed):
    models, sent = PersonalModels(start), to_params(start)
    own = {name: value + 2 for name, value in sent.items()}
    answer = train_reply(3, sent, own, has_crossed=has_crossed)
    replace_arrays(answer, {name: value.numpy() + 1 for name, value in sent.items()})  # as an attacker's
    models.keep(1, [answer], start)
    assert len(answer.content.array_records) == 1  # all that a strategy accepts
    assert all(torch.equal(value, own[name]) for name, value in to_params(models.of(3)).items())
    assert (arrays_of(answer)["6.bias"] == (sent["6.bias"] + 1).numpy()).all()
    assert models.of(4) is start


@pytest.mark.parametrize("policy", ["stop", "drop", "continue"])
def test_a_personal_model_that_is_not_finite_follows_the_policy(start, policy):
    models = PersonalModels(start, policy)
    wild = {name: value * float("inf") for name, value in to_params(start).items()}
    answer = train_reply(3, to_params(start), wild)
    if policy == "stop":
        with pytest.raises(RunStopped, match=r"^round 7: the personal model of client 3 is nan or infinite;"):
            models.keep(7, [answer], start)
    else:
        models.keep(7, [answer], start)
        assert set(models.state()) == ({3} if policy == "continue" else set())
    assert len(answer.content.array_records) == 1


def test_only_a_model_with_running_statistics_has_any(start):
    assert statistics_of(start)
    assert statistics_of(to_record(nn.BatchNorm1d(4).state_dict()))  # whose names have no layer
    for model in (plain((8, 8), 10), nn.GroupNorm(2, 4), nn.BatchNorm1d(4, track_running_stats=False)):
        assert not statistics_of(to_record(model.state_dict()))


class AskedForGradients:
    """Fake grid: keeps FedDANE's queries; no client replies."""

    def send_and_receive(self, messages):
        self.messages = messages
        return []


def test_a_message_carries_them_beside_the_shared_global_model(start):
    settings = config()
    data = data_assembly.divided_data(settings)
    plan = build.plan(settings, Facts.of(data), PaperProtocol())
    grid, dane = AskedForGradients(), PlannedStrategy(FedDane(), plan, LocalArrays(start, statistics_of(start)))
    assert dane.configure_train(1, start, ConfigRecord({"proximal-mu": MU}), grid) == []
    assert all("local" in message.content for message in grid.messages)  # they normalise in evaluation mode
    local = PlannedStrategy(FedProx(), plan, LocalArrays(start, statistics_of(start)))
    for planned, carries in ((local, True), (PlannedStrategy(FedProx(), plan), False)):
        messages = planned.configure_train(1, start, ConfigRecord({"proximal-mu": MU}), None)
        assert [task_of(message) for message in messages] == list(plan.tasks(1))
        for message in messages:
            assert ("local" in message.content) == carries
            assert message.content["arrays"] is messages[0].content["arrays"]  # decoded once for all
