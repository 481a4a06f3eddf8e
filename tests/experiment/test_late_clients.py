"""Whole runs with devices and late clients: columns, resuming with clients in flight, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedprox.experiment.arrival import participation
from fedprox.plan.arrivals import WaitingPlan
from fedprox.plan.devices import Devices
from fedprox.plan.plan import Plan
from fedprox.plan.protocols import PaperProtocol

DIGITS = (
    *("dataset=digits", "engine=local", "num_clients=40", "partition=iid", "num_epochs=2"),
    *("protocol=paper", "num_rounds=8", "mu=0.1", "checkpoint.every=1", "checkpoint.keep=null"),
)
IN_FLIGHT = ("arrival=buffered", "arrival.concurrency=30", "arrival.buffer=5")


@pytest.fixture
def run(fedprox, tmp_path) -> Callable:
    """Return a function that runs a command and returns how it ended, and its directory."""

    def call(*arguments: str, into: str = "run", status: int = 0) -> tuple[str, Path]:
        ended = fedprox(*DIGITS, *arguments, f"hydra.run.dir={into}")
        assert ended.status == status, ended.err
        return ended.err, tmp_path / into

    return call


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as opened:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(opened)]


def test_a_run_that_resumes_with_thirty_clients_in_flight_is_the_same(run, fedprox):
    late = (*IN_FLIGHT, "schedule.name=cosine", "update=quantise", "update.bits=4", "attack=gaussian")
    _, whole = run(*late, into="whole")
    _, cut = run(*late, into="cut")
    saved = {int(file.stem.partition("_")[2]): file for file in (cut / "checkpoint").iterdir()}
    last = max(round_num for round_num in saved if round_num < 8)  # one that is due while another is written is skipped
    for round_num in saved:
        if round_num > last:  # as if killed after it
            saved[round_num].unlink()
    record = json.loads((cut / "run.json").read_text()) | {"status": "running"}
    (cut / "run.json").write_text(json.dumps(record))
    ended = fedprox(f"resume={cut}")
    assert ended.status == 0, ended.err
    assert f"resumes after round {last} of 8" in ended.out
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert rows(whole) == rows(cut)
    assert rows(whole, "clients.csv") == rows(cut, "clients.csv")
    shares = [json.loads((folder / "run.json").read_text())["participation"] for folder in (whole, cut)]
    assert shares[0] == shares[1]


def test_equal_devices_and_a_buffer_of_all_in_flight_give_the_synchronous_run(run):
    # 432 examples each, of which each epoch has 44 steps: equal weights and equal times
    equal = ("num_clients=3", "clients_per_round=2", "stragglers_fraction=0")
    _, waiting = run("devices=lognormal", "devices.sigma=0", *equal, into="waiting")
    _, buffered = run(
        "arrival=buffered", "devices.sigma=0", "arrival.concurrency=2", "arrival.buffer=2", *equal, into="buffered"
    )
    assert {row["num_examples"] for row in rows(waiting, "clients.csv")} == {"432"}
    assert (waiting / "model.safetensors").read_bytes() == (buffered / "model.safetensors").read_bytes()
    for one, other in zip(rows(waiting), rows(buffered), strict=True):
        for name in ("test_loss", "test_accuracy", "num_clients_counted", "virtual_time_s"):
            assert one[name] == other[name]
        for name in ("drift", "train_loss_cohort"):  # means, weighted by 432 examples or by 1
            assert one[name] == other[name] or float(one[name]) == pytest.approx(float(other[name]), rel=1e-12)
    assert [row["virtual_time_s"] for row in rows(waiting)] == [f"{88.0 * round_num}" for round_num in range(9)]
    assert {row["staleness"] for row in rows(buffered, "clients.csv")} == {"0"}


def test_columns_tell_the_virtual_time_and_the_staleness_of_each_round(run):
    _, folder = run(*IN_FLIGHT)
    metrics, clients = rows(folder), rows(folder, "clients.csv")
    for row in metrics[1:]:
        own = [int(client["staleness"]) for client in clients if client["round"] == row["round"]]
        assert (float(row["staleness_mean"]), int(row["staleness_max"])) == (np.mean(own), max(own))
    times = [float(row["virtual_time_s"]) for row in metrics]
    assert times == sorted(times)
    assert (metrics[0]["virtual_time_s"], metrics[0]["staleness_max"]) == ("0.0", "")


def test_a_deadline_keeps_partial_work_with_fedprox_and_drops_it_with_fedavg(run):
    _, kept = run("arrival=deadline", "arrival.seconds=6", into="kept")
    _, dropped = run("arrival=deadline", "arrival.seconds=6", "strategy=fedavg", into="dropped")
    one, other = rows(kept, "clients.csv"), rows(dropped, "clients.csv")
    assert [row["client"] for row in one] == [row["client"] for row in other]
    partial = [row["is_straggler"] == "True" for row in one]
    assert 0 < sum(partial) < len(partial)
    assert [row["counted"] == "True" for row in other] == [not each for each in partial]
    assert all(row["counted"] == "True" for row in one if int(row["num_steps"]))
    assert [row["virtual_time_s"] for row in rows(kept)] == [f"{6.0 * round_num}" for round_num in range(9)]


def test_bandwidth_makes_updates_of_fewer_bytes_faster(run):
    slow = ("devices=lognormal", "devices.sigma=0", "devices.bandwidth=100", "stragglers_fraction=0", "num_rounds=1")
    times = []
    for update in (("update=none",), ("update=float32",), ("update=quantise", "update.bits=8")):
        times.append(float(rows(run(*slow, *update)[1])[-1]["virtual_time_s"]))
    # 2,600 bytes each way and 8 steps; 8 bits: 650 values and a scale of four bytes
    assert times == [8 + 52.0, 8 + 52.0, 8 + 26 + 6.54]


def test_shares_of_updates_and_steps_by_speed(tmp_path):
    sizes = np.full(6, 10)
    plan = WaitingPlan(Plan(sizes, 2, 1, 10, 0.0, PaperProtocol(), 0), Devices(np.arange(6.0) + 1, np.zeros(6)))
    (tmp_path / "clients.csv").write_text(
        "round,client,num_steps,counted\n1,0,3,True\n1,5,1,True\n2,1,3,True\n2,4,0,False\n3,2,1,True\n"
    )
    assert participation(plan, tmp_path) == {
        "participation": {
            "updates": {"fastest": 0.5, "middle": 0.25, "slowest": 0.25},
            "steps": {"fastest": 0.75, "middle": 0.125, "slowest": 0.125},
        }
    }
    assert participation(plan.plan, tmp_path) == {}


def test_a_table_of_devices_that_has_changed_is_not_taken_for_the_old_one(run, fedprox, tmp_path):
    table = tmp_path / "devices.csv"
    table.write_text("client,seconds_per_step\n" + "".join(f"{client},1\n" for client in range(40)))
    _, folder = run("devices=file", "devices.path=devices.csv", "num_rounds=1")
    table.write_text(table.read_text().replace("7,1\n", "7,2\n"))
    ended = fedprox(f"resume={folder}", "num_rounds=2", "devices.path=devices.csv")
    assert ended.status == 2
    assert "other devices: their speeds are not the same" in ended.err
    assert "restore the table of devices" in ended.err


def test_a_branch_into_buffered_updates_lacks_the_models_in_flight(run, fedprox):
    _, source = run("devices=lognormal", "stragglers_fraction=0", "num_rounds=3", into="source")
    err, folder = run(*IN_FLIGHT, f"branch_from={source}", "branch_round=3", into="branch", status=2)
    assert "does not have what clients train that are late in round 3" in err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("arrival=buffered", "protocol=authors"), "arrival=buffered does not go with protocol=authors"),
        (("arrival=deadline", "arrival.seconds=9", "protocol=authors"), "arrival=deadline does not go with protocol"),
        (("arrival=buffered", "strategy=feddane"), "devices=lognormal does not time the second cohort"),
        (("devices=lognormal", "strategy=feddane"), "use devices=none or another strategy"),
        (("arrival=buffered", "strategy=fed_median"), "got strategy=Median; use strategy=fedprox or fedavg"),
        (
            ("arrival=buffered", "strategy._target_=flwr.serverapp.strategy.FedAdam"),
            "got strategy=FedAdam; use strategy=fedprox or fedavg",
        ),
        (("arrival=buffered", "arrival.concurrency=41"), "arrival.concurrency must be at most num_clients=40, got 41"),
        (("arrival=buffered", "arrival.buffer=11"), "arrival.buffer must be at most arrival.concurrency=10, got 11"),
        (("arrival=buffered", "clients_per_round=9"), "clients_per_round must be arrival.buffer=10 with arrival=buff"),
        (("arrival=buffered", "stragglers_fraction=0.5"), "stragglers_fraction must be 0 with arrival=buffered"),
        (("arrival=deadline", "arrival.seconds=9", "stragglers_fraction=0.5"), "stragglers_fraction must be 0 with"),
        (("arrival=buffered", "sampling=proportional"), "sampling must be uniform with arrival=buffered"),
        (("arrival=buffered", "devices=none"), "arrival=buffered needs devices of known speed, got devices=none"),
        (("arrival=deadline", "arrival.seconds=0.001"), "arrival.seconds=0.001 is too short for a single step of any"),
        (("arrival.seconds=30",), "arrival.seconds belongs to the choice deadline, got synchronous"),
        (("devices.sigma=1",), "devices.sigma belongs to the choice lognormal, got none"),
        (("devices=lognormal", "devices.sigma=null"), "devices.sigma must be given with this choice, lognormal"),
        (("devices=lognormal", "engine=deployment"), "devices=lognormal cannot be simulated with engine=deployment"),
        (("devices=lognormal", "client=script", "client.script=a.py"), "cannot be simulated with client=script"),
        (("devices=file", "devices.path=none.csv"), "devices.path=none.csv cannot be used: "),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(run, arguments, line):
    err, folder = run(*arguments, status=2)
    assert line in err
    assert len(err.splitlines()) == 1
    assert not folder.exists()
