"""Watching runs while they run."""

import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from fedprox.cli.jobs import WAITING, Job, begin_table
from fedprox.report.__main__ import main
from fedprox.report.watch import look, table
from fedprox.storage import locked


def rows_of(*folders):
    return {os.path.basename(row["run"]): row for row in look(folders)[0]}


def test_a_run_has_a_row_with_its_differing_settings_and_progress(tmp_path, write_run):
    # write_run writes two rounds per second; 3 of 10 are done.
    write_run(tmp_path / "0", [0.1, 0.6, 0.5, 0.4], mu=0.0, status="running", num_rounds=10)
    write_run(tmp_path / "1", [0.1], mu=2.0, status="running", num_rounds=10)
    with locked(tmp_path / "0"):
        rows = rows_of(tmp_path)
    expected = {
        **{"run": str(tmp_path / "0"), "settings": "mu=0.0", "status": "running", "round": "3/10"},
        **{"accuracy": "0.4000", "best": "0.6000", "rounds/s": "2", "left": "4 s", "reason": ""},
    }
    assert rows["0"] == expected
    assert (rows["1"]["settings"], rows["1"]["status"]) == ("mu=2.0", "lost")


def test_a_choice_is_shown_by_its_name_with_its_own_settings(tmp_path, write_run):
    dirichlet = {"_target_": "a.b.dirichlet", "min_examples": 3}
    write_run(tmp_path / "0", [0.1], partition={"_target_": "a.b.iid"})
    for index, alpha in enumerate((0.1, 1.0), start=1):
        write_run(tmp_path / str(index), [0.1], partition={**dirichlet, "alpha": alpha})
    assert [rows_of(tmp_path)[name]["settings"] for name in "012"] == [
        "partition=iid",
        "partition=dirichlet partition.alpha=0.1",
        "partition=dirichlet partition.alpha=1.0",
    ]


def test_runs_are_sorted_by_number(tmp_path, write_run):
    for number in (10, 9, 1):
        write_run(tmp_path / str(number), [0.1], num_rounds=1)
    assert list(rows_of(tmp_path)) == ["1", "9", "10"]


def test_jobs_without_a_run_are_shown_from_the_sweeps_table(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.2], num_rounds=1)
    begin_table(tmp_path, [Job(number, (), f"mu={number}", str(number)) for number in (0, 1)])
    rows = rows_of(tmp_path)
    assert (rows["1"]["settings"], rows["1"]["status"]) == ("mu=1", WAITING)
    assert table(list(rows.values()))[1] == f"2 runs: 1 finished, 1 {WAITING}"


def test_it_is_not_over_while_a_run_or_a_sweep_is_running(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.2], num_rounds=1)
    begin_table(tmp_path, [Job(0, (), "", "0")])
    assert look([tmp_path])[1]
    with locked(tmp_path):  # between two jobs
        assert not look([tmp_path])[1]
    write_run(tmp_path / "1", [0.1], status="running", num_rounds=1)
    with locked(tmp_path / "1"):
        assert not look([tmp_path])[1]
    assert look([tmp_path])[1]


def test_if_there_is_no_room_for_all_running_ones_are_shown_first():
    statuses = ["finished", "failed", "finished", "running", "interrupted"]
    keys = ("settings", "round", "accuracy", "best", "rounds/s", "left", "reason")
    rows = [{"run": str(number), "status": status, **dict.fromkeys(keys, "")} for number, status in enumerate(statuses)]
    drawn, count = table(rows, 2)
    shown = [list(column.cells) for column in drawn.columns[:2]]
    assert shown == [["1", "3"], ["failed", "running"]]
    assert count == "5 runs: 2 finished, 1 failed, 1 running, 1 interrupted; 2 shown"


@pytest.mark.parametrize("damage", [b'{"status": "fin', b"[]"])
def test_a_damaged_record_hides_only_its_own_run(tmp_path, write_run, damage):
    write_run(tmp_path / "0", [0.1], num_rounds=1)
    (write_run(tmp_path / "1", [0.1], num_rounds=1) / "run.json").write_bytes(damage)
    assert list(rows_of(tmp_path)) == ["0"]


