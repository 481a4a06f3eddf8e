"""A federation on this machine: its SuperLink and SuperNodes as processes, started from their kits.

`processes.json` in the federation's folder has the processes' ids, `logs/` their output.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from fedprox.deployment.flower import Flower, environment
from fedprox.deployment.kits import Federation, prepare
from fedprox.errors import RunStopped, UserError, one_line
from fedprox.process import announced
from fedprox.storage import write_atomic

PROCESSES = "processes.json"
CONNECTION = "here"  # the name of this machine's federation in its own config.toml
START_S, END_S, KILL_S = 120.0, 30.0, 5.0
_SUPERLINK = "superlink"


def here(folder: Path) -> Flower:
    """Return the command line of the federation that runs in a folder.

    Raises:
        UserError: If none does.
    """
    if not _running(folder):
        raise UserError(
            f"no federation runs in {folder}; start one with python -m fedprox.deployment up --nodes <number>, or name "
            "engine.connection=<an entry of Flower's config.toml>"
        )
    return Flower(CONNECTION, folder.absolute() / "home")


def up(folder: Path, sites: Mapping[str, str], data: Mapping[str, Path] | None = None) -> Flower:
    """Prepare a federation and start it on this machine; return once all its nodes are online.

    Args:
        folder: The federation's folder, which may have been prepared before.
        sites: Each node's name, with its node config.
        data: Folders with the nodes' data, by name.

    Raises:
        UserError: If one runs there already.
        RunStopped: If a process does not start; then none is left.
    """
    if _running(folder):
        raise UserError(f"a federation runs in {folder} already; stop it with python -m fedprox.deployment down")
    port, flower = _free_port(), Flower(CONNECTION, folder.absolute() / "home")
    federation = Federation(folder, "127.0.0.1", port, sites, bind="127.0.0.1", connection=CONNECTION)
    prepare(federation)
    for database in (folder / "server").glob("superlink.db*"):  # it may hold nodes of before for online
        database.unlink()
    try:
        with announced(f"starting a SuperLink and {len(sites)} SuperNodes on this machine"):
            _start_all(federation, flower, data or {})
    except BaseException:
        down(folder)
        raise
    return flower


def _start_all(federation: Federation, flower: Flower, data: Mapping[str, Path]) -> None:
    """Start a SuperLink, let the nodes take part, start them, and wait until all are online."""
    folder, sites = federation.folder, federation.sites
    _start(folder, _SUPERLINK, folder / "start_server.sh", {})
    _wait(folder, lambda: _answers(federation.port))
    for site in sites:
        flower.json("supernode", "register", str(federation.kit(site) / "key.pub"))
    for site in sites:
        more = {"SUPERNODE_PORT": str(_free_port())} | ({"data": str(data[site])} if site in data else {})
        _start(folder, site, federation.kit(site) / "start.sh", more)
    _wait(folder, lambda: len(_online(flower)) >= len(sites))


def down(folder: Path) -> int:
    """Stop a federation's processes, and those that they have started; return how many daemons ran.

    A run that is going on writes its checkpoint first.
    """
    daemons = _running(folder)
    processes = _with_children(daemons.values())
    for process in reversed(daemons.values()):  # nodes first
        _signal(process, signal.SIGTERM)
    left = _ended(processes, END_S)
    for process in left:
        _signal(process, signal.SIGKILL)
    _ended(left, KILL_S)
    (folder / PROCESSES).unlink(missing_ok=True)
    return len(daemons)


def status(folder: Path) -> list[str]:
    """Return one line per daemon, and what the SuperLink knows of nodes and runs.

    Raises:
        UserError: If no federation runs in the folder.
    """
    flower = here(folder)
    known, running = _noted(folder), _running(folder)
    lines = [f"{name}: {'running' if name in running else 'ended'} (process {pid})" for name, pid in known.items()]
    if _SUPERLINK in running:
        nodes = flower.json("supernode", "list")["nodes"]
        states = [f"{sum(node['status'] == state for node in nodes)} {state}" for state in ("online", "offline")]
        lines.append(f"SuperNodes: {', '.join(states)}")
        runs = flower.json("list")["runs"]
        lines += [f"run {run['run-id']}: {run['status']}, {run['elapsed']}" for run in runs]
    return lines


def _start(folder: Path, name: str, script: Path, more: Mapping[str, str]) -> None:
    """Start a daemon by its script, in a session of its own, and note its process."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(script.absolute())],
            env=environment(more),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    write_atomic(folder / PROCESSES, json.dumps({**_noted(folder), name: process.pid}, indent=1).encode())


def _noted(folder: Path) -> dict[str, int]:
    """Return the processes of the daemons that were started, by name."""
    file = folder / PROCESSES
    try:
        return {str(name): int(process) for name, process in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}; end the processes yourself and remove it") from error


def _wait(folder: Path, is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds while all daemons run."""
    until = time.monotonic() + START_S
    while not is_so():
        for name in _noted(folder).keys() - _running(folder).keys():
            raise RunStopped(f"{name} did not start: {_last_line(folder / 'logs' / f'{name}.log')}")
        if time.monotonic() > until:
            raise RunStopped(f"the federation is not online after {START_S:g} s; see {folder / 'logs'}")
        time.sleep(0.3)


def _online(flower: Flower) -> list[str]:
    return [node["node-id"] for node in flower.json("supernode", "list")["nodes"] if node["status"] == "online"]


def _running(folder: Path) -> dict[str, int]:
    """Return the daemons of a folder that run, by name."""
    noted = _noted(folder)
    commands = {pid: command for pid, _, command in _processes()} if noted else {}
    # Another program may have the number of a process that has ended.
    ours = ("flower-super", str(folder.absolute()))  # a start script, before it becomes Flower's program
    return {name: pid for name, pid in noted.items() if any(word in commands.get(pid, "") for word in ours)}


def _processes() -> list[tuple[int, int, str]]:
    """Return id, parent's id and command of each process of this machine."""
    listed = subprocess.run(
        ["ps", "-axww", "-o", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True
    )
    found = []
    for line in listed.stdout.splitlines():
        pid, parent, state, *command = line.split(maxsplit=3)
        if not state.startswith("Z"):
            found.append((int(pid), int(parent), " ".join(command)))
    return found


def _with_children(roots: Iterable[int]) -> list[int]:
    """Return processes and all that descend from them."""
    found, all_of_them = list(roots), _processes()
    for pid in found:
        found += [child for child, parent, _ in all_of_them if parent == pid and child not in found]
    return found


def _ended(processes: Iterable[int], patience_s: float) -> list[int]:
    """Wait for processes to end; return those that have not."""
    until = time.monotonic() + patience_s
    while True:
        _reap()
        alive = {pid for pid, _, _ in _processes()}
        left = [pid for pid in processes if pid in alive]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def _reap() -> None:
    """Let children of this process that have ended vanish from the list of processes."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300]} ({log})" if lines else f"see {log}"
