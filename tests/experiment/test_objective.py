"""Other losses, optimisers, metrics and solvers by the command, and what does not go with them."""

import csv
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import mean_absolute_error, r2_score

from fedprox.config.compose import compose
from fedprox.experiment.objective import optimizer, sgd_settings
from fedprox.report.figures import comparison
from fedprox.report.summary import read_runs, readable, summarise
from fedprox.solvers.losses import Focal

DIGITS = (
    "dataset=digits",
    "num_clients=6",
    "partition=dirichlet",
    "clients_per_round=3",
    "num_rounds=3",
    "engine=local",
)
OWN = ("dataset=custom", "num_clients=6", "partition=iid", "clients_per_round=3", "num_rounds=3", "engine=local")
MINE = '''
import numpy as np
import torch
from torch.nn import functional

from fedprox.data.federated import LabelledData


def numbers(task="classification"):
    """y = A x + noise; with tags whether y > 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype("float32")
    y = x @ np.array([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]]) + 0.1 * rng.normal(size=(400, 2))
    y = y > 0 if task == "multilabel" else y
    return LabelledData(x[100:], y[100:], x[:100], y[:100], num_classes=2, mean=0.0, std=1.0, task=task)


def vector(outputs, labels):
    return functional.cross_entropy(outputs, labels, reduction="none")


def undefined(outputs, labels):
    return functional.cross_entropy(outputs, labels) * float("nan")


def constant(outputs, labels):
    return torch.tensor(1.0)


def margin(outputs, labels, weight=1.0):
    return weight * functional.multi_margin_loss(outputs, labels)


margin.task = "classification"


def raises(labels, predictions):
    raise ValueError("no")


class Walk(torch.optim.Optimizer):
    """Moves by the sign of the gradient."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"] * param.grad.sign())


class Nothing:
    is_concurrent = False
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours.py").write_text(MINE)


def rows(folder: str) -> list[dict[str, float | None]]:
    with Path(folder, "metrics.csv").open() as file:
        return [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]


def test_focal_loss_adam_and_clipping_are_what_the_command_says():
    sgd = sgd_settings(compose([*DIGITS, "loss=focal", "loss.gamma=1", "optimizer=adam", "max_grad_norm=1.0"]))
    assert (sgd.loss, sgd.max_grad_norm) == (Focal(1.0), 1.0)
    (group,) = sgd.optimizer([torch.nn.Parameter(torch.zeros(2))], 0.5).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.9, 0.999), 0.001)
    assert optimizer(compose(list(DIGITS))) is None


def test_regression_has_loss_and_metrics_of_scikit_learn_but_no_accuracy(fedprox, mine):
    ended = fedprox(
        *OWN,
        "dataset._target_=ours.numbers",
        "loss=mse",
        "metrics=regression",
        "evaluation=clients",
        "mu=0",
        "hydra.run.dir=r",
    )
    assert ended.status == 0, ended.err
    first, *_, last = rows("r")
    assert {row["test_accuracy"] for row in (first, last)} == {row["train_accuracy"] for row in (first, last)} == {None}
    assert last["test_loss"] < 0.2 * first["test_loss"]
    assert last["test_r2"] > 0.8 > first["test_r2"]
    # The best round is the one of the smallest loss.
    assert f"best {last['test_loss']:.4f} in round 3; results" in Path("r/main.log").read_text()
    table = readable(summarise(read_runs(["r"]), last=1), last=1)
    assert table["loss (last 1)"].tolist() == [f"{last['test_loss']:.3f}"]
    assert [name for name in table.columns if "accuracy" in name] == []
    assert len(comparison(read_runs(["r"])).axes) == 1  # losses alone


def test_metrics_are_those_of_the_final_models_predictions(fedprox, mine):
    assert (
        fedprox(*OWN, "dataset._target_=ours.numbers", "loss=mse", "metrics=regression", "hydra.run.dir=r").status == 0
    )
    weights = load_file("r/model.safetensors")
    data = importlib.import_module("ours").numbers("regression")
    predicted = data.test_features @ weights["1.weight"].T + weights["1.bias"]
    last = rows("r")[-1]
    assert last["test_mae"] == pytest.approx(mean_absolute_error(data.test_labels, predicted), rel=1e-5)
    assert last["test_r2"] == pytest.approx(r2_score(data.test_labels, predicted), rel=1e-5)
    assert last["test_loss"] == pytest.approx(np.square(data.test_labels - predicted).mean(), rel=1e-5)


def test_multilabel_counts_examples_whose_labels_are_all_right(fedprox, mine):
    command = (*OWN, "dataset._target_=ours.numbers", "loss=bce", "metrics=multilabel", "learning_rate=0.5")
    assert fedprox(*command, "evaluation.per_client=true", "hydra.run.dir=r").status == 0
    first, *_, last = rows("r")
    assert last["test_accuracy"] > 0.5 > first["test_accuracy"]
    assert last["test_hamming_loss"] <= 1 - last["test_accuracy"] <= 2 * last["test_hamming_loss"]  # of two labels


def test_a_users_loss_optimiser_and_metrics_run_and_resume_to_the_same_bytes(fedprox, mine):
    own = (
        *("loss=custom", "loss._target_=ours.margin", "+loss.weight=2.0", "optimizer=custom"),
        *("optimizer._target_=ours.Walk", "weight_decay=0", "learning_rate=0.001", "checkpoint.every=1"),
        *(
            "metrics=classification",
            "+metrics.auc._target_=sklearn.metrics.roc_auc_score",
            "+metrics.auc.multi_class=ovr",
        ),
    )
    assert fedprox(*DIGITS, *own, "hydra.run.dir=whole").status == 0
    assert fedprox(*DIGITS, *own, "num_rounds=2", "hydra.run.dir=cut").status == 0
    ended = fedprox("resume=cut", "num_rounds=3", *own)
    assert ended.status == 0, ended.err
    assert Path("whole/model.safetensors").read_bytes() == Path("cut/model.safetensors").read_bytes()
    last = rows("whole")[-1]
    assert {name: rows("cut")[-1][name] for name in last if name != "time_s"} == {
        name: value for name, value in last.items() if name != "time_s"
    }
    assert 0.5 < last["test_auc"] <= 1
    assert last["test_balanced_accuracy"] > 0.3


def test_a_solver_of_ones_own_solves_the_clients_problems(fedprox, mine):
    shutil.copy(Path(__file__).parents[2] / "docs" / "examples" / "own_solver.py", "own_solver.py")
    own = ("solver=custom", "solver._target_=own_solver.FunctionalSolver")
    assert fedprox(*DIGITS, *own, "hydra.run.dir=own").status == 0
    assert fedprox(*DIGITS, "solver=reference", "hydra.run.dir=reference").status == 0
    for one, other in zip(rows("own"), rows("reference"), strict=True):
        assert one["test_loss"] == pytest.approx(other["test_loss"], rel=1e-5)
    asks = {
        "momentum=0.5": "momentum",
        "optimizer=adam": "optimizer",
        "max_grad_norm=1": "max_grad_norm",
        "strategy=scaffold": "correction",
        "strategy=feddane": "correction",
        "personalisation=ditto": "start",
        "schedule.name=cosine schedule.step=epoch": "epoch_factors",
    }
    for setting, name in asks.items():
        ended = fedprox(*DIGITS, *own, *setting.split())
        assert ended.status == 2
        assert f"FunctionalSolver does not say that it supports {name}, which " in ended.err.splitlines()[-1]
    assert fedprox(*DIGITS, *own, "loss=focal").status == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["loss=custom", "loss._target_=ours.vector"],
            ["mean loss of a batch", "shape (3,)", "losses.mean()"],
        ),
        (["loss=custom", "loss._target_=ours.undefined"], ["loss._target_=ours.undefined gives nan"]),
        (["loss=custom", "loss._target_=ours.constant"], ["which does not depend on them"]),
        (
            ["loss=custom", "loss._target_=ours.raises"],
            ["failed for outputs of shape (3, 10)", "ValueError: no"],
        ),
        (["loss=mse"], ["loss=SquaredError is for regression", "for classification", "use loss=cross_entropy"]),
        (["metrics=regression"], ["metrics.mae measures numbers", "the labels of the data are classes"]),
        (["loss.class_weights=[1,2]"], ["class_weights must have a factor for each of 10 classes, got 2"]),
        (["optimizer=custom", "optimizer._target_=torch.optim.LBFGS", "weight_decay=0"], ["LBFGS needs a closure"]),
        (["optimizer=adam", "momentum=0.9"], ["momentum must be 0 with optimizer._target_=torch.optim.Adam"]),
        (["optimizer=adam", "+optimizer.weight_decay=1"], ["optimizer.weight_decay is the setting weight_decay"]),
        (
            ["optimizer=custom", "optimizer._target_=ours.Walk"],
            ["weight_decay must be 0 with", "add weight_decay=0"],
        ),
        (["optimizer=custom", "optimizer._target_=ours.raises"], ["must accept lr"]),
        (
            ["+metrics.mine._target_=ours.raises"],
            ["metrics.mine failed with ValueError: no (ours.py"],
        ),
        (
            ["+metrics.mine._target_=ours.nowhere"],
            ["metrics.mine._target_=ours.nowhere cannot be loaded"],
        ),
        (["solver=custom", "solver._target_=ours.Nothing"], ["ours.Nothing must have takes_images"]),
        (["personalisation=apfl", "optimizer=adam"], ["personalisation=apfl scales the steps of SGD"]),
    ],
)
def test_what_cannot_be_is_one_line(fedprox, mine, given, says):
    ended = fedprox(*DIGITS, *given)
    line = ended.err.splitlines()[-1]
    assert ended.status == 2, ended.err
    assert [words for words in says if words not in line] == [], line


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["loss=mse", "partition=dirichlet"], "partition=dirichlet divides examples by their classes"),
        (["loss=mse", "evaluation.per_class=true"], "evaluation.per_class=true is for classes"),
        (["loss=mse", "evaluation.per_client=true"], "evaluation.per_client=true is for classes"),
        (["loss=bce", "attack=label_flip"], "is for classes, but loss=BinaryCrossEntropy is for multilabel"),
        (["loss=mse", "personalisation=ditto"], "personalisation=ditto is for classes"),
        (["loss=cross_entropy"], "labels must have one axis"),
    ],
)
def test_numbers_and_tags_are_refused_where_classes_are_needed(fedprox, mine, given, says):
    ended = fedprox(*OWN, "dataset._target_=ours.numbers", *given)
    assert ended.status == 2, ended.err
    assert says in ended.err.splitlines()[-1]
