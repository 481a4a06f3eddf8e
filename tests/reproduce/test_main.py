"""Command line of the reproduction."""

import pandas as pd
import pytest

from fedprox.reproduce import __main__ as command
from fedprox.reproduce import runs
from fedprox.reproduce.figures import draw

pytestmark = pytest.mark.usefixtures("no_files")


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """Use an empty data folder."""
    monkeypatch.setenv("FEDPROX_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def with_fake_runs(monkeypatch, fake_run):
    """Let the command line use fake runs."""
    real = runs.run_missing
    monkeypatch.setattr(command, "run_missing", lambda jobs, out, place: real(jobs, out, place, run=fake_run))
    return fake_run


def test_figure_2_from_the_command_to_the_figure_and_the_table(reproduce, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(command, "draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    arguments = ["fig2", "--seeds", "1", "--rounds", "2", "--datasets", "synthetic_iid,synthetic_1_1"]
    status, out, err = reproduce(*arguments)
    assert (status, err) == (0, "")
    assert out.splitlines()[-3:] == [f"reproduction/fig2.{ending}" for ending in ("png", "md", "csv")]
    assert (tmp_path / "reproduction/fig2.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "reproduction/fig2.md").read_text() in out

    (canvas,) = drawn
    assert [axes.get_title(loc="left") for axes in canvas.axes] == ["Synthetic-IID", "Synthetic(1,1)", "", ""]
    assert [axes.get_ylabel() for axes in canvas.axes] == ["training loss", "", "variance of local gradients", ""]
    table = pd.read_csv(tmp_path / "reproduction/fig2.csv").set_index(["dataset", "line"])
    assert len(table) == 4
    for place, dataset in enumerate(("synthetic_iid", "synthetic_1_1")):
        for mu in (0, 1):
            name = f"{dataset},mu={mu},stragglers_fraction=0,num_rounds=2"
            metrics = pd.read_csv(tmp_path / "reproduction/runs" / name / "metrics.csv")
            for row, metric in enumerate(("train_loss", "gradient_variance")):
                line = canvas.axes[2 * row + place].get_lines()[mu]
                assert line.get_label() == f"FedProx (mu = {mu})"
                assert line.get_xdata().tolist() == [0, 1, 2]
                assert line.get_ydata().tolist() == metrics[metric].tolist()
                values = table.loc[(dataset, f"FedProx (mu = {mu})")]
                assert values[f"{metric}_mean"] == metrics[metric].iloc[-1]
                assert values[f"{metric}_last10_mean"] == pytest.approx(metrics[metric].mean())

    assert reproduce(*arguments)[1].startswith("4 runs, 4 of them already done\n\n|")


def test_data_sets_without_files_are_left_out_with_a_line_each(reproduce, with_fake_runs):
    status, out, err = reproduce("fig8", "--rounds", "1")
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert [line.split()[2] for line in lines] == ["mnist", "femnist", "shakespeare", "sent140"]
    assert "set FEDPROX_DATA_DIR to the folder that holds MNIST, or download it with --datasets mnist" in lines[0]
    assert lines[2].endswith("set --path shakespeare=<LEAF folder>")
    assert {folder.name.split(",")[0] for folder in with_fake_runs.folders} == {"synthetic_1_1"}


def test_data_sets_with_files_are_included(reproduce, with_fake_runs, tmp_path):
    (tmp_path / "data/MNIST/raw").mkdir(parents=True)
    (tmp_path / "data/MNIST/raw/train-images-idx3-ubyte.gz").touch()
    (tmp_path / "plays/train").mkdir(parents=True)
    _, out, _ = reproduce("fig8", "--rounds", "1", "--path", "shakespeare=plays")
    assert [line.split()[2] for line in out.splitlines() if "left out" in line] == ["femnist", "sent140"]
    shown = {folder.name.split(",")[0] for folder in with_fake_runs.folders}
    assert shown == {"synthetic_1_1", "mnist", "shakespeare"}


def test_a_requested_data_set_without_files_is_an_error(reproduce, with_fake_runs):
    status, _, err = reproduce("fig1", "--datasets", "synthetic_1_1,shakespeare", "--rounds", "1")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: shakespeare needs ")
    assert with_fake_runs.folders == []


def test_all_draws_every_figure_and_does_shared_runs_once(reproduce, with_fake_runs, tmp_path):
    datasets = "synthetic_iid,synthetic_1_1"
    status, _, err = reproduce("all", "--datasets", datasets, "--rounds", "1", "--out", "all")
    assert (status, err) == (0, "")
    made = {file.name for file in (tmp_path / "all").iterdir()} - {"runs"}
    assert {name for name in made if name.endswith(".png")} == {f"fig{number}.png" for number in range(1, 13)}
    assert {"headline.md", "headline.csv"} <= made
    assert len(set(with_fake_runs.folders)) == len(with_fake_runs.folders)
    groups = [folder.name.split(",")[0] for folder in with_fake_runs.folders]
    assert groups == sorted(groups, key=datasets.split(",").index)  # so that each data set is loaded once


def test_the_headline_is_a_table(reproduce, with_fake_runs, tmp_path):
    status, out, _ = reproduce("headline", "--datasets", "synthetic_1_1", "--rounds", "3", "--seeds", "2")
    assert status == 0
    assert "mean of 1 data set (paper: +22, of five)" in out
    assert not (tmp_path / "reproduction/headline.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig13"], "fig12"),
        (["fig2", "--datasets", "cifar"], "unknown: cifar (choose from synthetic_iid, synthetic_0_0,"),
        (["fig2", "--seeds", "0"], "argument --seeds: must be an integer >= 1, got 0"),
        (["fig2", "--datasets", "mnist"], "error: fig2 shows synthetic_iid, synthetic_0_0,"),
        (["fig1", "--path", "plays=x"], "error: --path must be NAME=PATH, with NAME one of shakespeare,"),
        (["fig1", "--path", "shakespeare"], "error: --path must be NAME=PATH"),
        (["fig2", "--device", "tpu", "--rounds", "1"], "error: server_device must be cpu, cuda or cuda:<number>"),
        (["fig2", "--out", "taken", "--rounds", "1"], "error: taken/runs"),
    ],
)
def test_a_mistake_is_reported_with_status_2(reproduce, with_fake_runs, tmp_path, arguments, message):
    (tmp_path / "taken").touch()
    status, _, err = reproduce(*arguments)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert with_fake_runs.folders == []


def test_an_interruption_names_the_way_to_continue(reproduce, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_missing", interrupted)
    status, _, err = reproduce("fig2")
    assert status == 130
    assert err == "interrupted; repeat the command to continue\n"
