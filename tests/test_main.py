"""Runs from end to end through the command line, and their run directories."""

import csv
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.data.sources.digits import digits
from fedprox.data.sources.mnist import mnist
from fedprox.data.sources.synthetic import synthetic
from fedprox.experiment import build
from fedprox.experiment import data as data_assembly
from fedprox.plan.protocols import FlowerProtocol
from fedprox.runs.writer import CLIENTS, FEDERATION, METRICS

DIGITS = ("dataset=digits", "engine=local")
MNIST = ("dataset=mnist", "engine=local")
COLUMNS, FEDERATION_COLUMNS, CLIENT_COLUMNS = list(METRICS), list(FEDERATION), list(CLIENTS)
# A run between two others, so that the second one divides its data again instead of reusing them.
OTHER_DATA = ("dataset=digits", "engine=local", "partition=iid", "num_rounds=1", "clients_per_round=1")


@pytest.fixture
def run(fedprox, tmp_path):
    """Return a function that does one successful run and returns its directory."""

    def call(*arguments: str, into: str = "run") -> Path:
        ended = fedprox(*arguments, f"hydra.run.dir={into}")
        assert ended.status == 0, ended.err
        return tmp_path / into

    return call


def table(run_dir: Path, name: str) -> list[dict[str, str]]:
    with (run_dir / name).open() as file:
        return list(csv.DictReader(file))


def metrics(run_dir: Path) -> list[dict[str, str]]:
    return table(run_dir, "metrics.csv")


def untimed(run_dir: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "time_s"} for row in metrics(run_dir)]


def clients(run_dir: Path) -> list[dict[str, str]]:
    return table(run_dir, "clients.csv")


def cohorts(run_dir: Path) -> list[tuple[str, ...]]:
    """Return (round, client, is_straggler) in the order of the file."""
    return [(row["round"], row["client"], row["is_straggler"]) for row in clients(run_dir)]


def sizes(run_dir: Path) -> dict[str, str]:
    return {row["client"]: row["num_examples"] for row in clients(run_dir)}


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


# The run directory.


@pytest.mark.draws_curves
def test_the_run_directory_holds_the_documented_files_and_no_others(run):
    folder = run(*DIGITS, "num_rounds=2")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    ours = {"metrics.csv", "clients.csv", "run.json", "model.safetensors", "MODEL.md", "curves.png"}
    hydras = {"main.log", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
    assert files == ours | hydras | {"checkpoint/round_000002.safetensors"}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "curves.png").stat().st_size > 10_000  # which an empty figure has not


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_metrics_has_a_row_for_the_initial_model_and_one_per_round(run, num_rounds):
    rows = metrics(run(*DIGITS, f"num_rounds={num_rounds}"))
    assert list(rows[0]) == COLUMNS
    assert [int(row["round"]) for row in rows] == list(range(num_rounds + 1))
    assert (rows[0]["train_loss_cohort"], rows[0]["num_clients_counted"]) == ("", "0")
    assert all(0 < float(row["test_loss"]) < 5 and 0 <= float(row["test_accuracy"]) <= 1 for row in rows)
    times = [float(row["time_s"]) for row in rows]
    assert times == sorted(times)


def test_train_loss_and_drift_of_the_cohort_are_the_clients_means_weighted_by_their_examples(run):
    folder = run(*DIGITS, "num_rounds=2")
    assert list(clients(folder)[0]) == CLIENT_COLUMNS
    for round_num in (1, 2):
        rows = [row for row in clients(folder) if int(row["round"]) == round_num]
        weights = [int(row["num_examples"]) for row in rows]
        expected = np.average([float(row["train_loss"]) for row in rows], weights=weights)
        assert float(metrics(folder)[round_num]["train_loss_cohort"]) == pytest.approx(expected, rel=1e-12)
        expected = np.average([float(row["drift"]) for row in rows], weights=weights)
        assert float(metrics(folder)[round_num]["drift"]) == pytest.approx(expected, rel=1e-12)


