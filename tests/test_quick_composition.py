"""The tests' composition is Hydra's."""

from collections.abc import Iterator

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import Container, DictConfig, ListConfig
from omegaconf.base import Metadata

from fedprox.config.compose import _conf_known
from tests import quick_composition
from tests.quick_composition import hydras_composition, without_time


def whole(overrides: list[str], config_name: str) -> DictConfig:
    """Return what Hydra's own command composes, with its settings for itself."""
    with _conf_known():
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration(config_name, overrides, run_mode=RunMode.RUN)


def nodes(container: Container) -> Iterator[tuple[str, object, Metadata]]:
    """Yield the name, value and metadata, such as the flag "struct", of all that a configuration holds."""
    keys = range(len(container)) if isinstance(container, ListConfig) else container
    for key in keys:
        node = container._get_node(key)
        is_container = isinstance(node, Container) and not (node._is_none() or node._is_missing())
        yield node._get_full_key(None), None if is_container else node._value(), node._metadata
        if is_container:
            yield from nodes(node)


@pytest.mark.parametrize(
    ("config_name", "overrides"),
    [
        ("config", []),
        ("fedavg", ["dataset=digits", "mu=0.5", "hydra.run.dir=here"]),
        ("config", ["experiment=paper_synthetic_1_1", "logger=[wandb,mlflow]", "~evaluation", "+strategy.eta=1"]),
        ("config", ["hydra/launcher=joblib", "model.init=zeros"]),
    ],
)
def test_it_is_hydras(config_name, overrides):
    with hydras_composition():
        expected = without_time(whole(overrides, config_name))
    first = without_time(whole(overrides, config_name))
    num_kept = len(quick_composition._kept)
    again = without_time(whole(overrides, config_name))
    assert num_kept == len(quick_composition._kept) > 30  # so the second one has read and merged no file
    assert first._metadata == again._metadata == expected._metadata
    assert list(nodes(first)) == list(nodes(again)) == list(nodes(expected))
    assert len(list(nodes(expected))) > 200
