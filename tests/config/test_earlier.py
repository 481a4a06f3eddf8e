"""Runs of earlier versions, which lack settings, are what they would be now."""

from collections.abc import Mapping

from hydra import compose, initialize_config_dir

from fedprox.config.compose import CONF, plain, register
from fedprox.config.earlier import _LATER, Settings, completed

LATER = {"schedule": {"name": "constant", "final": 0.0}, "rate": 1}


def test_what_is_lacking_is_added_at_every_depth_and_what_is_there_is_kept():
    settings = {"mu": 2, "schedule": {"name": "cosine"}}
    assert completed(settings, LATER) == {"mu": 2, "schedule": {"name": "cosine", "final": 0.0}, "rate": 1}
    assert settings == {"mu": 2, "schedule": {"name": "cosine"}}


def test_a_damaged_record_keeps_what_it_has():
    assert completed({"schedule": None}, LATER) == {"schedule": None, "rate": 1}


def test_every_setting_that_came_later_has_its_default_there():
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        for name in ("config", "fedavg"):
            config = plain(compose(config_name=name))
            assert completed(config) == config
            before = completed(as_before(config, _LATER))
            assert before == config | {"on_divergence": "continue"}  # now "stop"; a finished run is the same with both


def as_before(config: Settings, later: Settings) -> Settings:
    """Return the settings without those that came later; a group is there if it had others."""
    added = {key for key in later if not isinstance(config[key], Mapping) or set(config[key]) == set(later[key])}
    return {
        key: as_before(value, later[key]) if isinstance(later.get(key), Mapping) else value
        for key, value in config.items()
        if key not in added
    }
