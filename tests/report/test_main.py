"""The command line of the report."""

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from fedprox.report import __main__ as report


@pytest.fixture
def sweep(tmp_path, write_run):
    """Two repetitions with last accuracies 0.6 and 0.8: mean 0.7, deviation 0.2 / sqrt(2) = 0.141."""
    write_run(tmp_path / "sweep" / "0", [0.1, 0.6], repetition=0)
    write_run(tmp_path / "sweep" / "1", [0.1, 0.8], repetition=1)
    return tmp_path / "sweep"


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_figure_has_the_format_of_its_ending(sweep, tmp_path, ending, magic):
    out = tmp_path / f"figure.{ending}"
    assert report.main([str(sweep), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(magic)


def test_the_table_is_printed_and_the_last_line_names_the_figure(sweep, tmp_path, capsys):
    out = tmp_path / "figure.png"
    assert report.main([str(sweep), "--out", str(out), "--last", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "accuracy (last 1)" in lines[0]
    assert " ".join(lines[2].split()).startswith("| mnist | 90 % | FedAvg | 2 | 0.700 ± 0.141 | 0.300 ± 0.141 |")
    assert lines[-1] == f"figure: {out}"


def test_tables_are_written_as_printed_and_with_all_digits(sweep, tmp_path, capsys):
    markdown, comma = tmp_path / "table.md", tmp_path / "table.csv"
    arguments = [
        str(sweep),
        "--out",
        str(tmp_path / "f.png"),
        "--table",
        str(markdown),
        "--table",
        str(comma),
    ]
    assert report.main([*arguments, "--last", "1"]) == 0
    assert capsys.readouterr().out.startswith(markdown.read_text())
    (row,) = pd.read_csv(StringIO(comma.read_text())).to_dict("records")
    assert row["test_accuracy_mean"] == pytest.approx(0.7)
    assert row["test_accuracy_std"] == pytest.approx(0.2 / 2**0.5)


def test_a_level_adds_the_rounds_to_it(sweep, tmp_path, capsys):
    assert report.main([str(sweep), "--out", str(tmp_path / "figure.png"), "--level", "0.7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip("| ").endswith("rounds to 0.7")
    assert lines[2].rstrip("| ").endswith("1.0 (1 of 2 runs)")


def test_drift_that_nobody_recorded_is_one_line(sweep, tmp_path, capsys):
    assert report.main([str(sweep), "--out", str(tmp_path / "figure.png"), "--drift"]) == 2
    error = capsys.readouterr().err
    assert error == "error: no run has recorded its drift; leave --drift out\n"
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "figure.gif"], "error: --out must end in .png or .pdf or .svg, got figure.gif"),
        (["--out", "figure.png", "--table", "t.xls"], "error: --table must end in .md or .csv, got t.xls"),
        (
            ["--out", "no/figure.png"],
            "error: --out names no/figure.png, but there is no folder no; create it first",
        ),
        (["--out", "taken.png"], "error: --out must name a file, but taken.png is a directory"),
        (["--out", "figure.png", "--last", "0"], "error: --last must be >= 1, got 0"),
        (
            ["--out", "figure.png", "--level", "60"],
            "error: --level must be above 0 and at most 1, got 60; it is a share of the test examples",
        ),
    ],
)
def test_bad_arguments_are_one_line_before_any_run_is_read(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    assert report.main(["no-such-folder", *arguments]) == 2  # were it read first, the message would name it
    assert capsys.readouterr().err == f"{message}\n"


def test_a_place_that_may_not_be_written_is_one_line_before_any_run_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert report.main(["no-such-folder", "--out", str(tmp_path / "figure.png")]) == 2
    assert capsys.readouterr().err.endswith("figure.png, which may not be written; choose another place\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full stands for a full disk")
def test_a_full_disk_is_one_line(sweep, tmp_path, capsys):
    (tmp_path / "full.png").symlink_to("/dev/full")
    assert report.main([str(sweep), "--out", str(tmp_path / "full.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write")
    assert error.endswith("No space left on device\n")
    assert error.count("\n") == 1


def test_the_module_runs_as_a_program_and_ends_in_status_2_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "fedprox.report", str(tmp_path), "--out", str(tmp_path / "figure.png")]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: no run.json in or below {tmp_path};")
    assert ended.stderr.count("\n") == 1


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        report.main(["--help"])
    text = capsys.readouterr().out
    assert [
        option
        for option in ("DIR", "--out", "--table", "--last", "--level", "--drift", "examples:", "documentation:")
        if option not in text
    ] == []
