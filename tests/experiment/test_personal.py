"""Personal models in whole runs: against loops by hand, beside untouched global models, and refused in one line."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.data.federated import FederatedData
from fedprox.experiment import build
from fedprox.experiment.data import divided_data
from fedprox.experiment.model import initial_model
from fedprox.plan.fine_tuning import FineTuning
from fedprox.plan.plan import ClientTask, epoch_orders
from fedprox.plan.protocols import PaperProtocol
from fedprox.runs.writer import PERSONAL
from fedprox.solvers.problem import LocalProblem, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver
from tests.settings import config_of

MU, LR, ROUNDS = 0.3, 0.05, 3
SETTINGS = (
    *("dataset=digits", "engine=local", "engine.num_threads=2", "protocol=paper", "partition=iid", "hold_out=0.4"),
    *("num_clients=6", "clients_per_round=3", "stragglers_fraction=0.5", "num_epochs=2", f"num_rounds={ROUNDS}"),
    *(f"learning_rate={LR}", f"mu={MU}", "seed=3"),
)
HEAD = ("3.weight", "3.bias")


@pytest.fixture
def run(fedprox, tmp_path) -> Callable[..., Path]:
    """Return a function that runs a command and returns its directory."""

    def call(*arguments: str, into: str = "run") -> Path:
        ended = fedprox(*SETTINGS, *arguments, f"hydra.run.dir={into}")
        assert ended.status == 0, ended.err
        return tmp_path / into

    return call


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as opened:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(opened)]


class ByHand:
    """The same experiment as a loop over rounds and clients, with the reference solver.

    Attributes:
        state: The global model.
        own: What each client that has trained keeps.
    """

    def __init__(self, *arguments: str) -> None:
        self.config: Config = config_of(*SETTINGS, *arguments)
        self.data: FederatedData = divided_data(self.config)
        model = initial_model(self.config, Facts.of(self.data))
        self.plan = build.plan(self.config, Facts.of(self.data), PaperProtocol())
        self.model, self.sgd = model, SgdSettings(LR, 10)
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.initial, self.own = dict(self.state), dict[int, Params]()

    def solve(self, task: ClientTask, anchor: Params, start: Params | None = None, mu: float = MU) -> Params:
        x, y = map(torch.from_numpy, self.data.client_examples(task.client))
        work = LocalWork(epoch_orders(task, len(y)), task.num_steps, mu)
        return ReferenceSolver(self.model, self.sgd).solve(LocalProblem(anchor, x, y, work, start=start)).params

    def average(self, models: list[tuple[int, Params]]) -> Params:
        total = sum(size for size, _ in models)
        means = {name: sum(size * model[name].double() for size, model in models) / total for name in self.state}
        return {name: mean.to(self.state[name].dtype) for name, mean in means.items()}

    def round(self, tasks: tuple[ClientTask, ...], solve: Callable[[ClientTask], Params]) -> None:
        self.state = self.average([(len(self.data.train[task.client]), solve(task)) for task in tasks])

    def accuracies(self, model: Callable[[int], Params]) -> list[float]:
        """Return the accuracy of a model of each client on its held-out examples."""
        found = []
        for client in range(6):
            x, y = map(torch.from_numpy, self.data.client_held_out(client))
            logits = torch.func.functional_call(self.model.eval(), model(client), (x,))
            found.append(float((logits.argmax(1) == y).double().mean()))
        return found

    def check(self, folder: Path, model: Callable[[int], Params]) -> None:
        """Compare a run's model, and its personal.csv and columns of the last round."""
        for name, value in load_file(folder / "model.safetensors").items():
            torch.testing.assert_close(value, self.state[name], rtol=1e-5, atol=1e-6)  # a dozen steps in float32
        table, last = rows(folder, "personal.csv"), rows(folder)[-1]
        own, sizes = self.accuracies(model), self.data.held_out.sizes
        assert [float(row["personal_accuracy"]) for row in table] == pytest.approx(own)
        expected = self.accuracies(lambda _: self.state)
        assert [float(row["global_accuracy"]) for row in table] == pytest.approx(expected)
        assert [int(row["num_examples"]) for row in table] == sizes.tolist()
        # Of six clients, the worst and the best tenth are one each.
        spread = [np.std(own), min(own), max(own)]
        values = [np.average(own, weights=sizes), np.mean(own), *spread, len(self.own) / 6]
        assert [float(last[name]) for name in PERSONAL] == pytest.approx(values)


