"""Command line of the report."""

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fedprox.report import __main__ as report


@pytest.fixture
def sweep(tmp_path, write_run):
    """Two repetitions with last accuracies 0.6 and 0.8: mean 0.7, standard deviation 0.2 / sqrt(2) = 0.141."""
    write_run(tmp_path / "sweep" / "0", [0.1, 0.6], repetition=0)
    write_run(tmp_path / "sweep" / "1", [0.1, 0.8], repetition=1)
    return tmp_path / "sweep"


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_ending_determines_the_format_of_the_figure(sweep, tmp_path, ending, magic):
    out = tmp_path / f"figure.{ending}"
    assert report.main([str(sweep), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(magic)


def test_several_files_get_the_same_figure_and_the_last_line_names_them(sweep, tmp_path, capsys):
    files = [tmp_path / "figure.png", tmp_path / "figure.pdf"]
    arguments = ["--out", str(files[0]), "--out", str(files[1]), "--width", "column"]
    assert report.main([str(sweep), *arguments, "--ylim", "0", "1"]) == 0
    assert all(file.stat().st_size for file in files)
    assert capsys.readouterr().out.splitlines()[-1] == f"figure: {files[0]}, {files[1]}"
    assert round(Image.open(files[0]).width / 300, 2) == 3.3


def test_a_figure_that_is_higher_than_a_page_is_drawn_with_a_warning(sweep, write_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    for level in (0.0, 0.5):
        write_run(sweep / str(level), [0.1, 0.7], stragglers_fraction=level)
    column = [str(sweep), "--out", str(tmp_path / "figure.pdf"), "--width", "column"]
    assert report.main(column) == 0
    expected = "warning: the figure is 14 inches high, more than a page; draw fewer data sets or straggler levels in it"
    assert capsys.readouterr().err.startswith(expected)
    assert report.main([*column, "--metric", "accuracy"]) == 0
    assert capsys.readouterr().err == ""


def test_the_table_is_printed_and_the_last_line_names_the_figure(sweep, tmp_path, capsys):
    out = tmp_path / "figure.png"
    assert report.main([str(sweep), "--out", str(out), "--last", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "accuracy (last 1)" in lines[0]
    assert " ".join(lines[2].split()).startswith("| mnist | 90% | FedAvg | 2 | 0.700 ± 0.141 | 0.300 ± 0.141 |")
    assert lines[-1] == f"figure: {out}"


def test_a_table_is_written_as_printed_in_markdown_and_with_all_digits_in_csv(sweep, tmp_path, capsys):
    markdown, comma = tmp_path / "table.md", tmp_path / "table.csv"
    tables = ["--table", str(markdown), "--table", str(comma)]
    assert report.main([str(sweep), "--out", str(tmp_path / "f.png"), *tables, "--last", "1"]) == 0
    assert capsys.readouterr().out.startswith(markdown.read_text())
    (row,) = pd.read_csv(StringIO(comma.read_text())).to_dict("records")
    assert row["test_accuracy_mean"] == pytest.approx(0.7)
    assert row["test_accuracy_std"] == pytest.approx(0.2 / 2**0.5)


def test_a_baseline_adds_paired_differences_to_the_tables_and_latex_has_them_anyway(sweep, write_run, tmp_path, capsys):
    for repetition, accuracy in enumerate((0.7, 0.8)):
        write_run(sweep / f"mu{repetition}", [0.1, accuracy], algorithm="FedProx (mu = 1)", mu=1, repetition=repetition)
    latex, comma = tmp_path / "table.tex", tmp_path / "table.csv"
    out = ["--out", str(tmp_path / "figure.png"), "--last", "1"]
    assert report.main([str(sweep), *out, "--table", str(latex), "--table", str(comma)]) == 0
    assert "difference" not in capsys.readouterr().out
    assert "difference_mean" not in comma.read_text()
    assert r"Difference to FedAvg \\" in latex.read_text()
    arguments = ["--baseline", "FedProx (mu = 1)", "--table", str(latex), "--table", str(comma)]
    assert report.main([str(sweep), *out, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip("| ").endswith("difference to FedProx (mu = 1)")
    assert lines[2].rstrip("| ").endswith("-0.050 [-0.685, +0.585], n = 2")  # -0.05 ± 12.706 * 0.0707 / sqrt(2)
    assert lines[3].rstrip("| ").endswith("| -")
    assert pd.read_csv(comma)["difference_mean"][0] == pytest.approx(-0.05)
    assert r"Difference to FedProx ($\mu = 1$) \\" in latex.read_text()


def test_a_level_adds_a_column_with_the_rounds_to_it(sweep, tmp_path, capsys):
    assert report.main([str(sweep), "--out", str(tmp_path / "figure.png"), "--level", "0.7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip("| ").endswith("rounds to 0.7")
    assert lines[2].rstrip("| ").endswith("1.0 (1 of 2 runs)")


def test_time_takes_the_place_of_rounds_in_the_figure_and_the_table(sweep, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    out = ["--out", str(tmp_path / "figure.png")]
    assert report.main([str(sweep), *out, "--by-time", "wall", "--level", "0.7"]) == 0
    assert {axes.get_xlabel() for axes in drawn[0].axes} <= {"", "seconds"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip("| ").endswith("seconds to 0.7")
    assert lines[2].rstrip("| ").endswith("0.5 (1 of 2 runs)")  # half a second a round


def test_metric_accuracy_draws_the_accuracy_alone(sweep, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    assert report.main([str(sweep), "--out", str(tmp_path / "figure.png"), "--metric", "accuracy"]) == 0
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["test accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "figure.gif"], "error: --out must end in .png or .pdf or .svg, got figure.gif"),
        (["--out", "figure.png", "--table", "t.xls"], "error: --table must end in .md or .csv or .tex, got t.xls"),
        (
            ["--out", "no/figure.png"],
            "error: --out names no/figure.png, but the folder no does not exist; create it first",
        ),
        (["--out", "taken.png"], "error: --out must name a file, but taken.png is a directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line_before_any_run_is_read(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    assert report.main(["no-such-folder", *arguments]) == 2  # which no message names
    assert capsys.readouterr().err == f"{message}\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--drift"], "no run has recorded its drift; remove --drift"),
        (
            ["--last", "0"],
            "last must be >= 1 and below 4294967296, got 0; it is the number of last rounds that are averaged",
        ),
        (
            ["--last", str(10**20)],
            f"last must be >= 1 and below 4294967296, got {10**20}; it is the number of last rounds that are averaged",
        ),
        (
            ["--by-time", "virtual"],
            "--by-time virtual needs runs with a virtual clock, and not all of these have one; run them with devices=, "
            "such as devices=lognormal",
        ),
        (
            ["--width", "wide"],
            "--width must be column (3.3 inches), page (6.9 inches) or inches, 2 to 40, got wide",
        ),
        (
            ["--ylim", "1", "0.5"],
            "--ylim must be two accuracies in order, within 0 and 1, got 1 0.5; such as 0 1",
        ),
        (["--baseline", "FedAvgg"], "--baseline must be an algorithm of these runs, got FedAvgg; did you mean FedAvg?"),
        (
            ["--baseline", "FedAvg"],
            "--baseline FedAvg has nothing to be compared with; add runs of another algorithm",
        ),
        (["--level", "60"], "level must be above 0 and at most 1, got 60; for 60% give 0.6"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line_and_no_figure(sweep, tmp_path, capsys, option, message):
    assert report.main([str(sweep), "--out", str(tmp_path / "figure.png"), *option]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "figure.png").exists()


def test_a_folder_without_permission_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert report.main(["no-such-folder", "--out", str(tmp_path / "figure.png")]) == 2
    assert capsys.readouterr().err.endswith("figure.png, which is not writable; choose another file\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full stands for a full disk")
def test_a_full_disk_is_one_line(sweep, tmp_path, capsys):
    (tmp_path / "full.png").symlink_to("/dev/full")
    assert report.main([str(sweep), "--out", str(tmp_path / "full.png")]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'full.png'} cannot be read or written: No space left on device\n"


def test_the_module_runs_as_a_program_and_fails_with_status_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "fedprox.report", str(tmp_path), "--out", str(tmp_path / "figure.png")]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: no run.json in {tmp_path} or below;")
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_is_one_line_and_status_130(sweep, tmp_path, monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupt)
    assert report.main([str(sweep), "--out", str(tmp_path / "figure.png")]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        report.main(["--help"])
    text = capsys.readouterr().out
    options = "DIR --out --table --width --ylim --baseline --last --level --drift examples: documentation:"
    assert [option for option in options.split() if option not in text] == []
