"""Command line of the partition figure."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedprox.data.sources.site_facts import SiteFacts
from fedprox.errors import UserError
from fedprox.report import __main__ as report
from fedprox.report.partition import divisions

ROOT = Path(__file__).parents[2]
DIGITS = ["partition", "dataset=digits", "num_clients=8"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Return a function that calls the report in tmp_path and returns status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = report.main(list(arguments))
        return (status, *capsys.readouterr())

    return run


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_figure_is_written_and_the_measures_are_printed(call, tmp_path, ending, magic):
    status, out, err = call(*DIGITS, "--out", f"f.{ending}", "--compare", "partition=iid,shards")
    assert (status, err) == (0, "")
    assert (tmp_path / f"f.{ending}").read_bytes().startswith(magic)
    header, _, iid, shards, *_, last = out.splitlines()
    assert "Jensen-Shannon distance" in header
    # 1442 examples in eight parts of 180 or 181, of which int(0.9 n) = 162 are trained on.
    for row, name in ((iid, "iid"), (shards, "shards")):
        words = [word.strip() for word in row.strip("|").split("|")]
        assert words[:7] == [f"partition={name}", "8", "1296", "162", "162", "162", "0.000"]
    assert last == f"figure: f.{ending}"


def test_options_may_be_given_anywhere_and_the_figure_has_a_default_name(call, tmp_path):
    assert call("partition", "dataset=digits", "--compare", "seed=1,2", "num_clients=8", "partition=iid")[0] == 0
    assert (tmp_path / "partition.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "f.gif"], "--out must end in .png or .pdf or .svg, got f.gif"),
        (["--out", "no/f.png"], "--out names no/f.png, but the folder no does not exist; create it first"),
        (["--compare", "mu=interval(0,1)"], "--compare must give 2 to 20 values, such as partition.alpha=0.1,1, got 0"),
        (["num_client=3"], "unknown setting 'num_client'; did you mean num_clients?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(call, tmp_path, arguments, message):
    status, out, err = call(*DIGITS, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full stands for a full disk")
def test_a_full_disk_is_one_line(call, tmp_path):
    (tmp_path / "full.png").symlink_to("/dev/full")
    status, _, err = call(*DIGITS, "--out", "full.png")
    assert (status, err) == (2, "error: full.png cannot be read or written: No space left on device\n")


def test_help_imports_neither_torch_nor_flower():
    code = (
        "import sys\nfrom fedprox.report.__main__ import main\n"
        "try:\n    main(['partition', '--help'])\nfinally:\n    assert not {'torch', 'flwr', 'ray'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert [word for word in ("SETTING=VALUE", "--compare", "--out", "example:") if word not in ended.stdout] == []


def told(name: str, counts: tuple[int, ...]) -> SiteFacts:
    return SiteFacts(name, 50, 5, (3,), "float32", ("cat", "dog"), counts=counts)


def test_a_federations_division_is_what_its_sites_share(monkeypatch, capsys):
    asked = []

    def ask_sites(config, folder):
        asked.append((config.dataset.name, list(folder.iterdir())))
        return [told("a", (30, 20)), told("b", (0, 45))]

    monkeypatch.setattr("fedprox.deployment.submit.ask_sites", ask_sites)
    (division,) = divisions(["dataset=sites", "engine=deployment"])
    assert asked == [("sites", [])]
    assert division.counts.tolist() == [[30, 20], [0, 45]]
    assert division.name == "sites, natural"
    warning = "count as 0, so figure and table lack examples (b: 5)"  # of b's 50
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, r"engine\.connection names another server"),
        ([told("a", (30, 20)), told("b", ())], "site b: it does not share"),
    ],
)
def test_a_division_that_is_not_known_here_is_refused(monkeypatch, answer, says):
    monkeypatch.setattr("fedprox.deployment.submit.ask_sites", lambda *_: answer)
    with pytest.raises(UserError, match=says):
        divisions(["dataset=sites", "engine=deployment"])
