"""The table in LaTeX."""

import math
import shutil
import subprocess

import pytest

from fedprox.report.latex import escaped, latex_table
from fedprox.report.paired import with_differences
from fedprox.report.summary import read_runs, summarise


@pytest.fixture
def rows(tmp_path, write_run):
    """Return a function that makes the table of all runs in tmp_path and returns its rows as lists of cells."""

    def make(baseline="FedAvg", **options):
        frame = read_runs([tmp_path])
        summary = summarise(frame, last=1, **options)
        summary = with_differences(summary, frame, baseline, last=1) if baseline else summary
        lines = latex_table(summary, last=1).splitlines()
        return [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r"\\")]

    return make


def test_the_best_accuracy_and_loss_of_each_panel_are_bold_and_differences_have_intervals(tmp_path, write_run, rows):
    for repetition, accuracies in enumerate([(0.6, 0.7), (0.8, 0.9)]):
        for (algorithm, mu), last in zip((("FedAvg", 0), ("FedProx (mu = 1)", 1)), accuracies, strict=True):
            write_run(
                tmp_path / f"{algorithm}{repetition}", [0.1, last], algorithm=algorithm, mu=mu, repetition=repetition
            )
    header, average, proximal = rows()
    assert header[4:] == ["Accuracy (last 1)", "Loss (last 1)", "Difference to FedAvg"]
    assert average == ["MNIST", r"90\%", "FedAvg", "2", r"$0.700 \pm 0.141$", r"$0.300 \pm 0.141$", "--"]
    assert proximal[:4] == ["", "", r"FedProx ($\mu = 1$)", "2"]
    assert proximal[4:6] == [r"$\mathbf{0.800 \pm 0.141}$", r"$\mathbf{0.200 \pm 0.141}$"]
    assert proximal[6] == r"$+0.100\ [+0.100, +0.100]$"


def test_means_that_are_printed_alike_are_all_bold_and_what_diverged_is_not(tmp_path, write_run, rows):
    write_run(tmp_path / "0", [0.1, 0.7001], [2.3, math.nan])
    write_run(tmp_path / "1", [0.1, 0.6999], [2.3, 1.0], algorithm="Mine")
    _, *cells = rows(baseline=None)
    assert [row[4] for row in cells] == [r"$\mathbf{0.700}$", r"$\mathbf{0.700}$"]
    assert [row[5] for row in cells] == ["diverged", r"$\mathbf{1.000}$"]


def test_pairs_are_counted_where_they_are_fewer_than_the_runs(tmp_path, write_run, rows):
    for repetition in range(2):
        write_run(tmp_path / f"mine{repetition}", [0.1, 0.7], algorithm="Mine", repetition=repetition)
    write_run(tmp_path / "average", [0.1, 0.5])
    assert rows(level=0.6)[2][6:] == [r"$1.0 \pm 0.0$", "$+0.200$ ($n = 1$)"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5% of {x} #1 ~ ^ $y$", r"a\_b \& 5\% of \{x\} \#1 \textasciitilde{} \textasciicircum{} \$y\$"),
        ("\\input{secret}", r"\textbackslash{}input\{secret\}"),
        ("FedProx (mu = 0.1, Ditto 1)", r"FedProx ($\mu = 0.1$, Ditto 1)"),
    ],
)
def test_a_name_is_text_and_nothing_that_latex_would_carry_out(text, expected):
    assert escaped(text) == expected


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_sets_the_table(tmp_path, write_run):
    write_run(tmp_path / "runs" / "0", [0.1, 0.7], dataset="my_data#1")
    write_run(tmp_path / "runs" / "1", [0.1, 0.6], algorithm="Mine^2 (mu = 1)")
    frame = read_runs([tmp_path / "runs"])
    table = latex_table(with_differences(summarise(frame, level=0.65), frame, "FedAvg"), last=10)
    start = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "paper.tex").write_text(f"{start}\n{table}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
