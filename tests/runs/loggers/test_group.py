"""All loggers of a run: one that fails never ends the run, one that cannot start ends it at once."""

import pytest

from fedprox.errors import UserError
from fedprox.runs.loggers.group import Attached


class Notes:
    """A logger that notes its calls and can fail in one of them."""

    def __init__(self, fails_in: str = "", error: str = "the disk is full") -> None:
        self.calls: list[object] = []
        self._fails_in = fails_in
        self._error = error

    def begin(self, run_dir, facts, first_round):
        self._note("begin", (run_dir, facts, first_round))

    def log(self, row):
        self._note(f"log {row['round']}", row["round"])

    def end(self, status):
        self._note("end", status)

    def _note(self, where, what):
        if where == self._fails_in:
            raise OSError(self._error)
        self.calls.append(what)


def run(tmp_path, loggers, rounds=(0, 1, 2), earlier=()) -> None:
    with Attached(loggers, tmp_path, {"seed": 1}, rounds[0], earlier) as attached:
        for round_num in rounds:
            attached.log({"round": round_num})


def test_every_logger_gets_the_beginning_every_row_and_the_end(tmp_path):
    one, other = Notes(), Notes()
    run(tmp_path, {"one": one, "other": other})
    assert one.calls == other.calls == [(tmp_path, {"seed": 1}, 0), 0, 1, 2, "finished"]


def test_a_resumed_run_logs_its_earlier_rows_first(tmp_path):
    notes = Notes()
    run(tmp_path, {"notes": notes}, rounds=(3, 4), earlier=[{"round": 0}, {"round": 2}])  # every second was evaluated
    assert notes.calls == [(tmp_path, {"seed": 1}, 3), 0, 2, 3, 4, "finished"]


def test_a_round_that_was_not_evaluated_has_no_row_to_log(tmp_path):
    notes = Notes()
    with Attached({"notes": notes}, tmp_path, {}) as attached:
        attached.log(None)
    assert notes.calls[1:] == ["finished"]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (SystemExit, "failed"), (ValueError, "failed")]
)
def test_loggers_get_the_status_of_a_run_that_did_not_finish(tmp_path, error, status):
    notes = Notes()
    with pytest.raises(error), Attached({"notes": notes}, tmp_path, {}):
        raise error
    assert notes.calls[1:] == [status]


def test_a_logger_that_fails_in_a_round_is_dropped_with_one_line_and_the_others_continue(tmp_path, caplog):
    bad, good = Notes("log 1", error="the disk\nis full"), Notes()
    run(tmp_path, {"bad": bad, "good": good})
    assert bad.calls[1:] == [0]  # neither another row nor the end
    assert good.calls[1:] == [0, 1, 2, "finished"]
    assert [record.getMessage() for record in caplog.records] == [
        "logger=bad failed in round 1, the run continues without it: the disk; is full"
    ]


def test_a_logger_that_cannot_be_closed_is_one_line_and_nothing_else(tmp_path, caplog):
    good = Notes()
    run(tmp_path, {"bad": Notes("end"), "good": good})
    assert good.calls[-1] == "finished"
    assert [record.getMessage() for record in caplog.records] == ["logger=bad could not be closed: the disk is full"]


def test_a_logger_that_cannot_start_is_a_user_error_and_started_ones_are_closed(tmp_path):
    first, last = Notes(), Notes()
    with pytest.raises(UserError, match=r"^logger=bad cannot start: the disk is full; fix that or remove"):
        run(tmp_path, {"first": first, "bad": Notes("begin"), "last": last})
    assert first.calls[1:] == ["failed"]
    assert last.calls == []
