"""Every setting of a group's option has a value that is refused, in one line that names it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedprox.config.compose import CONF

INIT = ("nowhere", "1", "null")
SIZES = {"sizes": ("odd", "1"), "sigma": ("-1", "nan", "51", "a"), "exponent": ("-1", "inf", "11")}
# What each setting of a group's option may not be; a setting that is passed on from above is refused there.
OPTIONS = {
    "augmentation/crop_flip": {"pad": ("-1", "64", "a"), "mode": ("white", "1"), "flip": ("1", "null")},
    "dataset/image_folder": {
        "path": ("nowhere", "null", "1"),
        "size": ("0", "4097", "a"),
        "channels": ("2", "1.5"),
        "test_fraction": ("1", "nan"),
        "skip_broken": ("1",),
        "cache_dir": ("1",),
    },
    "dataset/femnist": {"classes_per_client": ("0", "11"), "sigma": ("-1", "6", "nan")},
    "dataset/leaf": {"path": ("nowhere", "null"), "num_classes": ("0", "a")},
    "dataset/sent140": {
        "path": ("nowhere", "null"),
        "glove": ("nowhere", "null"),
        "num_tokens": ("0", "4000000000", "a"),
        "max_words": ("0", "a"),
    },
    "dataset/shakespeare": {"path": ("nowhere", "null")},
    "dataset/synthetic_0_0": {"alpha": ("-1", "nan", "a"), "beta": ("-1", "inf")},
    "dataset/synthetic_iid": {"iid": ("2", "null")},
    "engine/local": {"num_threads": ("0", "1025", "a")},
    "engine/ray": {"address": ("nonsense", "1")},
    "feature_skew/brightness": {"strength": ("-0.1", "1.1", "nan")},
    "feature_skew/noise": {"strength": ("-0.1", "1.1", "a")},
    "feature_skew/rotation": {"strength": ("-1", "181", "null")},
    "model/cnn": {"init": INIT},
    "model/cnn_tutorial": {"init": ("1", "null")},
    "model/logistic": {"init": INIT},
    "model/lstm_sent140": {"init": ("1",), "glove": ("1",), "max_words": ("a",), "hidden_size": ("a", "1.5")},
    "model/lstm_shakespeare": {"init": ("1",), "hidden_size": ("a", "null")},
    "model/moderate_cnn": {"init": ("1", "null")},
    "model/resnet18_bn": {"init": INIT},
    "model/resnet18_gn": {"init": INIT, "groups": ("0", "3", "-1", "a", "128")},
    "partition/dirichlet": {"alpha": ("0", "1001", "nan"), "min_examples": ("0", "100000", "a"), **SIZES},
    "partition/iid": SIZES,
    "partition/pathological": {"classes_per_client": ("0", "11"), **SIZES},
    "partition/power_law": {"classes_per_client": ("0", "11", "a"), "sigma": ("-1", "51", "nan")},
    "partition/shards": {"shards_per_client": ("0", "100000", "1.5")},
}
SMALL = ("dataset=digits", "engine=local", "num_rounds=1", "num_clients=5", "clients_per_round=2")


def settings_of(group: str, option: str) -> set[str]:
    """Return the names of an option's own settings; references to others are set there."""
    content = OmegaConf.load(CONF / group / f"{option}.yaml")
    node = content.get(group, content)
    raw = OmegaConf.to_container(node)
    passed_on = {"data_dir", "num_clients", "seed", "num_cpus", "num_gpus", "max_actors"}
    return {name for name in raw if not name.startswith("_") and name != "defaults"} - passed_on


def test_no_setting_is_forgotten():
    for group in ("augmentation", "dataset", "engine", "feature_skew", "model", "partition"):
        for file in sorted((CONF / group).glob("*.yaml")):
            if not file.stem.startswith("synthetic_"):  # which have the same settings
                wrong = OPTIONS.get(f"{group}/{file.stem}", {})
                assert settings_of(group, file.stem) - wrong.keys() == set(), Path(group, file.stem)


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [(option, name, value) for option, each in OPTIONS.items() for name, values in each.items() for value in values],
)
def test_a_wrong_value_of_a_groups_setting_is_told_with_its_name(refused, tmp_path, option, name, value):
    group, _, choice = option.partition("/")
    base = [each for each in SMALL if not each.startswith(f"{group}=")]
    if group == "dataset":  # some of them have no clients to choose
        base = [each for each in base if not each.startswith("num_clients")] + ["partition=natural", "num_clients=2"]
    if name != "path" and choice in ("image_folder", "leaf"):
        base.append("dataset.path=.")
    if choice == "sent140" and name != "glove":
        (tmp_path / "words.txt").write_text("a 1 2\n")
        base.append("dataset.glove=words.txt")
    sizes = ["partition.sizes=lognormal"] * (name == "sigma") + ["partition.sizes=zipf"] * (name == "exponent")
    sizes = sizes if group == "partition" and choice != "power_law" else []
    line = refused(f"{group}={choice}", *base, *sizes, f"{group}.{name}={value}")
    assert name in line or value in line, line