def test_run_json_has_what_the_result_depends_on(run):
    facts = record(run(*DIGITS, "num_rounds=2", "mu=0.5", "seed=7", "+repeat_num=3"))
    assert (facts["status"], facts["seed"], facts["repetition"]) == ("finished", 7, 3)
    assert facts["settings"]["mu"] == 0.5
    assert facts["settings"]["dataset"] == {"_target_": "fedprox.data.sources.digits.digits"}
    assert "${" not in json.dumps(facts["settings"])  # references are resolved
    assert {"num_rounds=2", "mu=0.5", "seed=7", "+repeat_num=3"} <= set(facts["command"])
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert {"flwr", "ray", "numpy", "hydra-core"} <= set(facts["versions"])
    assert facts["hardware"]["num_cpus"] == os.cpu_count()
    assert len(facts["hardware"]["gpus"]) == torch.cuda.device_count()


def test_run_json_names_the_commit_and_whether_files_were_changed(run):
    commit = record(run(*DIGITS, "num_rounds=1"))["git_commit"]
    git = ["git", "-C", str(Path(__file__).parents[1])]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    if not head:
        pytest.skip("these files are not in a git checkout")
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    assert commit == head + ("-dirty" if changed else "")


def test_timings_add_up_and_peak_memory_is_that_of_a_process_with_torch(run):
    started = time.perf_counter()
    folder = run(*DIGITS, "num_rounds=3")
    elapsed = time.perf_counter() - started
    facts = record(folder)
    timings = facts["timings"]
    assert set(timings) == {"setup_s", "rounds_s", "total_s"}
    assert 0 < timings["setup_s"] + timings["rounds_s"] <= timings["total_s"] + 1e-3  # rounds_s may be rounded
    assert timings["total_s"] < elapsed
    assert timings["rounds_s"] >= float(metrics(folder)[-1]["time_s"])  # which is before the last model is measured
    assert 50e6 < facts["peak_memory_bytes"] < 50e9  # importing torch alone takes more than 50 MB


def test_the_saved_model_has_the_last_rows_accuracy_and_loss(run, data_dir):
    folder = run("dataset=mnist", "engine=local", "num_rounds=3")
    params, source = load_file(folder / "model.safetensors"), mnist(str(data_dir))
    inputs = torch.from_numpy(source.model_input(source.test_features)).flatten(1)
    logits = inputs @ params["1.weight"].T + params["1.bias"]
    labels = torch.from_numpy(source.test_labels)
    last = metrics(folder)[-1]
    # One image of the test set is the least that could differ: ties aside, none may.
    assert float(last["test_accuracy"]) == pytest.approx(float((logits.argmax(1) == labels).double().mean()), abs=1e-9)
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert float(last["test_loss"]) == pytest.approx(loss, rel=1e-4)  # a float32 mean here, exact sums there


# Numbers.


def test_mnist_begins_near_the_loss_of_guessing_and_ends_lower(run, data_dir):
    rows = metrics(run(*MNIST, "num_rounds=3"))
    # A guess costs ln 10 = 2.303; random weights of a logistic model cost a little more.
    assert 2.2 < float(rows[0]["test_loss"]) < 2.8
    assert float(rows[-1]["test_loss"]) < float(rows[0]["test_loss"]) - 0.2
    assert record(Path("run"))["data"].startswith("1000 clients")


def test_fedavg_and_fedprox_of_one_seed_have_the_same_cohorts_and_stragglers(run, data_dir):
    arguments = (*MNIST, "num_rounds=4", "stragglers_fraction=0.5")
    fedprox = run(*arguments, into="fedprox")
    fedavg = run("--config-name", "fedavg", *arguments, into="fedavg")
    assert cohorts(fedprox) == cohorts(fedavg)
    assert {straggler for _, _, straggler in cohorts(fedavg)} == {"True", "False"}
    assert metrics(fedprox)[0]["test_loss"] == metrics(fedavg)[0]["test_loss"]
    assert (record(fedprox)["algorithm"], record(fedavg)["algorithm"]) == ("FedProx (mu = 1)", "FedAvg")


