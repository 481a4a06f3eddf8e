"""A repeated sweep, and the table of its jobs."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedprox.cli.jobs import COLUMNS, WAITING, Job, begin_table, note, read_table, readable
from fedprox.storage import locked
from tests.faults.compared import differences

DIGITS = ("dataset=digits", "engine=local", "clients_per_round=2", "num_epochs=2")
SWEEP = ("--multirun", *DIGITS)
BREAKS = """
import time
from pathlib import Path
from fedprox.federation.planned_strategy import FedProx

class Breaks(FedProx):
    def configure_train(self, server_round, arrays, config, grid):
        if server_round == 12 and not Path("fixed").exists():
            raise RuntimeError("broken\\nin two lines")
        return super().configure_train(server_round, arrays, config, grid)

class Waits(FedProx):
    def configure_train(self, server_round, arrays, config, grid):
        while server_round == 12 and not Path("fixed").exists():
            Path("waits").touch()
            time.sleep(0.01)
        return super().configure_train(server_round, arrays, config, grid)
"""


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def of_runs(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of runs, without .hydra/ and main.log, which Hydra writes again."""
    return {name: text for name, text in files.items() if not any(own in name for own in (".hydra", "main.log"))}


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


# The command, repeated.


def test_finished_jobs_are_left_as_they_are_with_a_line_each(fedprox, tmp_path):
    command = (*SWEEP, "num_rounds=1", "mu=0,1")
    assert fedprox(*command).status == 0
    before = everything_in(tmp_path / "sweep")
    ended = fedprox(*command)
    assert (ended.status, ended.err) == (0, "")
    assert of_runs(everything_in(tmp_path / "sweep")) == of_runs(before)
    assert ended.out.count("is finished already") == 2
    assert [line.split()[:3] for line in ended.out.splitlines()[-2:]] == [
        ["0", "mu=0", "finished"],
        ["1", "mu=1", "finished"],
    ]


