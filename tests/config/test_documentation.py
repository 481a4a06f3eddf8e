"""Every setting and every choice is documented, and docs/configuration.md is what the schema and conf/ say."""

import re
from pathlib import Path

from fedprox.config import documentation
from fedprox.config.documentation import SECTIONS, all_settings, choices, groups, help_text, markdown
from fedprox.config.schema import Config

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_up_to_date():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == markdown(), "run `make docs` and commit docs/configuration.md"


def test_every_setting_is_in_one_section():
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(["experiment", *Config.model_fields])


def test_every_setting_has_a_meaning_and_a_default_from_the_files():
    documented = {setting.name: setting for setting in all_settings()}
    assert {
        name for name in Config.model_fields if not any(each.partition(".")[0] == name for each in documented)
    } == set()
    assert [each.name for each in documented.values() if not each.meaning.endswith(".")] == []
    expected = {
        "num_rounds": ("100", "an integer >= 1 and below 2^32"),
        "num_clients": ("1000", "an integer >= 1 and below 2^32, or null"),
        "mu": ("1.0", "finite and >= 0"),
        "weight_decay": ("0.001", "finite and >= 0"),
        "last_batch": ("keep", "keep, drop or merge"),
        "server_device": ("cpu", "cpu, cuda or cuda:<number>"),
        "adaptive_mu.patience": ("5", "an integer >= 1 and below 2^32"),
        "evaluation.per_class": ("false", "true or false"),
        "model.init": ("default", "text"),
        "protocol": ("flower", "authors, flower, paper"),
        "data_dir": ("data", "text"),
        "repeat_num": ("0", "an integer >= 0 and below 2^32"),
    }
    assert {name: (documented[name].default, documented[name].values) for name in expected} == expected


def test_every_choice_of_every_group_has_a_meaning():
    meanings = {(group, choice.name): choice.meaning for group in groups() for choice in choices(group)}
    assert len(meanings) > 50
    assert {key: text for key, text in meanings.items() if not re.fullmatch(r"[\w'].*[.*]", text)} == {}


def test_a_choice_lists_what_it_sets_but_not_what_follows_from_other_settings():
    def sets(group: str, name: str) -> dict[str, str]:
        (choice,) = [choice for choice in choices(group) if choice.name == name]
        return {setting.name: setting.default for setting in choice.settings}

    assert sets("dataset", "synthetic_1_1") == {
        "partition": "natural",
        "num_clients": "30",
        "dataset.alpha": "1.0",
        "dataset.beta": "1.0",
    }
    assert sets("dataset", "shakespeare")["mu"] == "0.001"
    assert sets("logger", "mlflow") == {"logger.mlflow.tracking_uri": "null", "logger.mlflow.experiment": "fedprox"}
    assert sets("model", "cnn") == {}  # model.init is a setting of the schema


def test_a_new_file_documents_itself(tmp_path, monkeypatch):
    folder = tmp_path / "partition"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# My own.\n_target_: my.partition\nspread: 2.5 # wider\nseed: ${seed}\n")
    monkeypatch.setattr(documentation, "CONF", tmp_path)
    (choice,) = choices("partition")
    assert (choice.name, choice.meaning) == ("mine", "My own.")
    assert [(each.name, each.default, each.meaning) for each in choice.settings] == [
        ("partition.spread", "2.5", "wider")
    ]


def test_the_help_has_examples_defaults_meanings_and_the_address():
    text = help_text("https://example.org/docs", width=80)
    assert "examples:\n  fedprox experiment=digits" in text
    assert "Documentation: https://example.org/docs" in text
    assert "  mu=1.0\n      Weight of the proximal term." in text
    assert "`" not in text
    assert max(map(len, text.partition("Presets:")[2].splitlines())) <= 80