def test_fedavg_counts_and_computes_only_clients_that_are_not_stragglers(run):
    folder = run("--config-name", "fedavg", *DIGITS, "num_rounds=4", "stragglers_fraction=0.5")
    for row in clients(folder):
        straggles = row["is_straggler"] == "True"
        assert (row["counted"], row["train_loss"] == "") == (str(not straggles), straggles)
        assert (row["num_steps"] == "0") == straggles
    for row in metrics(folder)[1:]:
        in_time = [c for c in clients(folder) if c["round"] == row["round"] and c["is_straggler"] == "False"]
        assert int(row["num_clients_counted"]) == len(in_time)
    assert record(folder)["settings"]["mu"] == 0


def test_fedprox_counts_all_clients(run):
    folder = run(*DIGITS, "num_rounds=4", "stragglers_fraction=0.5")
    assert {row["counted"] for row in clients(folder)} == {"True"}
    assert [row["num_clients_counted"] for row in metrics(folder)[1:]] == ["10"] * 4


def test_a_round_whose_whole_cohort_straggles_leaves_fedavgs_model_as_it_was(run):
    rows = untimed(run("--config-name", "fedavg", *DIGITS, "num_rounds=2", "stragglers_fraction=1"))
    assert [row["test_loss"] for row in rows] == [rows[0]["test_loss"]] * 3
    assert [(row["num_clients_counted"], row["train_loss_cohort"]) for row in rows[1:]] == [("0", "")] * 2


def test_without_stragglers_and_mu_fedprox_is_fedavg(run):
    arguments = (*DIGITS, "num_rounds=3", "stragglers_fraction=0", "mu=0")
    assert untimed(run(*arguments, into="a")) == untimed(run("--config-name", "fedavg", *arguments, into="b"))


def test_mu_changes_the_result(run):
    arguments = (*DIGITS, "num_rounds=2")
    without, with_mu = (untimed(run(*arguments, f"mu={mu}", into=f"mu{mu}")) for mu in (0, 1))
    assert without[0] == with_mu[0]
    assert without[1]["test_loss"] != with_mu[1]["test_loss"]


def test_the_same_command_gives_the_same_numbers(run):
    first = run(*DIGITS, "num_rounds=3", into="first")
    run(*OTHER_DATA, into="between")
    second = run(*DIGITS, "num_rounds=3", into="second")
    assert untimed(first) == untimed(second)
    assert clients(first) == clients(second)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_repetition_changes_cohorts_and_initial_model_but_not_the_partition(run):
    arguments = (*DIGITS, "num_rounds=6", "clients_per_round=30")
    zero = run(*arguments, "+repeat_num=0", into="zero")
    run(*OTHER_DATA, into="between")
    one = run(*arguments, "+repeat_num=1", into="one")
    assert cohorts(zero) != cohorts(one)
    assert metrics(zero)[0]["test_loss"] != metrics(one)[0]["test_loss"]
    both = sizes(zero).keys() & sizes(one).keys()
    assert len(both) > 20  # of 100 clients, 180 draws each reach most
    assert {client: sizes(zero)[client] for client in both} == {client: sizes(one)[client] for client in both}


STRATEGIES = {
    "FedAdam": [],
    "FedMedian": [],
    "Krum": ["+strategy.num_malicious_nodes=2"],
}


@pytest.mark.parametrize(("name", "arguments"), STRATEGIES.items(), ids=STRATEGIES)
def test_any_flower_strategy_runs_on_the_same_cohorts(run, name, arguments):
    target = f"strategy._target_=flwr.serverapp.strategy.{name}"
    theirs = run(*DIGITS, "num_rounds=3", target, *arguments, into=name)
    ours = run(*DIGITS, "num_rounds=3", "mu=0", into="ours")
    assert cohorts(theirs) == cohorts(ours)
    assert [row["num_clients_counted"] for row in metrics(theirs)] == ["0", "10", "10", "10"]
    first, last = metrics(theirs)[0], metrics(theirs)[-1]
    assert first["test_loss"] == metrics(ours)[0]["test_loss"]
    # The clients' work is the same in round 1, but strategies aggregate it differently.
    assert metrics(theirs)[1]["train_loss_cohort"] == metrics(ours)[1]["train_loss_cohort"]
    assert last["test_loss"] not in (first["test_loss"], metrics(ours)[-1]["test_loss"])
    called = {"FedAdam": "FedAdam (flwr)"}.get(name, name)  # there is one of our own
    assert (record(theirs)["algorithm"], record(theirs)["settings"]["mu"]) == (called, 0.0)


