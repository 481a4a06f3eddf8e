"""Presets of one's own and completion, as docs/configuration.md has them."""

PRESET = """# @package _global_
defaults:
  - override /dataset: digits
num_rounds: 3
"""


def test_a_folder_of_presets_is_read_besides_ours(fedprox, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(PRESET)
    ended = fedprox("--config-dir", "mine", "experiment=short", "--cfg", "job")
    assert (ended.status, ended.err) == (0, "")
    assert "num_rounds: 3\n" in ended.out
    assert "_target_: fedprox.data.sources.digits.digits\n" in ended.out


def test_a_shell_completes_choices_and_settings(fedprox, monkeypatch):
    for typed, completed in {
        "dataset=mn": "dataset=mnist dataset=mnist_pooled",
        "stragg": "stragglers_fraction=",
    }.items():
        monkeypatch.setenv("COMP_LINE", f"fedprox {typed}")
        ended = fedprox("--shell-completion", "query=bash")
        assert (ended.status, ended.out, ended.err) == (0, f"{completed}\n", "")
