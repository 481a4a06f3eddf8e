"""A refused value of every setting of every group's option, in one line that names it."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedprox.config.compose import CONF

SIZES = {"sizes": "odd", "sigma": "51", "exponent": "11"}
# A value beyond the range of each setting of a group's option, or of another kind.
OPTIONS = {
    "arrival/buffered": {"concurrency": "6", "buffer": "11", "discount": "-1", "server_learning_rate": "0"},
    "arrival/deadline": {"seconds": "0"},
    "augmentation/crop_flip": {"pad": "64", "mode": "white", "flip": "1"},
    "dataset/csv": {"path": "nowhere", "label": "no", "client": "no", "split": "no", "features": "[no]"}
    | {"ignore": "[no]", "test_path": "nowhere", "test_fraction": "1", "normalise": "1", "separator": "ab"},
    "dataset/npz": {"path": "nowhere", "test_path": "nowhere", "test_fraction": "1", "normalise": "1"},
    "dataset/parquet": {"path": "nowhere"},  # its other settings are those of csv, and so are hugging_face's
    "dataset/hugging_face": {"path": "nowhere"},
    "dataset/image_folder": {"path": "nowhere", "size": "4097", "channels": "2"}
    | {"test_fraction": "1", "skip_broken": "1", "cache_dir": "1"},
    "dataset/femnist": {"classes_per_client": "11", "sigma": "6"},
    "dataset/leaf": {"path": "nowhere", "num_classes": "0"},
    "dataset/sent140": {"path": "nowhere", "glove": "nowhere", "num_tokens": "4000000000", "max_words": "0"},
    "dataset/shakespeare": {"path": "nowhere"},
    "dataset/sites": {"format": "xml", "path": "nowhere", "hold_out": "1", "label": "no", "size": "a"}
    | {"channels": "a", "skip_broken": "1", "normalise": "1", "classes": "[a,a]", "cache_dir": "1"},
    "dataset/synthetic_0_0": {"alpha": "-1", "beta": "inf"},
    "dataset/synthetic_iid": {"iid": "2"},
    "devices/file": {"path": "nowhere"},
    "devices/lognormal": {"seconds_per_step": "0", "sigma": "11", "bandwidth": "0"},
    "engine/deployment": {"connection": "1", "folder": "1", "run_dir": "1", "sites": "[a,a]", "min_clients": "0"}
    | {"start_timeout": "-1"},
    "engine/local": {"num_threads": "1025"},
    "engine/ray": {"address": "nonsense"},
    "feature_skew/brightness": {"strength": "1.1"},
    "feature_skew/noise": {"strength": "1.1"},
    "feature_skew/rotation": {"strength": "181"},
    "loss/cross_entropy": {"label_smoothing": "1", "class_weights": "[0]"},
    "loss/focal": {"gamma": "-1"},
    "loss/bce": {"pos_weight": "0"},
    "model/cnn": {"init": "nowhere"},
    "model/cnn_tutorial": {"init": "1"},
    "model/logistic": {"init": "null"},
    "model/lstm_sent140": {"init": "1", "glove": "1", "max_words": "a", "hidden_size": "1.5"},
    "model/lstm_shakespeare": {"init": "1", "hidden_size": "null"},
    "model/mlp": {"init": "1", "hidden_size": "0", "batch_norm": "2"},
    "model/mlp_bn": {"init": "1", "hidden_size": "0", "batch_norm": "2"},
    "model/moderate_cnn": {"init": "1"},
    "model/pfl_cnn": {"init": "nowhere"},
    "model/resnet18_bn": {"init": "nowhere"},
    "model/resnet18_gn": {"init": "nowhere", "groups": "3"},
    "optimizer/adam": {"betas": "[2,0.9]", "eps": "-1"},
    "model/torchvision": {"init": "nowhere", "size": "0", "weights": "none"},
    "optimizer/adamw": {"betas": "1", "eps": "a"},
    "personalisation/apfl": {"alpha": "0"},
    "personalisation/ditto": {"weight": "-1"},
    "personalisation/fedper": {"names": "1"},
    "personalisation/fedrep": {"body_epochs": "0", "max_bytes": "0"},
    "personalisation/fine_tuning": {"epochs": "1.5"},
    "contribution/shapley": {"permutations": "0"},
    "secure_aggregation/masked": {"bits": "7", "clip": "0", "threshold": "1", "dropouts": "1.5", "masks": "2"},
    "partition/dirichlet": {"alpha": "1001", "min_examples": "100000", **SIZES},
    "partition/flower": {"partitioner": "Odd"},
    "partition/iid": SIZES,
    "partition/pathological": {"classes_per_client": "11", **SIZES},
    "partition/power_law": {"classes_per_client": "11", "sigma": "51"},
    "partition/shards": {"shards_per_client": "100000"},
}
SMALL = ("dataset=digits", "engine=local", "num_rounds=1", "num_clients=5", "clients_per_round=2")


def own_file(folder: Path, form: str) -> Path:
    """Write a file of the user's own data."""
    file = folder / f"own.{form}"
    if form == "csv":
        file.write_text("x,label\n" + "1,a\n2,b\n" * 5)
    else:
        np.savez(file, x=np.zeros((10, 1)), y=["a", "b"] * 5)
    return file