# Evaluation.


def test_evaluation_on_clients_adds_columns_and_changes_no_other_number(run):
    arguments = (*DIGITS, "num_rounds=3", "stragglers_fraction=0.5")
    more, less = run(*arguments, "evaluation=clients", into="clients"), run(*arguments, into="server")
    assert list(metrics(more)[0]) == COLUMNS + FEDERATION_COLUMNS
    assert clients(more) == clients(less)
    for row, same in zip(metrics(more), metrics(less), strict=True):
        assert row["test_accuracy"] == same["test_accuracy"]
        assert row["train_loss_cohort"] == same["train_loss_cohort"]
        # The same mean over the same examples; its float32 parts may be summed in other pieces.
        assert float(row["test_loss"]) == pytest.approx(float(same["test_loss"]), rel=1e-6)
    first, *trained = metrics(more)
    assert (first["gamma_mean"], first["gamma_max"]) == ("", "")
    for row in trained:
        assert 0 < float(row["gamma_mean"]) <= float(row["gamma_max"])
        assert float(row["dissimilarity_b"]) >= 1  # E ||g_k||^2 >= ||E g_k||^2


def test_details_are_added_on_request_and_change_no_other_number(run):
    arguments = (*DIGITS, "num_rounds=5", "evaluation=clients", "evaluation.every=2", "num_clients=50")
    more = run(*arguments, "evaluation.per_class=true", "evaluation.per_client=true", into="more")
    less = run(*arguments, into="less")
    spread = ["client_accuracy_std", "client_accuracy_worst", "client_accuracy_best"]
    columns = COLUMNS + FEDERATION_COLUMNS
    assert list(metrics(more)[0]) == columns + spread
    kept = [{name: row[name] for name in columns if name != "time_s"} for row in metrics(more)]
    assert kept == untimed(less)
    assert clients(more) == clients(less)
    assert not (less / "classes.csv").exists()
    labels = digits().test_labels
    rows = table(more, "classes.csv")
    assert [(row["round"], row["class"]) for row in rows] == [(t, str(k)) for t in "0245" for k in range(10)]
    for row in metrics(more):
        of_round = [each for each in rows if each["round"] == row["round"]]
        assert [int(each["num_examples"]) for each in of_round] == np.bincount(labels).tolist()
        num_correct = [float(each["accuracy"]) * int(each["num_examples"]) for each in of_round]
        assert sum(num_correct) / len(labels) == pytest.approx(float(row["test_accuracy"]), rel=1e-12)
        worst, best = float(row["client_accuracy_worst"]), float(row["client_accuracy_best"])
        assert 0 <= worst < best <= 1
        assert 0 < float(row["client_accuracy_std"]) <= (best - worst) / 2 + 1e-12
    final = record(more)["result"]["final"]
    assert [final[name] for name in spread] == [float(metrics(more)[-1][name]) for name in spread]


def test_the_training_loss_and_accuracy_are_those_of_the_saved_model_on_all_clients(run):
    arguments = ("engine=local", "num_rounds=2", "num_epochs=2", "evaluation=clients")
    folder = run("dataset=synthetic_1_1", *arguments)
    params, data, last = load_file(folder / "model.safetensors"), synthetic(30, 0), metrics(folder)[-1]
    for indices, loss, accuracy in ((data.train, "train_loss", "train_accuracy"), (data.held_out, "test_loss", "")):
        features = torch.from_numpy(data.examples.features[indices.indices]).double()
        labels = torch.from_numpy(data.examples.labels[indices.indices])
        logits = features @ params["1.weight"].double().T + params["1.bias"].double()
        # Logits in float32 there and in float64 here: 6e-8 per operation, 60 of them.
        expected = float(torch.nn.functional.cross_entropy(logits, labels))
        assert float(last[loss]) == pytest.approx(expected, rel=1e-5)
        found = float(last[accuracy or "test_accuracy"])
        assert found == pytest.approx(float((logits.argmax(1) == labels).double().mean()), abs=1e-3)


