"""Every value of a sweep is checked before the first job runs."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedprox.config import explained, plain


class CheckFirst(Callback):
    """A Hydra callback: a sweep with a wrong value ends with one line and exit status 2, before any work."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and check a configuration for each value of each swept setting."""
        from fedprox.experiment import check_settings  # here: it imports torch, which --help does not need

        try:
            for overrides in each_value_once(config.hydra.overrides.task):
                check_settings(plain(compose(config_name=config.hydra.job.config_name, overrides=overrides)))
        except Exception as error:
            print(f"error: {explained(error)}", file=sys.stderr)
            raise SystemExit(2) from None  # Hydra would turn any other exception into a warning


def each_value_once(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of overrides without sweeps, in which each value of each swept setting occurs.

    Values are varied one setting at a time, the others at their first value: as many lists as there are
    values, not as there are jobs. Hydra must be initialised.
    """
    loader = GlobalHydra.instance().config_loader()  # knows what glob(*) stands for
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in parsed
    ]
    first = [values[0] for values in choices]
    yield first
    for position, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]
