"""SCAFFOLD and FedDyn in whole runs, against loops by hand; what travels; and what is refused in one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedprox.config.compose import compose
from fedprox.experiment import build
from fedprox.experiment.data import divided_data
from fedprox.plan.plan import epoch_orders
from fedprox.solvers.gradients import full_gradients
from fedprox.solvers.problem import LocalProblem, LocalWork, SgdSettings
from fedprox.solvers.reference import ReferenceSolver
from fedprox.strategies.arrays import to_params

LR, ROUNDS = 0.05, 3
SETTINGS = (
    *("dataset=digits", "engine=local", "protocol=paper", "partition=iid", "num_clients=6", "clients_per_round=3"),
    *("stragglers_fraction=0.5", "num_epochs=2", f"num_rounds={ROUNDS}", f"learning_rate={LR}", "seed=3"),
)


@pytest.fixture
def run(fedprox, tmp_path) -> Callable[..., Path]:
    """Return a function that runs a command and returns its directory."""

    def call(*arguments: str, into: str = "run") -> Path:
        ended = fedprox(*SETTINGS, *arguments, f"hydra.run.dir={into}")
        assert ended.status == 0, ended.err
        return tmp_path / into

    return call


def by_hand(strategy: str, *arguments: str, option: int = 2, mu: float = 0.0) -> dict[str, torch.Tensor]:
    """Return the model of SCAFFOLD or FedDyn as a loop over rounds and clients, in float64 on the server."""
    config = compose((*SETTINGS, f"strategy={strategy}", *arguments))
    experiment, data = build.Experiment.of(config), divided_data(config)
    model = build.initial_model(config, experiment.facts)
    solver = ReferenceSolver(model, SgdSettings(LR, config.batch_size))
    w, sizes = to_params(experiment.arrays), experiment.facts.sizes
    zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in w.items()}
    of_server, of_client = dict(zeros), [dict(zeros) for _ in sizes]
    for round_num in range(1, ROUNDS + 1):
        tasks = experiment.strategy.plan.tasks(round_num)
        moved, weights, before = [], [], dict(of_server)
        for task in tasks:
            own, n_k = of_client[task.client], int(sizes[task.client])
            given = {name: before[name] - own[name] if strategy == "scaffold" else -own[name] for name in w}
            x, y = map(torch.from_numpy, data.client_examples(task.client))
            correction = {name: value.float() for name, value in given.items()}
            work = LocalWork(epoch_orders(task, n_k), task.num_steps, mu, correction=correction)
            params = solver.solve(LocalProblem(w, x, y, work)).params
            delta = {name: (params[name] - w[name]).double() for name in w}
            if strategy == "feddyn":
                new = {name: own[name] - mu * delta[name] for name in w}
            elif option == 1:
                new = full_gradients(model, [w], x, y)[0]
            else:  # c_k - c + (w^t - y) / (K eta)
                new = {name: -given[name] - delta[name] / (task.num_steps * LR) for name in w}
            for name in w:
                of_server[name] = of_server[name] + n_k / int(sizes.sum()) * (new[name].double() - own[name])
            of_client[task.client] = {name: value.double() for name, value in new.items()}
            moved.append(delta)
            weights.append(n_k)
        for name in w:
            step = sum(n_k * delta[name] for n_k, delta in zip(weights, moved, strict=True)) / sum(weights)
            step = step - of_server[name] / mu if strategy == "feddyn" else step
            w[name] = (w[name].double() + step).float()
    return w


CASES = {
    "SCAFFOLD, option I": ("scaffold", {"option": 1}, ("strategy.option=1",)),
    "SCAFFOLD, option II": ("scaffold", {}, ()),
    "FedDyn": ("feddyn", {"mu": 0.1}, ("mu=0.1",)),
}


@pytest.mark.parametrize(("strategy", "given", "arguments"), CASES.values(), ids=CASES)
def test_a_run_is_the_loop_of_the_paper(run, strategy, given, arguments):
    folder = run(f"strategy={strategy}", *arguments)
    found, expected = load_file(folder / "model.safetensors"), by_hand(strategy, *arguments, **given)
    start = by_hand_start()
    for name, value in expected.items():
        # The compiled solver rounds in another order: 1e-5 of how far the model has moved.
        scale = float((value - start[name]).abs().max())
        assert scale > 0.01
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 * scale)


def by_hand_start() -> dict[str, torch.Tensor]:
    return to_params(build.Experiment.of(compose(SETTINGS)).arrays)


def bytes_of(folder: Path) -> tuple[list[int], list[int]]:
    """Return the bytes up by client in round 1, and up and down of all rounds."""
    with (folder / "clients.csv").open(newline="") as file:
        of_clients = [int(row["bytes_up"]) for row in csv.DictReader(file) if row["round"] == "1"]
    with (folder / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return of_clients, [int(last["bytes_up"]), int(last["bytes_down"])]


def test_scaffold_sends_two_vectors_each_way_and_feddyn_one(run):
    model = 4 * (64 * 10 + 10)
    for strategy, num in (("scaffold", 2), ("feddyn", 1), ("fedprox", 1)):
        of_clients, of_all = bytes_of(run(f"strategy={strategy}", "update=float32", "mu=0.1", into=strategy))
        assert of_clients == [num * model] * 3
        assert of_all == [num * model * 3 * ROUNDS] * 2


def test_a_cosine_on_the_server_ends_where_it_says(run):
    # With the factor s_t = 1, 0.75 and 0.25 and beta = 0, the step of round t is s_t times the mean update.
    small = ("strategy=fedavgm", "strategy.server_momentum=0", "num_epochs=1")
    whole, scaled = run(*small, into="whole"), run(*small, "server_schedule.name=cosine", into="scaled")
    first = [list(csv.DictReader((folder / "metrics.csv").open()))[1]["test_loss"] for folder in (whole, scaled)]
    assert first[0] == first[1]
    plain = run("strategy=fedprox", "mu=0", "num_epochs=1", into="plain")
    assert (plain / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (plain / "model.safetensors").read_bytes() != (scaled / "model.safetensors").read_bytes()
    rounds = build.RoundSettings.of(compose((*SETTINGS, "server_schedule.name=cosine")))
    factors = [rounds.config(number)["server-learning-rate-factor"] for number in (1, 2, 3)]
    assert factors == pytest.approx([1.0, 0.75, 0.25])


def test_mlps_and_batch_norm_train_on_every_solver_alike(run):
    small = ("model=mlp_bn", "strategy=scaffold", "momentum=0.5", "mu=0.1")
    run(*small, into="norms")
    models = [
        load_file(run("model=mlp", "strategy=scaffold", f"solver={solver}", into=solver) / "model.safetensors")
        for solver in ("reference", "cohort")
    ]
    for name, value in models[0].items():
        assert models[1][name].numpy() == pytest.approx(value.numpy(), rel=1e-4, abs=1e-6)
    weights = load_file(Path("norms") / "model.safetensors")
    assert all(np.isfinite(value.numpy()).all() for value in weights.values())
    assert json.loads(Path("norms/run.json").read_text())["algorithm"] == "SCAFFOLD (mu = 0.1)"


# strategy -> (settings, the words that matter)
REFUSED = {
    "a schedule without a rate": (
        ("strategy=fedprox", "server_schedule.name=cosine"),
        ("server_schedule.name=cosine needs a server's learning rate", "strategy=FedProx", "use strategy=fedavgm"),
    ),
    "a schedule of FedNova": (("strategy=fednova", "server_schedule.name=cosine"), ("strategy=fednova does not have",)),
    "FedNova with steps that change signs": (
        ("strategy=fednova", "mu=40", "learning_rate=0.03"),
        ("mu times learning_rate must be below 1 with strategy=fednova", "got 40 times 0.03", "lower one"),
    ),
    "SCAFFOLD with steps of Adam": (
        ("strategy=scaffold", "optimizer=adam"),
        ("strategy=scaffold computes with the steps of SGD", "use strategy=fedprox"),
    ),
    "FedDyn without alpha": (("strategy=feddyn", "mu=0"), ("mu must be above 0 with strategy=feddyn", "set mu=0.01")),
    "FedDyn with adaptive mu": (
        ("strategy=feddyn", "adaptive_mu.enabled=true", "evaluation=clients"),
        ("adaptive_mu.enabled=true may lower mu to 0", "strategy=feddyn divides"),
    ),
    "clients drawn twice": (
        ("strategy=scaffold", "sampling=proportional"),
        ("strategy=scaffold does not go with sampling=proportional", "one vector of each client", "sampling=uniform"),
    ),
    "personal models": (
        ("strategy=feddyn", "personalisation=ditto"),
        ("strategy=feddyn does not go with personalisation=ditto", "use personalisation=none or fine_tuning"),
    ),
    "local statistics": (
        ("strategy=scaffold", "batch_statistics=local", "model=mlp_bn"),
        ("batch_statistics=local", "use batch_statistics=averaged"),
    ),
    "attacks on updates": (
        ("strategy=scaffold", "attack=sign_flip"),
        ("strategy=scaffold does not go with attack=", "label_flip"),
    ),
    "compression": (
        ("strategy=feddyn", "update=top_k"),
        ("strategy=feddyn does not go with a lossy update=", "use update=none or float32"),
    ),
    "privacy": (
        (
            *("strategy=scaffold", "privacy=client", "sampling=poisson", "privacy.clip=1", "privacy.delta=0.001"),
            "privacy.noise_multiplier=1",
        ),
        ("privacy=client replaces the mean of strategy=fedprox or strategy=fedavg", "got Scaffold"),
    ),
    "secure sums": (
        ("strategy=fednova", "secure_aggregation=masked"),
        ("secure_aggregation=masked gives the server one mean", "FedNova"),
    ),
    "a buffer": (
        ("strategy=scaffold", "arrival=buffered", "devices=lognormal"),
        ("arrival=buffered takes the step", "got strategy=Scaffold"),
    ),
    "scripts": (
        ("strategy=fednova", "client=script", "client.script=train.py", "num_clients=10"),
        ("strategy=fednova depends on the clients' steps of SGD", "client=script", "use strategy=fedprox"),
    ),
    "contributions": (
        ("strategy=scaffold", "contribution=shapley"),
        ("contribution=shapley needs a strategy whose model is the weighted mean",),
    ),
    "a server's rate of 0": (
        ("strategy=fedadam", "strategy.server_learning_rate=0"),
        ("strategy.server_learning_rate must be > 0, got 0",),
    ),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused_in_one_line_before_data_are_read(fedprox, tmp_path, arguments, words):
    (tmp_path / "train.py").write_text("")
    data = ("dataset=mnist", "data_dir=nowhere") if "client=script" not in arguments else ()
    ended = fedprox(*arguments, *data, "engine=local", "num_rounds=1")
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert [word for word in words if word not in ended.err] == [], ended.err


def test_vectors_that_need_too_much_memory_are_refused(fedprox):
    ended = fedprox(*SETTINGS, "strategy=scaffold", "personalisation.max_bytes=1000")
    says = "strategy=scaffold would keep 2,600 bytes of each of 6 clients, 15,600 in all, more than personalisation"
    assert (ended.status, says in ended.err) == (2, True), ended.err
