"""Runs on sites, measured at the clients, and refusals by name; on Ray: tests/equivalence/test_engines.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import MessageType

from fedprox.data.sources.sites import sites
from fedprox.engines.local import LocalGrid
from fedprox.experiment import build
from fedprox.experiment.model import initial_model
from fedprox.federation.messages import TaskMessage
from fedprox.plan.plan import ClientTask
from tests.data.sources.site_folders import FORMATS, NAMES, write_sites
from tests.settings import config_of

RUN = ("dataset=sites", "engine=local", "num_rounds=2", "num_epochs=2", "evaluation.per_client=true")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def table(file: Path) -> list[list[str]]:
    """Return a table without its column time_s."""
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    return [[value for name, value in zip(header, row, strict=True) if name != "time_s"] for row in (header, *rows)]


def test_the_documented_command_runs_on_three_sites(fedprox, tmp_path):
    write_sites(tmp_path / "sites", "image_folder")
    command = ("dataset=sites", "dataset.format=image_folder", "dataset.path=sites/", "engine=local")
    ended = fedprox(*command, "num_rounds=1", "hydra.run.dir=run")
    assert ended.status == 0, ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["classes"] == ["0", "1", "2"]
    assert record["data"].startswith("3 clients with")
    assert record["result"]["final"]["test_accuracy"] > 0.6  # the classes differ in brightness
    assert {row[1] for row in table(tmp_path / "run" / "clients.csv")[1:]} == {"0", "1", "2"}


@pytest.mark.parametrize("form", FORMATS)
def test_the_clients_measure_what_one_process_would_measure_on_all_held_out_examples(tmp_path, monkeypatch, form):
    path = str(write_sites(tmp_path / "sites", form))
    settings = config_of(*RUN, f"dataset.format={form}", f"dataset.path={path}")
    at_clients = build.Experiment.of(settings)
    data = sites(form, path, seed=settings.seed)
    measure = build.evaluation(settings, "cpu", data, initial_model(settings, at_clients.facts))
    for one, other in ((at_clients.evaluate(0, at_clients.arrays), measure(0, at_clients.arrays)),):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.accuracy == pytest.approx(other.accuracy, rel=1e-12)
        assert one.spread == other.spread


def test_a_clients_own_measurement_is_that_of_its_held_out_examples(tmp_path):
    path = write_sites(tmp_path / "sites", "npz")
    settings = config_of(*RUN, "dataset.format=npz", f"dataset.path={path}")
    made = build.Experiment.of(settings)
    message = TaskMessage({"arrays": made.arrays}, ClientTask(2, 1, 0, False, ()), MessageType.EVALUATE)
    (reply,) = made.grid.send_and_receive([message])
    metrics = dict(reply.content["metrics"])
    assert metrics["num-examples"] == 10
    data = sites("npz", str(path), seed=settings.seed)
    weight, bias = (made.arrays[name].numpy().astype(np.float64) for name in ("1.weight", "1.bias"))
    x, y = data.client_held_out(2)
    logits = x.reshape(len(x), -1) @ weight.T + bias
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["accuracy"] == (logits.argmax(axis=1) == y).mean()


def test_a_late_evaluation_is_late(tmp_path):
    path = write_sites(tmp_path / "sites", "npz")
    made = build.Experiment.of(config_of(*RUN, "dataset.format=npz", f"dataset.path={path}"))
    assert isinstance(made.grid, LocalGrid)
    message = TaskMessage({"arrays": made.arrays}, ClientTask(0, 1, 0, False, ()), MessageType.EVALUATE)
    (reply,) = made.grid.send_and_receive([message], timeout=-1.0)
    assert reply.has_error()


REFUSED = {
    "all gradients": (["evaluation=clients"], ["evaluation=clients compares", "dataset=sites", "evaluation=server"]),
    "classes": (["evaluation.per_class=true"], ["evaluation.per_class=true", "examples stay at their site"]),
    "skew": (["feature_skew=noise"], ["feature_skew changes", "dataset=sites"]),
    "more clients": (["num_clients=4"], ["num_clients must be the data set's own 3, got 4"]),
    "cohort": (["clients_per_round=4"], ["clients_per_round must be at most the data set's 3 clients, got 4"]),
    "partition": (["partition=iid"], ["dataset=sites comes divided into clients", "leave partition= out"]),
    "a class": (["dataset.classes=[0,1]"], ["site hospital_a: it has the unknown class 2"]),
    "nothing held out": (["hold_out=0"], ["site hospital_b: it has no held-out example", "hold_out"]),
    "format": (["dataset.format=npz"], ["site hospital_a: ", "must hold train.npz"]),
}


@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_settings_that_do_not_fit_are_refused_in_one_line(fedprox, tmp_path, arguments, says):
    write_sites(tmp_path / "sites", "csv")
    ended = fedprox(*RUN, "dataset.format=csv", f"dataset.path={tmp_path}/sites", *arguments)
    assert ended.status == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert [words for words in says if words not in ended.err] == [], ended.err


def test_sites_of_different_form_are_refused_by_name(fedprox, tmp_path):
    write_sites(tmp_path / "sites", "csv")
    shutil.rmtree(tmp_path / "sites" / NAMES[2])
    (tmp_path / "sites" / NAMES[2]).mkdir()
    rows = "x,label\n" + "1,0\n2,1\n" * 10
    (tmp_path / "sites" / NAMES[2] / "train.csv").write_text(rows)
    ended = fedprox(*RUN, "dataset.format=csv", f"dataset.path={tmp_path}/sites")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "site hospital_c: its examples have the shape (1,), but those of hospital_a (16,)" in ended.err