def test_feature_skew_changes_training_and_the_clients_metrics_but_not_the_test_set(run):
    arguments = (*DIGITS, "partition=iid", "num_clients=20", "num_rounds=1", "evaluation=clients")
    plain, skewed = (run(*arguments, f"feature_skew={name}", into=name) for name in ("none", "noise"))
    (first, trained), (skewed_first, skewed_trained) = metrics(plain), metrics(skewed)
    for name in ("test_loss", "test_accuracy"):
        assert first[name] == skewed_first[name]  # the same initial model on the same test set
    for name in ("train_loss", "gradient_variance"):
        assert first[name] != skewed_first[name]
    for name in ("train_loss_cohort", "test_loss", "gamma_mean"):
        assert trained[name] != skewed_trained[name]


def test_every_third_round_is_evaluated_and_the_last(run):
    seldom = run(*DIGITS, "num_rounds=7", "evaluation.every=3", into="seldom")
    always = run(*DIGITS, "num_rounds=7", into="always")
    assert [row["round"] for row in metrics(seldom)] == ["0", "3", "6", "7"]
    assert untimed(seldom) == [untimed(always)[round_num] for round_num in (0, 3, 6, 7)]
    assert clients(seldom) == clients(always)
    assert (seldom / "model.safetensors").read_bytes() == (always / "model.safetensors").read_bytes()
    assert record(seldom)["result"]["final"]["round"] == 7


def test_adaptive_mu_is_a_column_and_follows_the_training_loss(run):
    # A learning rate so high that the loss goes up and down.
    settings = ("adaptive_mu.enabled=true", "adaptive_mu.initial=0.2", "adaptive_mu.patience=2", "evaluation=clients")
    rows = metrics(run(*DIGITS, "num_clients=20", "num_rounds=8", "learning_rate=1", *settings))
    assert list(rows[0]) == [*COLUMNS, *FEDERATION_COLUMNS, "mu"]
    losses, mu = ([float(row[name]) for row in rows] for name in ("train_loss", "mu"))
    assert mu[:2] == [0.2, 0.2]
    # mu of a round follows from the loss after the one before.
    rises = [round_num for round_num in range(2, 9) if losses[round_num - 1] > losses[round_num - 2]]
    assert [round_num for round_num in range(2, 9) if mu[round_num] > mu[round_num - 1]] == rises
    assert 0 < len(rises) < 7


# Initial weights.


def test_from_zero_weights_the_first_loss_is_that_of_guessing(run):
    first = metrics(run(*DIGITS, "num_rounds=1", "model.init=zeros", "evaluation=clients"))[0]
    # All ten classes have the same logit, 0: -ln(1 / 10) for every example.
    assert float(first["test_loss"]) == pytest.approx(np.log(10), rel=1e-6)
    assert float(first["train_loss"]) == pytest.approx(np.log(10), rel=1e-6)


def test_a_run_can_start_from_another_runs_model(run):
    earlier = run(*DIGITS, "num_rounds=3", into="earlier")
    later = run(*DIGITS, "num_rounds=2", f"model.init={earlier / 'model.safetensors'}", into="later")
    last, first = metrics(earlier)[-1], metrics(later)[0]
    assert (first["round"], first["test_loss"], first["test_accuracy"]) == (
        "0",
        last["test_loss"],
        last["test_accuracy"],
    )
    assert metrics(later)[1]["test_loss"] != first["test_loss"]
    assert record(later)["settings"]["model"]["init"] == str(earlier / "model.safetensors")


# Data that come divided into clients.