def settings_of(group: str, option: str) -> set[str]:
    """Return the names of an option's own settings, without references to others."""
    content = OmegaConf.load(CONF / group / f"{option}.yaml")
    node = content.get(group, content)
    raw = OmegaConf.to_container(node)
    passed_on = {"name", "data_dir", "num_clients", "seed", "num_cpus", "num_gpus", "max_actors"}
    return {name for name in raw if not name.startswith("_") and name != "defaults"} - passed_on


def test_no_setting_is_forgotten():
    for group in (
        *("arrival", "augmentation", "contribution", "dataset", "devices", "engine", "feature_skew", "loss"),
        *("model", "optimizer", "partition", "secure_aggregation", "solver"),
    ):
        for file in sorted((CONF / group).glob("*.yaml")):
            # All of synthetic_* have the same settings, of_clients goes with a script, and those of others are null.
            if not file.stem.startswith(("synthetic_", "of_clients", "none", "synchronous")):
                wrong = OPTIONS.get(f"{group}/{file.stem}", {})
                checked = OPTIONS["dataset/csv"] if file.stem in ("parquet", "hugging_face") else wrong
                assert settings_of(group, file.stem) - checked.keys() == set(), Path(group, file.stem)


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [(option, name, value) for option, each in OPTIONS.items() for name, value in each.items()],
)
def test_a_wrong_value_of_a_groups_setting_is_refused_by_name(refused, tmp_path, option, name, value):
    group, _, choice = option.partition("/")
    base = [each for each in SMALL if not each.startswith(f"{group}=")]
    if group == "dataset":  # some of them have no clients to choose
        base = [each for each in base if not each.startswith("num_clients")] + ["partition=natural", "num_clients=2"]
    if name != "path" and choice in ("image_folder", "leaf"):
        base.append("dataset.path=.")
    if choice in ("flower", "hugging_face"):
        pytest.importorskip("flwr_datasets")
    if choice in ("csv", "npz") and name != "path":
        base.append(f"dataset.path={own_file(tmp_path, choice)}")
    if choice == "sites":
        base += [*(["dataset.format=csv"] * (name != "format")), *(["dataset.path=places"] * (name != "path"))]
        (tmp_path / "places" / "a").mkdir(parents=True)
        (tmp_path / "places" / "a" / "train.csv").write_text("x,label\n" + "1,2\n2,3\n" * 10)
    if choice == "sent140" and name != "glove":
        (tmp_path / "words.txt").write_text("a 1 2\n")
        base.append("dataset.glove=words.txt")
    sizes = ["partition.sizes=lognormal"] * (name == "sigma") + ["partition.sizes=zipf"] * (name == "exponent")
    sizes = sizes if group == "partition" and choice != "power_law" else []
    line = refused(f"{group}={choice}", *base, *sizes, f"{group}.{name}={value}")
    assert name in line or value in line, line
