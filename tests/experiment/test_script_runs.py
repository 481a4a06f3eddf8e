"""Runs whose clients are processes of a training script (client=script).

Their engines and resumption are in tests/equivalence/test_engines.py.
"""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedprox.errors import UserError
from fedprox.experiment.build import check_settings
from fedprox.experiment.scripts import UNUSED
from fedprox.report.__main__ import main as report
from tests.settings import config_of

# Client 1 fails in round 2 if the file "fails" lies beside it.
SCRIPT = """
import pathlib, sys
import torch
from fedprox import federated

task = federated.init()
model = torch.nn.Linear(3, 2)
x, y = torch.rand(20 + task.client, 3), torch.randint(0, 2, (20 + task.client,))

def test(model):
    loss = torch.nn.functional.cross_entropy(model(x), y)
    return {"loss": loss, "accuracy": (model(x).argmax(1) == y).float().mean(), "num_examples": len(y)}

if "--lr" not in sys.argv:
    sys.exit("give --lr")
while federated.is_running():
    federated.receive(model, evaluate=None if "--blind" in sys.argv else test)
    if task.client == 1 and task.round_num == 2 and pathlib.Path(__file__).with_name("fails").exists():
        raise ValueError("no such column")
    optimizer = torch.optim.SGD(model.parameters(), lr=float(sys.argv[sys.argv.index("--lr") + 1]))
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    federated.send(model, num_examples=len(y), metrics={"train_loss": loss, "f1": task.client / 2})
"""
COMMAND = ("client=script", "client.script=train.py", "client.args=--lr 0.1", "num_clients=2", "mu=0.5")


@pytest.fixture
def script(tmp_path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path / "train.py"


@pytest.fixture
def run(fedprox, script, tmp_path):
    """Return what runs a command and returns its run directory."""

    def run(name: str, *more: str) -> Path:
        ended = fedprox(*COMMAND, "engine=local", *more, f"hydra.run.dir={name}")
        assert ended.status == 0, ended.err
        return tmp_path / name

    return run


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(opened)]


def content(run_dir: Path) -> tuple:
    tables = [rows(run_dir / name) for name in ("metrics.csv", "clients.csv")]
    return *tables, (run_dir / "model.safetensors").read_bytes()


def test_tables_and_record_hold_what_scripts_report_and_no_other_script_resumes_the_run(run, fedprox, script):
    run_dir = run("run", "num_rounds=2", "evaluation.per_client=true")
    clients, metrics = rows(run_dir / "clients.csv"), rows(run_dir / "metrics.csv")
    assert {(row["client"], row["num_examples"], row["f1"]) for row in clients} == {
        *[("0", "20", "0.0"), ("1", "21", "0.5")]
    }
    mean = 21 * 0.5 / 41  # weighted by examples, like the model
    assert metrics[0]["f1"] == ""
    assert [float(row["f1"]) for row in metrics[1:]] == pytest.approx([mean] * 2)
    assert all(float(row["test_loss"]) > 0 and 0 <= float(row["test_accuracy"]) <= 1 for row in metrics)
    assert all(row["client_accuracy_worst"] for row in metrics)
    assert all(float(row["drift"]) > 0 and float(row["train_loss_cohort"]) > 0 for row in metrics[1:])
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["name"], record["script"], record["status"]) == ("train.py", "train.py", "finished")
    assert record["data"] == "2 clients, whose examples only their script knows"
    assert record["settings"]["client"]["args"] == "--lr 0.1"
    script.write_text(SCRIPT + "\n")
    ended = fedprox("resume=run", "client.script=train.py", "num_rounds=3")
    assert ended.status == 2
    assert "run had another script: its text is not the same" in ended.err


