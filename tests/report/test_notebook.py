"""The notebooks are stored without outputs and show the results of fedprox.report."""

import base64
import json
import os
import struct
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from fedprox.report.partition import divisions
from fedprox.report.partition_figure import table

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "plot_results.ipynb"
EXPLORE = ROOT / "notebooks" / "explore_partition.ipynb"
QUICKSTART = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def kernel_name(tmp_path, monkeypatch):
    """Return the name of a kernel with this Python and this checkout."""
    folder = tmp_path / "jupyter" / "kernels" / "this-python"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    return folder.name


def outputs(notebook):
    """Return the data of each output, MIME type -> content."""
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [dict(output.data) for output in shown if "data" in output]


@pytest.mark.parametrize("file", [NOTEBOOK, EXPLORE, QUICKSTART], ids=lambda file: file.stem)
def test_a_notebook_is_stored_without_outputs(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in cells if cell.outputs or cell.execution_count is not None] == []


def test_plot_results_shows_the_table_the_figures_and_a_slice(tmp_path, write_run, monkeypatch, kernel_name):
    # The mean of the last ten rounds 2 .. 11: a * (2 + ... + 11) / 10 = 6.5 a.
    first = write_run(tmp_path / "0", [0.05 * k for k in range(12)])
    second = write_run(tmp_path / "1", [0.08 * k for k in range(12)], algorithm="FedProx (mu = 2)", mu=2.0)
    monkeypatch.setenv("FEDPROX_RUNS", os.pathsep.join(map(str, (first, second))))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, kernel_name=kernel_name, timeout=600).execute(cwd=str(NOTEBOOK.parent))
    table, comparison, pivot, curves = outputs(notebook)
    assert "0.325" in table["text/plain"]
    assert "0.520" in table["text/plain"]
    assert "FedProx (mu = 2)" in pivot["text/plain"]
    assert "0.8" in pivot["text/plain"]  # round 10 of the second run
    for figure in (comparison, curves):
        width, height = struct.unpack(">II", base64.b64decode(figure["image/png"])[16:24])
        assert width > 2 * height > 400  # a row of two panels


def test_explore_partition_shows_figures_and_tables_of_several_alphas(kernel_name):
    notebook = nbformat.read(EXPLORE, as_version=4)
    NotebookClient(notebook, kernel_name=kernel_name, timeout=600).execute(cwd=str(EXPLORE.parent))
    dots, measures, heat, against = outputs(notebook)
    for figure in (dots, heat):
        width, height = struct.unpack(">II", base64.b64decode(figure["image/png"])[16:24])
        assert width > height > 300
    shown = table(
        divisions(["dataset=digits", "num_clients=20", "partition=dirichlet"], "partition.alpha=0.1,0.3,1,100")
    )
    assert len(shown) == 4
    assert measures["text/html"] == shown._repr_html_()
    assert [f"num_clients={clients}" in against["text/html"] for clients in (5, 20, 100)] == [True] * 3


def test_quickstart_shows_a_run_a_comparison_and_a_model_of_ones_own(kernel_name, tmp_path):
    (folder := tmp_path / "notebooks").mkdir()  # its runs are beside it, in ../runs
    notebook = nbformat.reads(QUICKSTART.read_text().replace("repetitions=3", "repetitions=1"), as_version=4)
    NotebookClient(notebook, kernel_name=kernel_name, timeout=600).execute(cwd=str(folder))
    streams = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in streams if output.output_type == "stream" and output.name == "stdout"] == []
    run, metrics, clients, curves, right, table, comparison, mine, again = outputs(notebook)
    assert run["text/plain"].startswith("<Run FedProx (mu = 0.1) on digits: finished, accuracy 0.95")
    assert float(right["text/plain"].strip("np.float64()")) == pytest.approx(0.9521, abs=1e-4)  # as the run says
    assert {"FedAvg", "FedProx"} <= set(table["text/plain"].split())
    assert "test_accuracy" in metrics["text/html"]
    assert "num_epochs" in clients["text/html"]
    assert [len(figure["image/png"]) > 10_000 for figure in (curves, comparison)] == [True, True]
    assert "on data: finished" in mine["text/plain"]
    assert again["text/plain"].startswith("(array([")
