"""Progress of a run, read from files that are being written."""

import json

import pytest

from fedprox.errors import UserError
from fedprox.runs.reader import LOST, differences, progress_of, read_metrics, read_record, read_rows
from fedprox.storage import locked
from tests.settings import config_of

HEADER = "round,test_loss,test_accuracy,train_loss_cohort,num_clients_counted,time_s\n"


def begin(run, status="running", num_rounds=10, **entries):
    run.mkdir(exist_ok=True)
    facts = {"status": status, "algorithm": "x", "settings": {"num_rounds": num_rounds}, "seed": 0, "name": "x"}
    (run / "run.json").write_text(json.dumps(facts | entries))
    return run


def row(round_num: int, accuracy: float, time_s: float) -> str:
    return f"{round_num},1.0,{accuracy},,10,{time_s}\n"


def write(run, text: str, mode: str = "a") -> None:
    with (run / "metrics.csv").open(mode) as file:
        file.write(text)


def test_a_directory_without_a_readable_record_has_no_progress(tmp_path):
    assert progress_of(tmp_path / "run") is None
    run = begin(tmp_path / "run")
    assert progress_of(run).round_num is None
    (run / "run.json").write_text('{"status": "fin')
    assert progress_of(run) is None


def test_progress_is_that_of_the_complete_rows_and_best_that_of_all_of_them(tmp_path):
    run = begin(tmp_path / "run")
    with locked(run):
        write(run, HEADER + row(0, 0.1, 0.0) + row(1, 0.7, 2.0))
        first = progress_of(run)
        write(run, row(2, 0.5, 4.0) + "3,1.0,0.9,,10,5")  # of 5.5: the last line is being written
        second = progress_of(run)
        write(run, ".5\n")
        assert progress_of(run).time_s == 5.5
    assert (first.round_num, first.accuracy, first.best) == (1, 0.7, 0.7)
    assert (second.round_num, second.accuracy, second.best, second.time_s) == (2, 0.5, 0.7, 4.0)
    assert second.rate == pytest.approx(0.5)  # 2 rounds in 4 s
    assert second.left_s == pytest.approx((10 - 2) / 0.5)


def test_the_rate_is_that_of_the_last_twenty_rows(tmp_path):
    run = begin(tmp_path / "run", num_rounds=100)
    slow = [row(number, 0.1, 10.0 * number) for number in range(30)]  # 0.1 rounds per second
    fast = [row(30 + number, 0.1, 300.0 + number) for number in range(20)]  # 1 per second, in the last 20 rows
    write(run, HEADER + "".join(slow + fast))
    with locked(run):
        progress = progress_of(run)
    assert progress.rate == pytest.approx(1.0)
    assert progress.left_s == pytest.approx(100 - 49)


def test_a_running_run_whose_process_is_gone_is_lost(tmp_path):
    run = begin(tmp_path / "run")
    with locked(run):
        assert progress_of(run).status == "running"
    progress = progress_of(run)
    assert (progress.status, progress.left_s) == (LOST, None)


def test_the_progress_of_an_ended_run_is_in_its_record(tmp_path):
    final, best = ({"round": 10, "test_accuracy": accuracy, "time_s": 7.0} for accuracy in (0.8, 0.9))
    result = {"final": final, "best": best}
    run = begin(tmp_path / "run", "finished", result=result, timings={"total_s": 9.0})
    progress = progress_of(run)
    assert (progress.round_num, progress.accuracy, progress.best, progress.time_s) == (10, 0.8, 0.9, 9.0)
    begin(run, "failed", result=result, error="lost")
    progress = progress_of(run)
    assert (progress.status, progress.error, progress.time_s) == ("failed", "lost", 7.0)
    begin(run, "failed", result=None)
    assert progress_of(run).round_num is None


@pytest.mark.parametrize("line", ["1,2\n", "1,1.0,much,,10,1.0\n", "\x00\n"])
def test_a_damaged_table_hides_only_the_progress(tmp_path, line):
    run = begin(tmp_path / "run")
    write(run, HEADER + row(0, 0.1, 0.0) + line + row(2, 0.3, 2.0))
    with locked(run):
        progress = progress_of(run)
    assert (progress.status, progress.round_num) == ("running", None)


def test_rows_have_values_and_none_for_empty_cells(tmp_path):
    write(tmp_path, "round,test_loss,drift\n0,nan,\n1,1.5,0.25\n")
    first, second = read_metrics(tmp_path / "metrics.csv")
    assert (first["round"], str(first["test_loss"]), first["drift"]) == (0, "nan", None)
    assert second == {"round": 1, "test_loss": 1.5, "drift": 0.25}


@pytest.mark.parametrize("cut", ["", "1", "10", "11,", "11,2e-", "2"])
def test_an_incomplete_last_line_is_ignored(tmp_path, cut):
    write(tmp_path, "round,test_loss\n" + "".join(f"{t},{t}.5\n" for t in range(11)) + cut)
    assert read_metrics(tmp_path / "metrics.csv") == [{"round": t, "test_loss": t + 0.5} for t in range(11)]
    before = len("round,test_loss\n0,0.5\n1,1.")
    assert read_metrics(tmp_path / "metrics.csv", before) == [{"round": 0, "test_loss": 0.5}]


@pytest.mark.parametrize("damage", [b"1,2,3\n", b"1\n", b"\n", b"\x80,1\n", b'"1,1\n'])
def test_damaged_rows_are_an_error_that_names_the_file(tmp_path, damage):
    (tmp_path / "metrics.csv").write_bytes(b"round,test_loss\n" + damage)
    with pytest.raises(UserError, match=r"metrics\.csv cannot be used: .*fix it"):
        read_rows(tmp_path / "metrics.csv")


ROW = {"round": 3, "test_accuracy": 0.5, "drift": None}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"result": 5}, "its result must have the rows final and best"),
        ({"result": {"final": ROW}}, "its result must have the rows final and best"),
        ({"result": {"final": ROW, "best": ROW | {"drift": "high"}}}, "of numbers"),
        ({"result": {"final": ROW, "best": ROW | {"round": None}}}, "of numbers"),
        ({"result": {"final": ROW, "best": {"round": 3}}}, "its result lacks test_accuracy"),
        ({"timings": {"total_s": "long"}}, "its timings must be numbers"),
        ({"timings": 5}, "its timings must be numbers"),
        ({"resumed": 5}, "must be a list"),
        ({"settings": {"num_rounds": "many"}}, "num_rounds in its settings must be an integer"),
    ],
)
def test_a_record_with_entries_of_another_form_is_refused(tmp_path, entries, reason):
    run = begin(tmp_path / "run", result={"final": ROW, "best": ROW}, timings={"total_s": 1.5}, resumed=[])
    assert read_record(run / "run.json")["result"]["best"] == ROW
    begin(run, **entries)
    with pytest.raises(UserError, match=rf"run\.json cannot be used: .*{reason}"):
        read_record(run / "run.json")
    assert progress_of(run) is None


def test_settings_that_an_earlier_version_did_not_have_count_as_their_defaults():
    present = config_of("dataset=digits", "engine=local").plain()
    earlier = {name: value for name, value in present.items() if name not in ("devices", "arrival")}
    assert differences(earlier, present) == []
    assert differences({**earlier, "devices": {"name": "none"}}, present) == []
    late = config_of("dataset=digits", "engine=local", "devices=lognormal").plain()
    assert 'devices.name="lognormal" (was "none")' in differences(earlier, late)
