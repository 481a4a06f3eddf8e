"""Every setting of conf/ has a value that is refused, in one line that names it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedprox.config.compose import CONF

# What each setting of conf/config.yaml may not be.
TOP = {
    "num_clients": ("0", "-1", "a", "4294967296", "5000", "[1]"),
    "num_epochs": ("0", "100001", "1.5", "1e400"),
    "batch_size": ("0", "null", "99999999999999999999"),
    "last_batch": ("often", "null"),
    "num_rounds": ("0", "inf", "true and false", "4294967296"),
    "clients_per_round": ("0", "6", "''"),
    "stragglers_fraction": ("-0.1", "nan", "half"),
    "learning_rate": ("0", "nan", "-inf"),
    "mu": ("-1", "1e400", "{a: 1}"),
    "adaptive_mu.enabled": ("2", "maybe"),
    "adaptive_mu.initial": ("-1", "nan"),
    "adaptive_mu.step": ("0", "inf"),
    "adaptive_mu.patience": ("0", "1.5"),
    "sampling": ("often", "1", "null"),
    "schedule.name": ("linear", "null"),
    "schedule.final": ("-0.1", "nan", "2"),
    "momentum": ("1", "-0.1", "nan"),
    "weight_decay": ("-1", "inf"),
    "mixed_precision": ("true", "half"),
    "server_device": ("tpu", "meta", "cpu:x", "''"),
    "client_resources.num_cpus": ("0", "nan"),
    "client_resources.num_gpus": ("-1", "inf"),
    "solver": ("fast", "''"),
    "batch_statistics": ("global", "1"),
    "seed": ("-1", "4294967296", "x"),
    "data_dir": ("null", "[a]"),
    "hold_out": ("1", "-0.1", "nan"),
    "on_client_error": ("continue", "null"),
    "on_divergence": ("often", "null"),
    "round_timeout": ("0", "nan", "a"),
    "on_timeout": ("continue", "null"),
    "early_stopping.metric": ("loss", "round", "1"),
    "early_stopping.patience": ("0", "1.5"),
    "early_stopping.min_delta": ("-1", "nan"),
    "checkpoint.every": ("0", "a"),
    "checkpoint.keep": ("0", "1.5"),
    "resume": ("nowhere", "/"),
    "branch_from": ("nowhere", "/"),
    "branch_round": ("1", "a"),
}
NAMES = {"name": ("nope", "1"), "every": ("0", "1.5"), "per_class": ("2",), "per_client": ("null",)}
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
    "evaluation/clients": NAMES,
    "evaluation/server": NAMES,
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
    content = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    flat = {
        f"{name}.{key}" if key else name
        for name, value in content.items()
        if name not in ("defaults", "hydra")
        for key in (value if isinstance(value, dict) else [""])
    }
    assert flat - TOP.keys() == set()
    for group in ("augmentation", "dataset", "engine", "evaluation", "feature_skew", "model", "partition"):
        for file in sorted((CONF / group).glob("*.yaml")):
            if not file.stem.startswith("synthetic_"):  # which have the same settings
                wrong = OPTIONS.get(f"{group}/{file.stem}", {})
                assert settings_of(group, file.stem) - wrong.keys() == set(), Path(group, file.stem)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TOP.items() for value in values])
def test_a_wrong_value_of_a_setting_is_told_with_its_name(refused, name, value):
    base = [each for each in SMALL if not each.startswith(f"{name}=")]
    line = refused(*base, f"{name}={value}")
    assert name.rpartition(".")[2] in line


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
