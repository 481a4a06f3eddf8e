"""The ServerApp: runs the job's experiment on the nodes of the federation, as `fedprox.main` does in a simulation.

Flower ends a ServerApp by SIGINT (after `flwr stop`, or if the SuperLink has ended) and would leave it five seconds.
Its handler is replaced while the experiment runs, so that the run is recorded as interrupted, with a checkpoint.
"""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprox.config.files import write_yaml
from fedprox.config.schema import Config
from fedprox.deployment import job
from fedprox.errors import USER_CODE_ERRORS, RunStopped, UserError, on_record
from fedprox.runs.log import RunLog
from fedprox.runs.reader import read_record

app = ServerApp()
STATUS = "exit status {status}: {line}"  # how a failure is told to Flower, which keeps it with the run
_FORMAT = logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s")  # Hydra's
_log = logging.getLogger("fedprox")


class JobFailed(Exception):  # noqa: N818  # as a person reads it in Flower's list of runs
    """The end of a job that failed; its text is one line, with the exit status of the command that submitted it."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job.

    Raises:
        JobFailed: If it failed; Flower reports its line.
    """
    _log_to_stdout()
    try:
        with _interrupted_by_signals():
            _run(grid, context)
    except KeyboardInterrupt:
        _log.warning("interrupted; what was measured is in the run directory")
        signal.raise_signal(signal.SIGINT)  # now Flower's own handler ends the process
    except USER_CODE_ERRORS as error:
        status, line = 1, on_record(error)
        if isinstance(error, (UserError, OSError, MemoryError)):
            status = 2
        elif not isinstance(error, (RunStopped, SystemExit)):
            traceback.print_exc()
        raise JobFailed(STATUS.format(status=status, line=line)) from None


def _run(grid: Grid, context: Context) -> None:
    """Run the job's experiment in its run directory."""
    from fedprox.experiment import run as experiment  # here: it imports torch

    settings, config = context.run_config, job.read()
    if not config.is_deployment:
        raise UserError(f"engine._target_ must be SuperLinkGrid in a job, got {config.engine.target}")
    run_dir = run_directory(str(settings["run-dir"]), context.run_id)
    run_dir.mkdir(parents=True, exist_ok=True)
    _log.info("run directory on this server: %s", run_dir)
    if settings["asks"] == "facts":
        from fedprox.experiment.sites import write_facts

        return write_facts(config, grid, run_dir)
    origin: Mapping[str, Any] = json.loads(str(settings["origin"]))
    log = RunLog(str(run_dir / "main.log"))
    log.setFormatter(_FORMAT)
    _log.addHandler(log)
    flower = {"run_id": str(context.run_id), "job": grid.run.fab_hash}
    experiment.run(
        *(_with_earlier_sites(config, run_dir) if settings["resume"] else config, run_dir),
        resume=bool(settings["resume"]),
        origin={**origin, "flower": flower},
        on_begin=lambda: _begin_log(log, run_dir / ".hydra", config, origin),
        flower_grid=grid,
    )


def _with_earlier_sites(config: Config, run_dir: Path) -> Config:
    """Return a resumed run's configuration, in which the sites are the clients that they were."""
    if not (run_dir / "run.json").exists() or config.engine.arguments.get("sites"):
        return config
    sites = read_record(run_dir / "run.json").get("sites")
    plain = config.plain()
    return Config.of({**plain, "engine": {**plain["engine"], "sites": sites}})


def run_directory(given: str, run_id: int) -> Path:
    """Return a job's run directory: the given one, or one of Flower's run id below $FEDPROX_RUNS."""
    if given:
        return Path(given)
    return Path(os.environ.get("FEDPROX_RUNS", Path.home() / "fedprox-runs")) / str(run_id)


def _log_to_stdout() -> None:
    """Log what fedprox reports as a terminal shows it; Flower sends the output to whoever follows the run."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_FORMAT)
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # tracebacks of failures that are told in one line


def _begin_log(log: RunLog, hydra: Path, config: Config, origin: Mapping[str, Any]) -> None:
    """Begin main.log, and write the files of .hydra/ that a job has."""
    hydra.mkdir(exist_ok=True)
    write_yaml(config.plain(), hydra / "config.yaml")
    write_yaml(list(origin.get("overrides", [])), hydra / "overrides.yaml")
    log.begin()


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM within the context interrupt it; later ones find it writing its files."""
    came = False

    def interrupt(*_: object) -> None:
        nonlocal came
        if not came:
            came = True
            raise KeyboardInterrupt

    earlier = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