def test_a_table_of_a_thousand_runs_takes_seconds_at_most(tmp_path, write_run):
    for number in range(1000):
        settings = {f"setting_{index}": 0 for index in range(60)}
        write_run(tmp_path / str(number), [0.1] * 101, status="running", mu=number, num_rounds=200, **settings)
    begin = time.process_time()  # of this process: the machine may be busy with others
    rows, _ = look([tmp_path])
    table(rows)
    assert time.process_time() - begin < 10  # about a tenth of that on an idle machine
    assert len(rows) == 1000


def test_a_record_cannot_move_the_cursor(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1], status="\x1b[2Jfailed\n", num_rounds=1)
    assert rows_of(tmp_path)["0"]["status"] == r"\x1b[2Jfailed\n"


# The command


def test_once_prints_one_table_although_a_run_is_running(tmp_path, write_run, capsys):
    write_run(tmp_path / "0", [0.1], status="running", num_rounds=1)
    with locked(tmp_path / "0"):
        assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert out.count("1 runs: 1 running") == 1
    assert "\x1b" not in out


def test_long_lines_are_not_broken_and_recorded_text_is_not_markup(tmp_path, write_run, capsys):
    write_run(tmp_path / "0", [0.1], mu="[red]x[/red] :warning: " + 300 * "y", num_rounds=1)
    write_run(tmp_path / "1", [0.1], mu=1.0, num_rounds=1)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert f'mu="[red]x[/red] :warning: {300 * "y"}"' in capsys.readouterr().out


def test_it_ends_when_the_last_run_has_ended(tmp_path, write_run, capsys):
    write_run(tmp_path / "0", [0.1], status="running", num_rounds=1)
    with locked(tmp_path / "0"):
        thread = threading.Thread(target=main, args=(["watch", str(tmp_path), "--every", "0.05"],))
        thread.start()
        out = ""
        while out.count("1 runs: 1 running") < 2:
            assert thread.is_alive()
            time.sleep(0.01)
            out += capsys.readouterr().out
    thread.join(120)
    assert not thread.is_alive()
    out += capsys.readouterr().out
    assert out.count("1 runs: 1 running") > 1
    assert out.count("1 runs: 1 lost") == 1


@pytest.mark.parametrize("more", [{"TERM": "xterm"}, {"TERM": "dumb"}], ids=str)
def test_on_a_capable_terminal_each_table_replaces_the_one_before(tmp_path, write_run, environment, more):
    run = write_run(tmp_path / "0", [0.1], status="running", num_rounds=1)
    main_end, end = pty.openpty()
    command = [sys.executable, "-m", "fedprox.report", "watch", str(tmp_path), "--every", "0.1"]
    with locked(run):
        process = subprocess.Popen(command, stdout=end, env=environment(COLUMNS="200", LINES="50", **more))
        os.close(end)
        seen = b""
        while seen.count(b"1 running") < 2:
            seen += os.read(main_end, 4096)
    process.wait(30)
    # Heading, rule, a row, an empty line and the count are five lines: the cursor moves up four times.
    assert (b"\x1b[1A\x1b[2K" * 4 in seen) == (more["TERM"] != "dumb")
    assert (b"\x1b" in seen) == (more["TERM"] != "dumb")
    assert not re.search(rb"\x1b\[[0-9;]*m", seen)  # no colour


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is not a directory"),
        (["."], "no run.json in . or below; give"),
        ([".", "--every", "0"], "--every must be above 0"),
        ([".", "--every", "nan"], "--every must be above 0"),
        ([".", "--every", "inf"], "--every must be above 0 and at most 86400, in seconds, got inf"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_watching_imports_neither_pandas_nor_matplotlib_nor_torch(tmp_path, write_run, environment):
    write_run(tmp_path / "0", [0.1], num_rounds=1)
    code = (
        "import sys; from fedprox.report.__main__ import main; "
        f"main(['watch', {str(tmp_path)!r}]); print(*{{name.partition('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=600)
    assert not set(done.stdout.splitlines()[-1].split()) & {"pandas", "matplotlib", "torch", "flwr", "numpy", "hydra"}
