"""A sweep by Hydra: checked before its first job runs, and with a table of all jobs at its end."""

import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedprox.cli.jobs import Job, begin_table, earlier_run, final_table, is_same_command, note, read_table
from fedprox.config.compose import as_given, compose, each_value_once, explained, parsed, values_of
from fedprox.config.schema import Target
from fedprox.errors import USERS, UserError
from fedprox.process import looking_for_no_garbage
from fedprox.runs.reader import read_record
from fedprox.storage import locked

_run_dir_is_new: ContextVar[bool] = ContextVar("run_dir_is_new", default=False)
_at_the_end: ContextVar[ExitStack] = ContextVar("at_the_end")


class CheckFirst(Callback):
    """A Hydra callback: a sweep that is wrong, or would overwrite runs, ends with one line before any work."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Note whether there is nothing yet where a single run goes: then a refused one leaves nothing."""
        _run_dir_is_new.set(not Path(config.hydra.run.dir).exists())

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check what the sweep's directory holds, and a configuration for each value of each swept setting."""
        try:
            sweep_dir = Path(config.hydra.sweep.dir)
            jobs = list(jobs_of(config))
            if not jobs or _are_left(jobs, sweep_dir, config):
                _check_values(config)
            sweep_dir.mkdir(parents=True, exist_ok=True)
            _at_the_end.get().enter_context(locked(sweep_dir))
            _at_the_end.get().callback(lambda: print(f"\n{final_table(sweep_dir)}", flush=True))
            begin_table(sweep_dir, jobs)
        except USERS as error:
            print(f"error: {explained(error)}", file=sys.stderr)
            raise SystemExit(2) from None  # Hydra would turn any other exception into a warning


def _check_values(config: DictConfig) -> None:
    """Compose and check a configuration for each value of each swept setting."""
    name, launcher = config.hydra.job.config_name, config.hydra.launcher._target_
    settings = [compose(overrides, name) for overrides in each_value_once(_words(config))]

    with looking_for_no_garbage("fedprox.experiment.build"):
        from fedprox.experiment import build  # here: it imports torch, which --help does not need

    logging.getLogger("flwr").setLevel(logging.ERROR)  # what strategies say of sampling and mu does not hold here
    for each in settings:
        build.check_settings(each)
        build.strategy(each)
        _check_launcher(launcher, each.engine)


def jobs_of(config: DictConfig) -> Iterator[Job]:
    """Yield the jobs that Hydra's own sweeper is going to run; none for another sweeper.

    Args:
        config: Of the whole sweep. Hydra must be initialised.
    """
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return
    overrides = parsed(_words(config))
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    values = {override.get_key_element(): _values(override) for override in overrides}
    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index, call-overload]
    is_number = subdir in ("${hydra.job.num}", "${hydra:job.num}")
    known = {row["overrides"]: row["run"] for row in read_table(Path(config.hydra.sweep.dir))}
    for number, words in enumerate(map(list, itertools.product(*values.values()))):
        differing = " ".join(word.lstrip("+") for word in words if word.partition("=")[0] in swept)
        yield Job(number, words, differing, str(number) if is_number else known.get(differing) or None)


def _values(override: Override) -> list[str]:
    """Return an override for each value, as Hydra's own sweeper writes them."""
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    if values := values_of(override):
        return values
    raise UserError(
        f"{override.input_line} has no values that can be listed, which Hydra's own sweeper needs; give "
        "values, choice(...) or range(...), or another sweeper such as hydra/sweeper=optuna"
    )


def _words(config: DictConfig) -> list[str]:
    """Return what a sweep is made of: the settings that the configuration of its sweeper gives, and the command's."""
    params = config.hydra.sweeper.get("params") or {}
    return [*(f"{name}={value}" for name, value in params.items()), *as_given(config.hydra.overrides.task)]


def _are_left(jobs: Iterable[Job], sweep_dir: Path, config: DictConfig) -> bool:
    """Return whether any job has something left to do.

    Raises:
        UserError: If a job's directory holds a run with other settings.
    """
    left, name = False, config.hydra.job.config_name
    for job in jobs:
        file = sweep_dir / (job.run or "") / "run.json"
        if job.run is None or not file.exists():
            left = True
            continue
        record = read_record(file)
        left |= record["status"] != "finished"
        if not is_same_command(record, name, job.overrides):  # the settings may be the same for all that
            earlier_run(file.parent, compose(job.overrides, name).plain())
    return left


@contextmanager
def table_at_the_end() -> Iterator[None]:
    """Print what became of a sweep's jobs, however it ends; do nothing where there is no sweep."""
    with ExitStack() as stack:
        token = _at_the_end.set(stack)
        try:
            yield
        finally:
            _at_the_end.reset(token)


def remove_new_run_dir() -> None:
    """Remove the directory of a single run that was refused, if this command has made it and nothing is in it."""
    if _run_dir_is_new.get() and not is_job():
        with suppress(OSError):  # something was written
            Path(HydraConfig.get().runtime.output_dir).rmdir()


def is_job() -> bool:
    """Return whether Hydra is running a job of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def note_job(room: Path, error: str) -> None:
    """Note in the sweep's table what became of the job that Hydra is running, if it is one of a sweep.

    Args:
        room: See `fedprox.cli.jobs.note`.
        error: Why it failed; "" if it did not.
    """
    if not is_job():
        return
    config = HydraConfig.get()
    sweep_dir = Path(config.runtime.cwd) / config.sweep.dir
    overrides = as_given(config.overrides.task)
    run = os.path.relpath(config.runtime.output_dir, sweep_dir)
    note(sweep_dir, room, Job(int(config.job.num), overrides, " ".join(overrides), run), error)


def _check_launcher(launcher: str, engine: Target) -> None:
    """Raise UserError where each of several processes would start a Ray of its own and take all CPUs for it."""
    if launcher.endswith(".JoblibLauncher") and engine.arguments.get("address", "") is None:
        raise UserError(
            "hydra/launcher=joblib goes with engine=local, got engine=ray, which runs the clients of one job side by "
            "side; add engine=local, or leave the launcher out"
        )
