"""A table grows by whole rows, and rows after a mark can be removed again."""

import os

import pytest

from fedprox.errors import UserError
from fedprox.runs.csv_table import CsvTable, begins_as_marked


@pytest.fixture
def file(tmp_path):
    return tmp_path / "table.csv"


def begun(file, *rounds: int) -> CsvTable:
    table = CsvTable(file, ["round", "loss"])
    for round_num in rounds:
        table.add([[round_num, 0.5]])
    return table


def test_a_row_is_in_the_file_as_soon_as_it_is_added(file):
    table = CsvTable(file, ["round", "loss"])
    assert file.read_bytes() == b"round,loss\r\n"
    table.add([[1, 0.25], [2, None]])
    assert file.read_bytes() == b"round,loss\r\n1,0.25\r\n2,\r\n"


def test_going_back_to_a_mark_removes_exactly_the_later_rows(file):
    table = begun(file, 1, 2)
    marked, mark = file.read_bytes(), table.mark()
    table.add([[3, 0.1]])
    assert file.read_bytes() != marked
    table.back_to(mark)
    assert file.read_bytes() == marked


@pytest.mark.parametrize("later", [b"", b"3,0.1\r\n", b"3,0.", b"3,0.1\r\n4,0.2\r\n5"])
def test_a_table_continues_at_its_mark_whatever_was_written_later(file, later):
    table = begun(file, 1, 2)
    mark = table.mark()
    table.close()
    with file.open("ab") as opened:
        opened.write(later)
    again = CsvTable(file, ["round", "loss"], mark)
    again.add([[3, 0.5]])
    uninterrupted = begun(file.with_name("uninterrupted.csv"), 1, 2, 3)
    assert file.read_bytes() == file.with_name("uninterrupted.csv").read_bytes()
    assert again.mark() == uninterrupted.mark()


@pytest.mark.parametrize(
    "change",
    [lambda content: content[:-1], lambda content: b"", lambda content: content.replace(b"0.5", b"0.6", 1)],
    ids=["shorter", "empty", "another number"],
)
def test_rows_changed_before_the_mark_are_an_error_and_stay_as_they_are(file, change):
    table = begun(file, 1, 2)
    table.close()
    assert begins_as_marked(file, table.mark())
    file.write_bytes(changed := change(file.read_bytes()))
    assert not begins_as_marked(file, table.mark())
    with pytest.raises(UserError, match="was changed since the last checkpoint"):
        CsvTable(file, ["round", "loss"], table.mark())
    assert file.read_bytes() == changed


def test_a_missing_file_does_not_match_its_mark(file):
    mark = begun(file, 1).mark()
    file.unlink()
    assert not begins_as_marked(file, mark)


def test_a_pipe_does_not_match_a_mark_and_is_not_waited_for(file):
    mark = begun(file, 1).mark()
    file.unlink()
    os.mkfifo(file)
    assert not begins_as_marked(file, mark)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    full = tmp_path / "metrics.csv"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.csv"):
        CsvTable(full, ["round"])


def test_added_columns_are_empty_in_existing_rows_and_the_table_continues_at_its_mark(file):
    table = begun(file, 1, 2)
    before = table.mark()
    table.widen(["a", "b"])
    assert file.read_bytes() == b"round,loss,a,b\r\n1,0.5,,\r\n2,0.5,,\r\n"
    assert (begins_as_marked(file, before), begins_as_marked(file, table.mark())) == (False, True)
    mark = table.mark()
    table.add([[3, 0.25, 7, 8]])
    table.back_to(mark)
    table.close()
    again = CsvTable(file, table.columns, mark)
    again.add([[3, 0.25, 9, 8]])
    assert file.read_bytes() == b"round,loss,a,b\r\n1,0.5,,\r\n2,0.5,,\r\n3,0.25,9,8\r\n"
