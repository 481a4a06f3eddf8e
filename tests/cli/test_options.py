"""Options: presets of one's own and completion, as docs/configuration.md has them, and mistakes, which are one line."""

import importlib
import json

import pytest

PRESET = """# @package _global_
defaults:
  - override /dataset: digits
num_rounds: 3
mu: 0.125
"""


def test_a_folder_of_presets_is_read_besides_ours_and_is_not_needed_to_resume_a_run(fedprox, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(PRESET)
    ended = fedprox("--config-dir", "mine", "experiment=short", "engine=local")
    assert (ended.status, ended.err) == (0, "")
    assert fedprox("resume=run", "num_rounds=4").status == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["dataset"]["_target_"] == "fedprox.data.sources.digits.digits"
    assert (settings["num_rounds"], settings["mu"]) == (4, 0.125)


def test_a_shell_completes_choices_and_settings(fedprox, monkeypatch):
    for typed, completed in {
        "dataset=mn": "dataset=mnist dataset=mnist_pooled",
        "stragg": "stragglers_fraction=",
    }.items():
        monkeypatch.setenv("COMP_LINE", f"fedprox {typed}")
        ended = fedprox("--shell-completion", "query=bash")
        assert (ended.status, ended.out, ended.err) == (0, f"{completed}\n", "")


MISTAKES = {
    "fedprox.report": [
        [],
        ["runs"],
        ["--out"],
        ["runs", "--out", "a.png", "--last", "ten"],
        ["runs", "--out", "a.png", "--metric", "loss"],
        ["runs", "--out", "a.png", "--drift", "--metric", "accuracy"],
        ["runs", "--out", "a.png", "--no-such-option"],
        ["watch"],
        ["watch", "runs", "--every", "often"],
        ["partition", "--no-such-option"],
        ["partition", "--compare"],
    ],
    "fedprox.reproduce": [[], ["fig13"], ["fig1", "--seeds", "0"], ["fig1", "--datasets", "mars"], ["fig1", "--no"]],
    "benchmarks": [["--no-such-option"], ["W1", "--repeats"]],
}


@pytest.mark.parametrize(
    ("package", "arguments"), [(package, each) for package, lists in MISTAKES.items() for each in lists]
)
def test_a_wrong_option_is_one_line_and_status_2(package, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"{package}.__main__").main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert err.endswith("; see --help\n")