def leaf_files(folder: Path, num_users: int = 6) -> Path:
    """Write a data set in LEAF's format: user k trains on k + 2 examples of three numbers and tests on one."""
    rng = np.random.default_rng(0)
    for part, extra in (("train", 2), ("test", 1)):
        users = {}
        for user in range(num_users):
            size = user + extra if part == "train" else 1
            users[f"u{user}"] = {"x": rng.normal(size=(size, 3)).tolist(), "y": rng.integers(2, size=size).tolist()}
        whole = {"users": [*users], "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}
        (folder / part).mkdir(parents=True)
        (folder / part / "data.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("setting", [(), ("num_clients=6",)])
def test_leaf_data_bring_their_own_number_of_clients(run, tmp_path, setting):
    path = leaf_files(tmp_path / "data")
    folder = run(
        "dataset=leaf", f"dataset.path={path}", "engine=local", "clients_per_round=6", "num_rounds=1", *setting
    )
    assert record(folder)["data"].startswith("6 clients with 27 training examples")
    assert {row["client"]: int(row["num_examples"]) for row in clients(folder)} == {str(k): k + 2 for k in range(6)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("protocol=authors", "dataset=synthetic_iid", "num_clients=12"),
        ("strategy=feddane", "dataset=digits"),
        ("sampling=proportional", "dataset=digits"),
        ("feature_skew=noise", "dataset=digits", "num_clients=20"),
    ],
    ids=["authors", "feddane", "proportional", "noise"],
)
def test_a_run_with_another_choice_is_repeatable_and_not_the_default_run(run, arguments):
    data = [argument for argument in arguments if argument.startswith(("dataset", "num_clients"))]
    common = ("engine=local", "num_rounds=2", "num_epochs=3", "stragglers_fraction=0.5")
    first, second = (run(*arguments, *common, into=name) for name in ("first", "second"))
    assert untimed(first) == untimed(second)
    assert clients(first) == clients(second)
    default = run(*data, *common, into="default")
    assert [row["test_loss"] for row in untimed(first)] != [row["test_loss"] for row in untimed(default)]


def test_the_setting_last_batch_reaches_the_plan_and_the_solver(run):
    # All ten clients in batches of 16: both leave n_k // 16 batches, of which a full epoch has all. A solver that did
    # not know would do the first of the short batches kept, the same with both.
    common = (*DIGITS, "num_clients=10", "num_rounds=1", "num_epochs=2", "batch_size=16")
    folders = [run(*common, f"last_batch={last_batch}", into=last_batch) for last_batch in ("drop", "merge")]
    for folder in folders:
        rows, settings = clients(folder), Config.of(record(folder)["settings"])
        assert any(int(row["num_examples"]) % 16 for row in rows)
        expected = [int(row["num_epochs"]) * max(1, int(row["num_examples"]) // 16) for row in rows]
        assert [int(row["num_steps"]) for row in rows] == expected
        plan = build.plan(settings, Facts.of(data_assembly.divided_data(settings)), FlowerProtocol())
        assert [task.num_steps for task in plan.tasks(1)] == expected
    assert untimed(folders[0]) != untimed(folders[1])


# Sweeps.


def test_a_sweep_has_a_run_per_job_with_the_numbers_of_a_single_run(fedprox, tmp_path, run):
    assert fedprox("--multirun", *DIGITS, "num_rounds=2", "mu=0,1", "seed=0,1").status == 0
    jobs = [record(tmp_path / "sweep" / job)["settings"] for job in "0123"]
    assert [(job["mu"], job["seed"]) for job in jobs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    alone = run(*DIGITS, "num_rounds=2", "mu=1", "seed=1")
    assert untimed(tmp_path / "sweep" / "3") == untimed(alone)
    assert clients(tmp_path / "sweep" / "3") == clients(alone)


# Signals.


@pytest.fixture
def started(tmp_path, environment):
    """Start an endless run as a process and return it once five rounds are on disk; it is ended in any case."""
    command = [sys.executable, "-m", "fedprox.main", *DIGITS, "num_rounds=1000000", "hydra.run.dir=run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    file, deadline = tmp_path / "run" / "metrics.csv", time.monotonic() + 600
    while not file.exists() or file.read_text().count("\n") < 6:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def assert_rows_are_complete(run_dir: Path) -> None:
    rows = metrics(run_dir)
    assert len(rows) >= 5
    assert [int(row["round"]) for row in rows] == list(range(len(rows)))
    assert all(row["time_s"] and None not in row for row in rows)
    per_round = [sum(row["round"] == str(number) for row in clients(run_dir)) for number in range(1, len(rows))]
    assert per_round == [10] * (len(rows) - 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_one_line_and_keeps_the_rows(started, tmp_path, number, status):
    started.send_signal(number)
    _, err = started.communicate(timeout=250)
    assert started.returncode == status
    assert err.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in err
    facts = record(tmp_path / "run")
    assert facts["status"] == "interrupted"
    assert_rows_are_complete(tmp_path / "run")
    assert facts["result"]["final"]["round"] == int(metrics(tmp_path / "run")[-1]["round"])


def test_sigterm_while_ray_starts_ends_with_143_and_one_line(tmp_path, environment):
    arguments = (*DIGITS, "engine=ray", "hydra.run.dir=run")
    command = [sys.executable, "-m", "fedprox.main", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes) as process:
        assert any("starting Ray" in line for line in process.stdout)
        time.sleep(0.5)  # Ray needs several seconds
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 143
    assert [line.partition(";")[0] for line in err.splitlines()] == ["interrupted"]


# Output.


def test_progress_is_plain_lines_without_a_terminal(fedprox, tmp_path):
    ended = fedprox(*DIGITS, "num_rounds=3", "hydra.run.dir=run")
    assert ended.status == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert [line.partition("round ")[2][:3] for line in lines if ": accuracy" in line] == ["0/3", "3/3"]
    final, best = (record(tmp_path / "run")["result"][row] for row in ("final", "best"))
    expected = f"accuracy {final['test_accuracy']:.4f} after round 3, best {best['test_accuracy']:.4f} in round "
    assert lines[-1].endswith(f"{expected}{best['round']}; results: run")
    assert "\r" not in ended.out
    assert "\x1b" not in ended.out


def test_help_lists_the_groups_with_their_choices_and_the_settings_with_their_defaults(fedprox):
    ended = fedprox("--help")
    assert (ended.status, ended.err) == (0, "")
    text = " ".join(ended.out.split())
    for group, default in {"dataset": "mnist", "engine": "ray", "experiment": "null", "protocol": "flower"}.items():
        names = sorted(file.stem for file in (Path(__file__).parents[1] / "conf" / group).glob("*.yaml"))
        assert f"({', '.join(names)})" in text.partition(f" {group}={default} ")[2]
    assert "num_rounds=100 Rounds of training. (an integer >= 1 and below 2^32)" in text


def test_version_is_the_programs_own(fedprox):
    ended = fedprox("--version")
    assert (ended.status, ended.out, ended.err) == (0, f"fedprox {version('fedprox')}\n", "")


SAYS_WHAT_IT_LOADED = """
import json, sys
from fedprox.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    finally:
        print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def loaded(tmp_path, environment):
    """Return a function that runs commands in a process of their own: the libraries they imported, and their lines."""

    def call(*commands: tuple[str, ...]) -> tuple[set[str], list[str]]:
        command = [sys.executable, "-c", SAYS_WHAT_IT_LOADED, json.dumps(commands)]
        ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600)
        lines = ended.stdout.splitlines()
        loaded = [set(line.split()) for line in lines if line.startswith("loaded ")]
        assert len(loaded) == len(commands), ended.stderr
        return loaded[-1], [line for line in lines if not line.startswith("loaded ")]

    return call


HEAVY = {"torch", "flwr", "numba", "pandas", "matplotlib", "ray", "torchvision", "sklearn", "scipy", "joblib"}


def test_what_hydra_can_answer_imports_no_large_library(loaded):
    libraries, _ = loaded(("--help",), ("mu",), ("mu=large",), ("dataset=none",), ("--config-name", "no"))
    assert "hydra" in libraries
    assert not libraries & HEAVY


def test_a_run_imports_only_what_it_uses_and_its_directory_is_below_the_working_directory(loaded, data_dir, tmp_path):
    used, lines = loaded((*MNIST, "num_rounds=1"))
    assert {"torch", "flwr", "numba", "matplotlib"} <= used
    assert not used & {"ray", "sklearn", "pandas", "torchvision", "joblib"}
    (found,) = tmp_path.glob("outputs/*/*/run.json")
    assert lines[-1].endswith(f"results: {found.parent.relative_to(tmp_path)}")
