"""Submission of a job to a federation: `flwr run`, its log on this terminal, `flwr stop` after Ctrl-C."""

import logging
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprox.config.schema import Config
from fedprox.deployment import daemons, job
from fedprox.deployment.flower import Flower
from fedprox.deployment.job import Job
from fedprox.errors import RunStopped, UserError, printable
from fedprox.experiment import build
from fedprox.runs.reader import read_record
from fedprox.storage import is_locked

_log = logging.getLogger("fedprox")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # of Flower's own lines
_STATUS = re.compile(r"exit status (\d): (.*)", re.DOTALL)
STOP_S = 90.0  # the ServerApp hears of its end with its heartbeat, every half minute


def submit(config: Config, run_dir: Path, *, resume: bool, origin: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Run an experiment on a federation and follow it; return run.json if the run directory is on this machine.

    Args:
        config: The configuration; every check that needs no data is made here.
        run_dir: Receives the job, and all results unless they are on another server.
        resume: Whether to continue from the run directory's last checkpoint.
        origin: How the configuration came about.

    Raises:
        UserError: If a setting is wrong, or no federation runs here.
        RunStopped: If the SuperLink does not answer, or a fault ends the run.
        KeyboardInterrupt: If the run was stopped, here or by `flwr stop`.
    """
    build.check_settings(config)
    build.strategy(config)
    settings = config.engine.arguments
    connection = settings.get("connection")
    folder = Path(settings.get("folder") or "deployment")
    flower = Flower(connection) if connection else daemons.here(folder)
    on_server = settings.get("run_dir") or ("" if connection else str(run_dir.absolute()))
    job.write(Job(config, on_server, resume, origin), run_dir / job.FOLDER, Path.cwd())
    run_id = flower.json("run", str(run_dir / job.FOLDER))["run-id"]
    _log.info("Flower's run %s; job: %s", run_id, os.path.relpath(run_dir / job.FOLDER))
    is_here = on_server == str(run_dir.absolute())
    try:
        _follow(flower, run_id)
        status, details = _outcome(flower, run_id)
    except KeyboardInterrupt:
        _stop(flower, run_id, run_dir if is_here else None)
        raise
    _check(status, details, _again(run_dir, on_server, run_id, connection))
    return read_record(run_dir / "run.json") if is_here else None


def _follow(flower: Flower, run_id: str) -> None:
    """Show a run's output until it ends."""
    command = flower.command("log", run_id)
    with subprocess.Popen(
        command,
        env=flower.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for this program, which stops the run
    ) as process:
        try:
            for line in process.stdout or ():
                print(printable(_COLOUR.sub("", line.rstrip("\n"))), flush=True)
        except BaseException:
            process.kill()
            raise


def _outcome(flower: Flower, run_id: str) -> tuple[str, str]:
    """Return a run's final status, such as "finished:completed", and what Flower knows of it."""
    while True:
        run = flower.json("list", "--run-id", run_id)["runs"][0]
        if str(run["status"]).startswith("finished"):
            return run["status"], run["status-details"] or ""
        _log.info("Flower's run %s is %s", run_id, run["status"])
        _follow(flower, run_id)
        time.sleep(1.0)


def _stop(flower: Flower, run_id: str, run_dir: Path | None) -> None:
    """Stop a run, and wait until it has written its files if they are on this machine."""
    _log.info("stopping Flower's run %s", run_id)
    flower.json("stop", run_id)
    until = time.monotonic() + STOP_S
    while run_dir and is_locked(run_dir) and time.monotonic() < until:
        time.sleep(0.3)


def _check(status: str, details: str, again: str) -> None:
    """Raise what a run's end means for the command that submitted it."""
    if status.endswith("completed"):
        return
    if status.endswith("stopped"):
        raise KeyboardInterrupt
    found = _STATUS.search(details)
    if found and found[1] == "2":
        raise UserError(found[2])
    raise RunStopped(f"{found[2] if found else details or 'the run failed'}; {again}")


def _again(run_dir: Path, on_server: str, run_id: str, connection: str | None) -> str:
    """Return how a run is continued."""
    if not connection:
        return f"what was measured is kept; continue with resume={os.path.relpath(run_dir)}"
    place = on_server or f"<its run directory on the server, .../{run_id}>"
    words = f"-c 'resume=true run-dir=\"{place}\"'"
    return f"continue with flwr run {os.path.relpath(run_dir / job.FOLDER)} {connection} {words}"