def test_ditto_is_a_second_problem_beside_the_shared_one(run):
    hand = ByHand()
    for round_num in range(1, ROUNDS + 1):
        tasks, w_t = hand.plan.tasks(round_num), hand.state
        for task in tasks:
            hand.own[task.client] = hand.solve(task, w_t, hand.own.get(task.client, hand.initial), mu=2.0)
        hand.round(tasks, lambda task, w_t=w_t: hand.solve(task, w_t))
    assert 3 < len(hand.own) < 6  # some took part again, one never did
    hand.check(
        run("personalisation=ditto", "personalisation.weight=2"), lambda client: hand.own.get(client, hand.initial)
    )


NORM = tuple(f"2.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize(
    ("method", "local", "more"),
    [
        ("fedper", HEAD, ()),
        ("lg", ("1.weight", "1.bias"), ()),
        ("fedper", ("1.bias", "3.bias"), ("personalisation.names=['*.bias']",)),
        ("fedbn", NORM, ("model.batch_norm=true", "last_batch=keep")),
    ],
)
def test_what_is_local_never_leaves_its_client(run, method, local, more):
    hand = ByHand("model=mlp", *(each for each in more if each.startswith("model")))
    for round_num in range(1, ROUNDS + 1):
        tasks, w_t = hand.plan.tasks(round_num), hand.state
        found = {task: hand.solve(task, w_t | hand.own.get(task.client, {})) for task in tasks}
        hand.own |= {task.client: {name: w[name] for name in local} for task, w in found.items()}
        hand.round(tasks, lambda task, found=found: found[task] | {name: hand.initial[name] for name in local})
    folder = run("model=mlp", f"personalisation={method}", *more, "update=float32")
    hand.check(folder, lambda client: hand.state | hand.own.get(client, {}))
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], hand.initial[name]) == (name in local) for name in saved)
    # Only what is shared travels, four bytes a parameter, up from three clients a round and down to them.
    num_bytes = 3 * ROUNDS * sum(4 * value.numel() for name, value in saved.items() if name not in local)
    assert {rows(folder)[-1][name] for name in ("bytes_up", "bytes_down")} == {str(num_bytes)}


def test_fine_tuning_trains_the_global_model_further_and_changes_nothing_else(run):
    hand, plain = ByHand(), run(into="plain")
    tuned = run("personalisation=fine_tuning", "personalisation.epochs=3", "clients_per_round=3", into="tuned")
    assert (plain / "model.safetensors").read_bytes() == (tuned / "model.safetensors").read_bytes()
    hand.state = load_file(plain / "model.safetensors")
    plan = FineTuning(hand.data.train.sizes, 3, 10, seed=3)
    tasks = [plan.task(ROUNDS, client) for client in range(6)]
    assert {task.num_epochs for task in tasks} == {3}
    hand.own = {task.client: hand.solve(task, hand.state, mu=0.0) for task in tasks}
    hand.check(tuned, hand.own.__getitem__)


