"""Submission of a job to a federation: `flwr run`, its log on this terminal, `flwr stop` after Ctrl-C."""

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedprox.config.schema import Config
from fedprox.data.sources.site_facts import SiteFacts
from fedprox.deployment import daemons, job
from fedprox.deployment.flower import Flower
from fedprox.deployment.job import Job
from fedprox.engines import superlink
from fedprox.errors import RunStopped, UserError, printable
from fedprox.experiment import build
from fedprox.experiment.beginning import final_row
from fedprox.experiment.sites import check_sites, read_facts
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
        UserError: If a setting is wrong, no federation runs here, or the SuperLink does not take the run.
        RunStopped: If a fault ends the run.
        KeyboardInterrupt: If the run was stopped, here or by `flwr stop`.
    """
    build.check_settings(config)
    build.strategy(config)
    superlink.check_settings(config.engine.arguments)
    on_server = _on_server(config, run_dir)
    if resume and on_server == str(run_dir.absolute()) and final_row(config, run_dir):
        _log.info("%s is finished already", os.path.relpath(run_dir))
        return read_record(run_dir / "run.json")
    is_here = _run(Job(config, on_server, resume, origin), run_dir)
    return read_record(run_dir / "run.json") if is_here else None


def ask_sites(config: Config, folder: Path) -> list[SiteFacts] | None:
    """Return what a federation's sites tell about their data, of which nothing is trained.

    Args:
        config: The configuration, of dataset=sites.
        folder: An empty folder, which receives the job.

    Returns:
        The facts of each site in the order of the clients; None if they are on another server. The log shows them.

    Raises:
        As `submit`.
    """
    check_sites(config)
    is_here = _run(Job(config, _on_server(config, folder), False, {}, asks="facts"), folder)
    return read_facts(folder) if is_here else None


def _on_server(config: Config, run_dir: Path) -> str:
    """Return the run directory on the machine of the SuperLink; "" lets the server choose."""
    settings = config.engine.arguments
    return str(settings.get("run_dir") or ("" if settings.get("connection") else run_dir.absolute()))


def _run(submitted: Job, run_dir: Path) -> bool:
    """Run a job until it ends, and return whether its run directory is on this machine."""
    settings, on_server = submitted.config.engine.arguments, submitted.run_dir
    connection = settings.get("connection")
    is_here = on_server == str(run_dir.absolute())
    flower = Flower(connection) if connection else daemons.here(Path(settings.get("folder") or "deployment"))
    job.write(submitted, run_dir / job.FOLDER, Path.cwd())
    with _signals_held_back() as came:  # a run that has no id yet could not be stopped
        try:
            run_id = flower.json("run", str(run_dir / job.FOLDER))["run-id"]
        except RunStopped as refused:  # an unknown connection, another CA, no SuperLink: nothing has begun
            raise UserError(str(refused)) from None
    _log.info("Flower's run %s; job: %s", run_id, os.path.relpath(run_dir / job.FOLDER))
    try:
        _check(*_followed(flower, run_id, came))
    except KeyboardInterrupt:
        _wait_until_written(run_dir)
        if not is_here:
            _log.info("%s", _again(run_dir, on_server, run_id, connection))
        raise
    except RunStopped as stopped:
        raise RunStopped(f"{stopped}; {_again(run_dir, on_server, run_id, connection)}") from None
    return is_here


def _follow(flower: Flower, run_id: str, num_seen: int) -> int:
    """Show a run's output until it ends, but for the lines that were shown before; return how many there are now."""
    num_lines = 0
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
            for num_lines, line in enumerate(process.stdout or (), start=1):
                if num_lines > num_seen:
                    print(printable(_COLOUR.sub("", line.rstrip("\n"))), flush=True)
        except BaseException:
            process.kill()
            raise
    return max(num_seen, num_lines)


def _outcome(flower: Flower, run_id: str) -> tuple[str, str]:
    """Follow a run to its end; return its status, such as "finished:completed", and what Flower knows of it."""
    num_lines = 0
    while True:
        num_lines = _follow(flower, run_id, num_lines)
        run = flower.json("list", "--run-id", run_id)["runs"][0]
        if str(run["status"]).startswith("finished"):
            return run["status"], run["status-details"] or ""
        time.sleep(1.0)  # the connection broke, or the run has not begun


@contextmanager
def _signals_held_back() -> Iterator[list[signal.Signals]]:
    """Note SIGINT and SIGTERM within the context, in the list that it yields, instead of handling them."""
    came: list[signal.Signals] = []

    def note(number: int, _: object) -> None:
        came.append(signal.Signals(number))

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _followed(flower: Flower, run_id: str, came: Sequence[signal.Signals]) -> tuple[str, str]:
    """Return the same as `_outcome`; stop the run on Ctrl-C, and at once if a signal came before."""
    try:
        if came:
            signal.raise_signal(came[0])
        return _outcome(flower, run_id)
    except KeyboardInterrupt:
        _log.info("stopping Flower's run %s", run_id)
        flower.json("stop", run_id)
        raise


def _wait_until_written(run_dir: Path) -> None:
    """Wait until a run that was stopped has written its files, if they are on this machine."""
    until = time.monotonic() + STOP_S
    while is_locked(run_dir) and time.monotonic() < until:
        time.sleep(0.3)


def _check(status: str, details: str) -> None:
    """Raise what a run's end means for the command that submitted it."""
    if status.endswith("completed"):
        return
    if status.endswith("stopped"):
        raise KeyboardInterrupt
    found = _STATUS.search(details)
    if found and found[1] == "2":
        raise UserError(found[2])
    raise RunStopped(found[2] if found else details or "the run failed")


def _again(run_dir: Path, on_server: str, run_id: str, connection: str | None) -> str:
    """Return how a run is continued."""
    if not connection:
        name = os.path.relpath(run_dir)
        return (
            f"what was measured is kept; continue with resume={name}" if (run_dir / "run.json").exists() else "fix that"
        )
    place = on_server or f"<its run directory on the server, .../{run_id}>"
    words = f"-c 'resume=true run-dir=\"{place}\"'"
    return f"continue with flwr run {os.path.relpath(run_dir / job.FOLDER)} {connection} {words}"
