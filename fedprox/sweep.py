"""Every value of a sweep is checked before the first job runs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

from fedprox.config import explained, plain
from fedprox.errors import UserError
from fedprox.startup import without_garbage_collection


class CheckFirst(Callback):
    """A Hydra callback: a sweep with a wrong value ends with one line and exit status 2, before any work."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Compose and check a configuration for each value of each swept setting."""
        with without_garbage_collection():
            from fedprox.prepared import check_settings  # here: it imports torch, which --help does not need

        try:
            for overrides in each_value_once(config.hydra.overrides.task):
                settings = plain(compose(config_name=config.hydra.job.config_name, overrides=overrides))
                check_settings(settings)
                _check_launcher(config.hydra.launcher._target_, settings["engine"])
        except Exception as error:
            print(f"error: {explained(error)}", file=sys.stderr)
            raise SystemExit(2) from None  # Hydra would turn any other exception into a warning


def _check_launcher(launcher: str, engine: Mapping[str, Any]) -> None:
    """Raise UserError where each of several processes would start a Ray of its own and take all CPUs for it."""
    if launcher.endswith(".JoblibLauncher") and engine.get("address", "") is None:
        raise UserError(
            "hydra/launcher=joblib goes with engine=local, got engine=ray, which runs the clients of one job side by "
            "side; add engine=local, or leave the launcher out"
        )


@contextmanager
def each_job_composed_once() -> Iterator[None]:
    """Let Hydra's sweepers trust `CheckFirst`: they would compose all jobs once more, 0.05 s each."""
    validate = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]


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