def dropping(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a model that draws random numbers; the shared problem's draws come first, and are its own."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, num_classes))


@pytest.mark.parametrize(
    ("arguments", "methods"), [((), ("ditto", "apfl")), ((f"model._target_={__name__}.dropping",), ("ditto",))]
)
def test_the_global_model_is_the_same_to_the_last_byte_whether_clients_have_their_own(run, arguments, methods):
    plain = run(*arguments, into="plain")
    for method in methods:
        own = run(*arguments, f"personalisation={method}", into=method)
        for file in ("model.safetensors", "clients.csv"):
            assert (plain / file).read_bytes() == (own / file).read_bytes()
        without = [{key: value for key, value in row.items() if key not in PERSONAL} for row in rows(own)]
        assert without == rows(plain)


def test_ditto_without_a_weight_and_apfl_without_the_global_model_are_local_training_byte_for_byte(run):
    local = run("personalisation=local", into="local")
    for arguments in (("ditto", "weight=0"), ("apfl", "alpha=1")):
        other = run(f"personalisation={arguments[0]}", f"personalisation.{arguments[1]}", into=arguments[0])
        assert (local / "personal.csv").read_bytes() == (other / "personal.csv").read_bytes()
        assert rows(local) == rows(other)


def test_heads_stay_exact_under_strategies_that_round_or_step_and_unseen_by_robust_rules(run):
    for strategy in ("_target_=flwr.serverapp.strategy.FedAdam", "_target_=flwr.serverapp.strategy.FedAvg"):
        folder = run("model=mlp", "personalisation=fedper", f"strategy.{strategy}", "mu=0", into=strategy[-7:])
        hand, saved = ByHand("model=mlp"), load_file(folder / "model.safetensors")
        assert all(torch.equal(saved[name].float(), hand.initial[name]) == (name in HEAD) for name in saved)
    # A median of three bodies; medians of heads would be no problem, but are not asked for either.
    folder = run("model=mlp", "personalisation=fedper", "strategy=fed_median", into="median")
    assert torch.equal(load_file(folder / "model.safetensors")["3.weight"], hand.initial["3.weight"])


def test_attackers_do_not_count(run):
    folder = run("personalisation=ditto", "attack=label_flip", "attack.fraction=0.5")
    malicious = {row["client"] for row in rows(folder, "clients.csv") if row["is_malicious"] == "True"}
    listed = {row["client"] for row in rows(folder, "personal.csv")}
    assert len(listed) == 3
    assert malicious
    assert not malicious & listed


MANY = ", ".join(f"{layer}.{name}" for layer in (1, 3) for name in ("weight", "bias"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("personalisation=fedper", "model=logistic"),
            "personalisation=fedper would keep every parameter at clients in model=logistic",
        ),
        (
            ("personalisation=fedrep", "model=logistic"),
            "take a model with several layers, such as model=mlp, or personalisation=local",
        ),
        (
            ("personalisation=lg", "model=logistic"),
            "personalisation=lg finds no parameter to keep at clients in model=logistic",
        ),
        (
            ("personalisation=fedbn", "model=mlp"),
            "take a model with batch norm, such as model=mlp_bn",
        ),
        (
            ("personalisation=lg", "model=mlp", "personalisation.names=[fc*]"),
            f"finds no parameter to keep at clients in model=mlp, which has {MANY}; name some of these",
        ),
        (("personalisation=ditto", "personalisation.weight=40"), "times learning_rate must be below 2, or personal"),
        (("personalisation=ditto", "personalisation.alpha=1"), "unknown setting 'personalisation.alpha'"),
        (("personalisation=ditto", "+personalisation.alpha=1"), "alpha=1.0 means nothing with personalisation=ditto"),
        (
            ("personalisation=ditto", "personalisation.max_bytes=15599"),  # six clients of 650 float32
            "would keep 2,600 bytes of each of 6 clients, 15,600 in all, more than personalisation.max_bytes=15,599",
        ),
        (
            ("personalisation=apfl", "sampling=proportional"),
            "train twice in a round; use sampling=uniform",
        ),
        (("personalisation=local", "batch_statistics=local"), "use batch_statistics=averaged"),
        (("personalisation=fedper", "model=mlp", "strategy=feddane"), "averages gradients of the whole model"),
        (
            ("personalisation=lg", "model=mlp", "evaluation=clients", "adaptive_mu.enabled=true"),
            "follows the global model's training loss, but with personalisation=lg no client uses that model",
        ),
        (
            ("personalisation=ditto", "hold_out=0"),
            "of dataset=digits has any with hold_out=0; raise hold_out",
        ),
        (("personalisation=ditto", "engine=deployment"), "but with engine=deployment they stay at their site"),
        (
            ("personalisation=fedper", "model=mlp", "update=partial", "update.names=['3.*']"),
            "names no trained parameter; the model has 1.weight, 1.bias",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(fedprox, tmp_path, arguments, line):
    settings = [each for each in SETTINGS if not ("engine=deployment" in arguments and each.startswith("engine"))]
    ended = fedprox(*settings, *arguments)
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    assert line in ended.err
    assert not (tmp_path / "run").exists()