def test_a_failed_job_records_its_reason_and_is_resumed_to_the_uninterrupted_result(fedprox, tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.syspath_prepend(tmp_path)
    command = (*SWEEP, "num_rounds=14", "mu=0,1", "strategy._target_=breaks.Breaks")
    failed = fedprox(*command)
    assert failed.status == 1
    reason = "round 12: Breaks.configure_train: RuntimeError: broken; in two lines (breaks.py:9)"
    for job in "01":
        assert (record(tmp_path / "sweep" / job)["status"], record(tmp_path / "sweep" / job)["error"]) == (
            "failed",
            reason,
        )
    rows = read_table(tmp_path / "sweep")
    assert [(row["status"], row["rounds"], row["error"]) for row in rows] == [("failed", "11", reason)] * 2
    assert failed.out.splitlines()[-1].endswith(reason)

    (tmp_path / "fixed").touch()
    assert fedprox(*command).status == 0
    alone = (*command[1:-2], "mu=1", command[-1])
    assert fedprox(*alone, "hydra.run.dir=alone").status == 0
    resumed, whole = tmp_path / "sweep" / "1", tmp_path / "alone"
    assert [each["after_round"] for each in record(resumed)["resumed"]] == [11]
    assert "error" not in record(resumed)
    assert differences(resumed, whole) == []
    assert [(row["status"], row["error"]) for row in read_table(tmp_path / "sweep")] == [("finished", "")] * 2


def test_runs_with_other_settings_are_not_overwritten(fedprox, tmp_path):
    assert fedprox(*SWEEP, "num_rounds=1", "mu=0,1").status == 0
    before = everything_in(tmp_path / "sweep")
    for swept, job, differing in (
        (["num_rounds=1", "mu=0,2"], 1, "mu=2.0 (was 1.0)"),
        (["num_rounds=1", "mu=0.5,0,1"], 0, "mu=0.5 (was 0.0)"),  # the jobs' numbers have moved
        (["num_rounds=2", "mu=0,1"], 0, "num_rounds=2 (was 1)"),
    ):
        ended = fedprox(*SWEEP, *swept)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        line = f"error: sweep/{job} holds a run with other settings: this job has {differing}; "
        assert ended.err.startswith(f"{line}name a new directory with hydra.sweep.dir=")
        assert everything_in(tmp_path / "sweep") == before


def test_values_added_at_the_end_and_other_places_to_compute_are_the_same_sweep(fedprox, tmp_path):
    assert fedprox(*SWEEP, "num_rounds=1", "mu=0,1").status == 0
    before = of_runs(everything_in(tmp_path / "sweep"))
    # 0.0 is 0, in other letters; threads change no number
    ended = fedprox(*SWEEP, "num_rounds=1", "mu=0.0,1,2", "engine.num_threads=1", "checkpoint.every=3")
    assert ended.status == 0, ended.err
    after = of_runs(everything_in(tmp_path / "sweep"))
    runs = [name for name in before if "/" in name]
    assert {name: after[name] for name in runs} == {name: before[name] for name in runs}
    assert record(tmp_path / "sweep" / "2")["settings"]["mu"] == 2


def test_jobs_in_folders_named_by_their_settings_are_found_there(fedprox, tmp_path):
    folders = "hydra.sweep.subdir=mu_${mu}"
    assert fedprox(*SWEEP, "num_rounds=1", "mu=0,1", folders).status == 0
    ended = fedprox(*SWEEP, "num_rounds=1", "mu=2,0,1", folders)  # other numbers, the same folders
    assert ended.status == 0, ended.err
    assert ended.out.count("is finished already") == 2
    assert [row["run"] for row in read_table(tmp_path / "sweep")] == ["mu_2", "mu_0", "mu_1"]
    assert fedprox(*SWEEP, "num_rounds=2", "mu=2,0,1", folders).status == 2


def test_a_damaged_record_is_not_overwritten(fedprox, tmp_path):
    assert fedprox(*SWEEP, "num_rounds=1", "mu=0,1").status == 0
    (tmp_path / "sweep" / "1" / "run.json").write_text('{"status": "fin')
    ended = fedprox(*SWEEP, "num_rounds=1", "mu=0,1")
    assert ended.status == 2
    assert ended.err.startswith("error: sweep/1/run.json cannot be used")
    assert ended.err.count("\n") == 1


def test_a_sweep_that_another_process_is_running_is_refused(fedprox, tmp_path):
    (tmp_path / "sweep").mkdir()
    with locked(tmp_path / "sweep"):
        ended = fedprox(*SWEEP, "num_rounds=1", "mu=0,1")
    assert ended.status == 2
    assert ended.err == "error: sweep is being written by another process; wait for it or name another folder\n"
    assert list((tmp_path / "sweep").iterdir()) == []


def test_an_interrupted_sweep_shows_its_table_and_can_be_continued(tmp_path, environment, fedprox, monkeypatch):
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.syspath_prepend(tmp_path)
    command = (*SWEEP, "num_rounds=14", "mu=0,1", "strategy._target_=breaks.Waits", "hydra.sweep.dir=sweep")
    line = [sys.executable, "-m", "fedprox.main", *command]
    process = subprocess.Popen(line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    try:
        while not (tmp_path / "waits").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=250)
    finally:
        process.kill()
    assert process.returncode == 130
    statuses = [line.split()[2:4] for line in out.splitlines()[-2:]]
    assert (statuses[0][0], statuses[1]) == ("interrupted", ["not", "begun"])
    assert [row["status"] for row in read_table(tmp_path / "sweep")] == ["interrupted", WAITING]

    (tmp_path / "fixed").touch()
    ended = fedprox(*command)
    assert ended.status == 0, ended.err
    assert record(tmp_path / "sweep" / "0")["resumed"][0]["after_round"] == 11
    table = (tmp_path / "sweep" / "0" / "metrics.csv").read_text()
    assert [line.split(",")[0] for line in table.split()[1:]] == [str(number) for number in range(15)]


# The table itself.


def test_the_table_has_the_reason_of_a_failed_job_without_a_record(fedprox, tmp_path):
    # 141 clients are too many for the power law on these data, which is known only once they are loaded.
    ended = fedprox(*SWEEP, "num_rounds=1", "num_clients=50,141", "+repeat_num=0")
    failed = read_table(tmp_path / "sweep")[1]
    assert (failed["overrides"], failed["status"], failed["rounds"]) == ("num_clients=141", "failed", "")
    assert f"error: {failed['error']}\n" == ended.err
    assert ended.out.splitlines()[-1].endswith(failed["error"])
    assert not (tmp_path / "sweep" / "1" / "run.json").exists()


def test_the_table_has_the_result_of_each_run(fedprox, tmp_path):
    assert fedprox(*SWEEP, "num_rounds=4", "mu=0,1").status == 0
    for row in read_table(tmp_path / "sweep"):
        facts = record(tmp_path / "sweep" / row["run"])
        assert (row["rounds"], row["num_rounds"], row["error"]) == ("4", "4", "")
        assert float(row["final_accuracy"]) == facts["result"]["final"]["test_accuracy"]
        assert float(row["best_accuracy"]) == facts["result"]["best"]["test_accuracy"]
        assert float(row["time_s"]) == pytest.approx(facts["timings"]["total_s"], abs=1e-3)


def test_jobs_that_end_at_the_same_time_all_get_into_the_table(tmp_path):
    jobs = [Job(number, (f"mu={number}",), f"mu={number}", str(number)) for number in range(20)]
    begin_table(tmp_path, jobs)
    assert [row["status"] for row in read_table(tmp_path)] == [WAITING] * 20
    (tmp_path / "lock").mkdir()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: note(tmp_path, tmp_path / "lock", job, f"why {job.number}"), jobs))
    assert [row["error"] for row in read_table(tmp_path)] == [f"why {number}" for number in range(20)]


def test_jobs_of_an_unknown_sweeper_get_rows_as_they_end(tmp_path):
    begin_table(tmp_path, [])
    note(tmp_path, tmp_path, Job(4, ("mu=3",), "mu=3", "4"), "lost")
    (row,) = read_table(tmp_path)
    assert (row["job"], row["overrides"], row["error"], row["run"]) == ("4", "mu=3", "lost", "4")


def test_the_printed_table_has_reasons_only_if_a_job_failed():
    row = dict.fromkeys(COLUMNS, "") | {"job": "0", "status": "finished"}
    assert "reason" not in readable([row])
    assert "reason" in readable([row, row | {"error": "lost"}])
