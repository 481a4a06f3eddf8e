"""Sweeps by Hydra: a check before the first job, and a table of all jobs at the end."""

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedprox.cli.jobs import Job, begin_table, earlier_run, final_table, is_same_command, note, read_table
from fedprox.cli.search import SWEEPER, OptunaSweeper
from fedprox.cli.trials import trials_table
from fedprox.config.compose import as_given, compose, each_value_once, explained, parsed, values_of
from fedprox.config.schema import Target
from fedprox.errors import USER_CODE_ERRORS, UserError
from fedprox.process import import_without_gc
from fedprox.runs.reader import COMPLETE, read_record
from fedprox.storage import locked

_run_dir_is_new: ContextVar[bool] = ContextVar("run_dir_is_new", default=False)
_at_the_end: ContextVar[ExitStack] = ContextVar("at_the_end")


class CheckFirst(Callback):
    """A Hydra callback that refuses a wrong sweep, or one that would overwrite runs, in one line before any work."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note whether a single run's directory is new; if the run is refused, it is removed."""
        _run_dir_is_new.set(not Path(config.hydra.run.dir).exists())

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the runs in the sweep's directory, and a configuration for each value of each swept setting."""
        try:
            sweep_dir = Path(config.hydra.sweep.dir)
            jobs = list(jobs_of(config))
            if not jobs or _have_work_left(jobs, sweep_dir, config):
                _check_values(config)
            sweep_dir.mkdir(parents=True, exist_ok=True)
            _at_the_end.get().enter_context(locked(sweep_dir))
            is_search = config.hydra.sweeper._target_ == SWEEPER
            if is_search:
                Plugins.instance().class_name_to_class[SWEEPER] = OptunaSweeper
            table = trials_table if is_search else final_table
            _at_the_end.get().callback(lambda: print(f"\n{table(sweep_dir)}", flush=True))
            if not is_search:
                begin_table(sweep_dir, jobs)
        except USER_CODE_ERRORS as error:
            print(f"error: {explained(error)}", file=sys.stderr)
            raise SystemExit(2) from None  # Hydra would turn any other exception into a warning


def forget_other_sweeper(words: Iterable[str]) -> None:
    """Let hydra/sweeper=optuna be ours if hydra-optuna-sweeper is installed, too.

    Hydra would take our file for a variant of that package's, which has other keys.

    Args:
        words: The command's.
    """
    if any(word.startswith("hydra/sweeper=optuna") for word in words):
        Plugins.instance()  # it registers its configuration when it is loaded
        ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


def _check_values(config: DictConfig) -> None:
    """Compose and check a configuration for each value of each swept setting, and for both ends of an interval."""
    name, launcher = config.hydra.job.config_name, config.hydra.launcher._target_
    words = [_ends(override) if override.is_interval_sweep() else word for word, override in _parsed(config)]
    settings = [compose(overrides, name) for overrides in each_value_once(words)]

    with import_without_gc("fedprox.experiment.build"):
        from fedprox.experiment import build  # here: it imports torch, which --help does not need

    logging.getLogger("flwr").setLevel(logging.ERROR)  # what strategies log about sampling and mu does not apply here
    for each in settings:
        build.check_settings(each)
        build.strategy(each)
        _check_launcher(launcher, each.engine)


def _parsed(config: DictConfig) -> Iterator[tuple[str, Override]]:
    words = words_of(config)
    return zip(words, parsed(words), strict=True)


def _ends(override: Override) -> str:
    """Return a sweep over the two ends of an interval, whole numbers as integers."""
    interval = cast(IntervalSweep, override.value())
    ends = (cast(float, end) for end in (interval.start, interval.end))
    low, high = (int(end) if end == int(end) else end for end in ends)
    return f"{override.get_key_element()}={low},{high}"


def jobs_of(config: DictConfig) -> Iterator[Job]:
    """Yield the jobs that Hydra's own sweeper is going to run; nothing for another sweeper.

    Args:
        config: The sweep's configuration. Hydra must be initialised.
    """
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return
    overrides = parsed(words_of(config))
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    values = {override.get_key_element(): _values(override) for override in overrides}
    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index, call-overload]
    is_number = subdir in ("${hydra.job.num}", "${hydra:job.num}")
    known = {row["overrides"]: row["run"] for row in read_table(Path(config.hydra.sweep.dir))}
    for number, words in enumerate(map(list, itertools.product(*values.values()))):
        differing = " ".join(word.lstrip("+") for word in words if word.partition("=")[0] in swept)
        yield Job(number, words, differing, str(number) if is_number else known.get(differing) or None)


def _values(override: Override) -> list[str]:
    """Return an override for each value, as Hydra's own sweeper writes it."""
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    if values := values_of(override):
        return values
    raise UserError(
        f"{override.input_line} has no values that can be listed, which Hydra's own sweeper needs; give "
        "values, choice(...) or range(...), or use another sweeper such as hydra/sweeper=optuna"
    )


def words_of(config: DictConfig) -> list[str]:
    """Return a sweep's overrides: those in its sweeper's configuration, and the command's."""
    params = config.hydra.sweeper.get("params") or {}
    return [*(f"{name}={value}" for name, value in params.items()), *as_given(config.hydra.overrides.task)]


def _have_work_left(jobs: Iterable[Job], sweep_dir: Path, config: DictConfig) -> bool:
    """Return whether any job is not finished; refuse a job whose directory holds a run with other settings."""
    left, name = False, config.hydra.job.config_name
    for job in jobs:
        file = sweep_dir / (job.run or "") / "run.json"
        if job.run is None or not file.exists():
            left = True
            continue
        record = read_record(file)
        left |= record["status"] not in COMPLETE
        if not is_same_command(record, name, job.overrides):  # the settings may still be the same
            earlier_run(file.parent, compose(job.overrides, name).plain())
    return left


@contextmanager
def table_at_the_end() -> Iterator[None]:
    """Print the table of a sweep's jobs, however it ends; do nothing for a single run."""
    with ExitStack() as stack:
        token = _at_the_end.set(stack)
        try:
            yield
        finally:
            _at_the_end.reset(token)


def remove_new_run_dir() -> None:
    """Remove the directory of a refused single run, if this command created it and it is empty."""
    if _run_dir_is_new.get() and not is_job():
        with suppress(OSError):  # it is not empty
            Path(HydraConfig.get().runtime.output_dir).rmdir()


def is_job() -> bool:
    """Return whether Hydra is running a job of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def note_job(lock_dir: Path, error: str) -> None:
    """Update the row of the job that Hydra is running, if it belongs to a sweep.

    Args:
        lock_dir: See `fedprox.cli.jobs.note`.
        error: Why it failed; "" if it did not.
    """
    if not is_job():
        return
    config = HydraConfig.get()
    sweep_dir = Path(config.runtime.cwd) / config.sweep.dir
    overrides = as_given(config.overrides.task)
    run = os.path.relpath(config.runtime.output_dir, sweep_dir)
    note(sweep_dir, lock_dir, Job(int(config.job.num), overrides, " ".join(overrides), run), error)


def _check_launcher(launcher: str, engine: Target) -> None:
    """Raise UserError if each of several processes would start its own Ray, which takes all CPUs."""
    if launcher.endswith(".JoblibLauncher") and engine.arguments.get("address", "") is None:
        raise UserError(
            "hydra/launcher=joblib needs engine=local, got engine=ray, which already runs a job's clients in parallel; "
            "add engine=local, or leave the launcher out"
        )