def test_a_run_without_measurements_and_with_a_client_dropped_has_empty_cells(run, script, in_this_process):
    script.with_name("fails").touch()
    run_dir = run("run", "num_rounds=2", "client.args=--lr 0.1 --blind", "on_client_error=drop")
    assert [(row["test_loss"], row["test_accuracy"]) for row in rows(run_dir / "metrics.csv")] == [("", "")] * 3
    (dropped,) = [row for row in rows(run_dir / "clients.csv") if row["counted"] == "False"]
    assert (dropped["round"], dropped["client"]) == ("2", "1")
    assert {dropped[name] for name in ("num_examples", "train_loss", "drift", "f1")} == {""}
    assert (run_dir / "curves.png").exists()
    ended = in_this_process(report, [str(run_dir), "--out", str(run_dir / "report.png")])
    assert ended.status == 2
    assert ended.err.endswith("wait for the first and give its script an evaluate= function\n")


def test_the_first_model_may_be_a_file_of_the_same_model_and_no_other(run, fedprox, tmp_path):
    torch.manual_seed(0)
    save_file(torch.nn.Linear(3, 2).state_dict(), tmp_path / "w.safetensors")
    given = load_file(
        run("run", "num_rounds=1", "model.init=w.safetensors", "client.args=--lr 1e-9") / "model.safetensors"
    )
    assert all(torch.allclose(given[name], value) for name, value in load_file(tmp_path / "w.safetensors").items())
    save_file(torch.nn.Linear(4, 2).state_dict(), tmp_path / "other.safetensors")
    ended = fedprox(*COMMAND, "engine=local", "model.init=other.safetensors")
    assert ended.status == 2
    assert "weight is shape (2, 4), and shape (2, 3) in the script; let both have the same" in ended.err


def test_a_script_that_fails_before_round_1_is_refused_in_one_line_and_leaves_nothing(fedprox, script, tmp_path):
    ended = fedprox("client=script", "client.script=train.py", "num_clients=2", "engine=local")
    assert ended.status == 2
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: client.script=train.py failed before round 1: sys.exit('give --lr') (train.py:")
    assert not (tmp_path / "run").exists()


# Settings, without a process.


def test_the_unused_settings_have_their_defaults():
    config = config_of("client=script", "client.script=train.py", "num_clients=2")
    assert {name: getattr(config, name) for name in UNUSED} == UNUSED


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        *[(f"{name}={value}", f"{name}=") for name, value in [("batch_size", 5), ("momentum", 0.5), ("hold_out", 0.2)]],
        ("last_batch=drop", "last_batch=drop is for fedprox's own clients"),
        ("solver=reference", "solver=reference is for fedprox's own clients"),
        ("weight_decay=0.1", "weight_decay=0.1 is for fedprox's own clients"),
        ("dataset=digits", "dataset=digits is for fedprox's own clients"),
        ("partition=iid", "partition=iid is for fedprox's own clients"),
        ("attack=sign_flip", "attack=.* is for fedprox's own clients"),
        ("augmentation=crop_flip", "augmentation=.* is for fedprox's own clients"),
        ("feature_skew=noise", "feature_skew=noise is for fedprox's own clients"),
        ("evaluation=clients", "evaluation=clients needs the clients' examples"),
        ("evaluation.per_class=true", "evaluation.per_class=true needs the clients' examples"),
        ("sampling=proportional", "sampling=proportional needs the clients' numbers of examples"),
        ("strategy=feddane", "strategy=feddane asks clients for full gradients"),
        ("model.init=zeros", "model.init=zeros is for fedprox's own models"),
        ("num_clients=null", "num_clients must be given with client=script"),
        ("client.script=none.py", "client.script=.*none.py: No such file"),
    ],
)
def test_settings_that_mean_nothing_to_a_script_are_refused(script, tmp_path, monkeypatch, setting, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line):
        check_settings(config_of(*COMMAND, "engine=local", setting))


@pytest.mark.parametrize("setting", ["dataset=of_clients", "model=of_clients"])
def test_what_only_scripts_have_is_refused_without_one(fedprox, setting):
    ended = fedprox("dataset=digits", "engine=local", setting)
    assert ended.status == 2
    assert f"{setting} " in ended.err
    assert "add client=script" in ended.err
