"""The figure of personal models, and its option."""

import pytest
from matplotlib.figure import Figure

from fedprox.errors import UserError
from fedprox.report import __main__ as report
from fedprox.report.personal import personal, read_personal
from fedprox.report.summary import read_runs

TABLE = (
    "client,num_examples,global_accuracy,personal_accuracy,has_trained\r\n"
    "0,4,0.5,0.75,True\r\n2,1,0.0,1.0,True\r\n3,2,1.0,0.5,False\r\n"
)


@pytest.fixture
def sweep(tmp_path, write_run):
    """Two repetitions of Ditto, and a run without personal models."""
    for number in range(2):
        more = {"personal_accuracy": [0.1, 0.6 + 0.2 * number]}
        folder = write_run(tmp_path / str(number), [0.1, 0.6], algorithm="Ditto", repetition=number, more=more)
        (folder / "personal.csv").write_text(TABLE)
    write_run(tmp_path / "2", [0.1, 0.7])
    return tmp_path


def test_every_client_of_every_run_is_a_point_in_the_panel_of_its_experiment(sweep):
    frame = read_runs([sweep])
    assert read_personal(frame)["personal_accuracy"].tolist() == [0.75, 1.0, 0.5] * 2
    (panel,) = personal(frame).axes
    (points,) = panel.collections
    assert points.get_offsets().tolist() == [[0.5, 0.75], [0.0, 1.0], [1.0, 0.5]] * 2
    assert points.get_sizes().tolist() == [90.0, 22.5, 45.0] * 2
    assert [text.get_text() for text in panel.texts] == ["0.500 → 0.750"]
    assert panel.get_title(loc="left") == "MNIST, 90% stragglers\nDitto"


def test_experiments_have_panels_of_their_own(sweep, write_run):
    for number, stragglers in enumerate((0.0, 0.5)):
        folder = write_run(
            sweep / f"more{number}", [0.1], algorithm="FedProx (mu = 1, x)", stragglers_fraction=stragglers
        )
        (folder / "personal.csv").write_text(TABLE)
    panels = [axes.get_title(loc="left") for axes in personal(read_runs([sweep])).axes if axes.get_visible()]
    where = [f"MNIST, {level}% stragglers" for level in (0, 50, 90)]
    assert panels == [f"{where[0]}\nFedProx\n(mu = 1, x)", f"{where[1]}\nFedProx\n(mu = 1, x)", f"{where[2]}\nDitto"]


def test_the_option_draws_it_and_the_table_has_the_means(sweep, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    assert report.main([str(sweep), "--personal", "--last", "1", "--out", str(tmp_path / "figure.png")]) == 0
    assert len(drawn[0].axes) == 1
    out = capsys.readouterr().out
    assert "personal accuracy (last 1)" in out
    assert "0.700 ± 0.141" in out


def test_runs_without_personal_models_and_damaged_tables_are_refused(sweep):
    (sweep / "0" / "personal.csv").write_text("client,num_examples\r\n0,4\r\n")
    with pytest.raises(UserError, match=r"0/personal\.csv cannot be used: .*; fix it or move this run away"):
        personal(read_runs([sweep]))
    with pytest.raises(UserError, match="--personal needs runs with personal models; run them with personalisation=d"):
        personal(read_runs([sweep / "2"]))
