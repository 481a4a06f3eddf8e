"""The engine that computes clients by processes of a training script, several at once."""

import contextlib
import json
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nlargest
from math import inf
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message

from fedprox.engines.identity import act_as_server
from fedprox.engines.script_server import FAILURE, KILL_AFTER_S, Job
from fedprox.errors import RunStopped, UserError, printable
from fedprox.federated import TASK
from fedprox.federation.messages import draw_of, failed, late, node_id, task_of
from fedprox.federation.script_client import ScriptSpec, answer, arguments, task_for, write_task
from fedprox.federation.script_files import libraries

_PRELOADED = ("torch", "torch._dynamo", "fedprox.federated")  # optimizers import _dynamo, which takes seconds
_ROOT = str(Path(__file__).parents[2])
_SERVE = (
    f"import sys; sys.path[0] = {_ROOT!r}; from fedprox.engines import script_server; del sys.path[0]; "
    "script_server.main(int(sys.argv[1]), sys.argv[2:])"
)
_MAX_LINE = 300  # characters of a script's last line that an error repeats
_log = logging.getLogger("fedprox")


@dataclass
class _Run:
    """A message that a script is to answer."""

    position: int
    message: Message
    job: Job
    slot: int


class ScriptGrid:
    """A Flower Grid whose nodes are clients, each message to which is answered by a process of a script."""

    def __init__(self, spec: ScriptSpec, at_once: int = 1) -> None:
        """Prepare; the first process starts with the first message.

        Args:
            spec: The script.
            at_once: Processes at the same time, unless the spec says how many.

        Raises:
            UserError: If the script is missing or not a Python program.
        """
        act_as_server()
        self._spec = spec
        self._libraries = libraries(Path(spec.script))
        self._at_once = spec.at_once or at_once
        self._gpus = _visible_gpus()
        self._server: _Server | None = None
        self._num_jobs = 0
        self._peaks: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        """Return one node per client."""
        return range(node_id(0), node_id(self._spec.num_clients))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the clients' replies in the order of the messages; the reply of a client that failed is an error.

        Args:
            messages: Messages of any kind that a script answers, each with a task.
            timeout: Seconds after which unfinished clients are late; their processes are ended. None for no limit.

        Raises:
            RunStopped: If the process that starts the script's processes has ended.
        """
        until = inf if timeout is None else time.monotonic() + timeout
        server = self._server = self._server or _Server(self._spec, self._libraries)
        messages, replies = list(messages), dict[int, Message]()
        with tempfile.TemporaryDirectory(prefix="tasks-", dir=server.folder) as folder:
            waiting = deque(enumerate(messages))
            running: dict[int, _Run] = {}
            free = list(range(self._at_once))
            try:
                while (waiting or running) and time.monotonic() < until:
                    while waiting and free:
                        run = self._prepared(*waiting.popleft(), Path(folder), free.pop(0))
                        running[run.job.number] = run
                        server.start(run.job)
                    for number, status, peak in server.ended(until):
                        run = running.pop(number)
                        free.append(run.slot)
                        replies[run.position] = _reply(run, status)
                        shutil.rmtree(run.job.task)
                        self._peaks = nlargest(self._at_once, [*self._peaks, peak])
            finally:
                server.stop(running)
        return [replies.get(position) or late(message) for position, message in enumerate(messages)]

    def facts(self) -> dict[str, Any]:
        """Return the script's name."""
        return {"script": Path(self._spec.script).name}

    def peak_memory_bytes(self) -> int:
        """Return the sum of the peak resident memory of the largest processes that may have run at once."""
        return sum(self._peaks)

    def _prepared(self, position: int, message: Message, tasks: Path, slot: int) -> _Run:
        """Return a message's run, whose task is written."""
        task, folder = task_for(self._spec, message), tasks / str(position)
        folder.mkdir()
        write_task(folder, task, message)
        output = folder / "output.log"
        if self._spec.output:
            draw = f"_draw_{draw_of(message)}" if draw_of(message) else ""
            output = Path(self._spec.output) / f"round_{task.round_num}_{task.kind}_client_{task.client}{draw}.log"
            output.parent.mkdir(parents=True, exist_ok=True)
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        self._num_jobs += 1
        args = arguments(self._spec, task)
        job = Job(self._num_jobs, self._spec.script, args, str(folder), str(output), gpu)
        return _Run(position, message, job, slot)


def _visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(map(str, range(torch.cuda.device_count())))
    return [each.strip() for each in visible.split(",") if each.strip()]


def _reply(run: _Run, status: int) -> Message:
    """Return the reply of a client whose process has ended."""
    reply, fault = answer(Path(run.job.task), run.message), _fault(run.job, status)
    if reply is None:
        return failed(run.message, fault or "the script ended without federated.send()")
    if fault:
        _log.warning("client %d failed after it had answered: %s", task_of(run.message).client, fault)
    return reply


def _fault(job: Job, status: int) -> str:
    """Return in one line how a process failed; empty if it ended with status 0."""
    if status < 0:
        killed = f"the script was killed by {signal.Signals(-status).name}"
        return f"{killed}, perhaps for want of memory" if -status == signal.SIGKILL else killed
    if not status:
        return ""
    failure, output = Path(job.task) / FAILURE, Path(job.output)
    how = failure.read_text(encoding="utf-8") if failure.exists() else f"exit status {status}"
    if failure.exists() and not how.startswith("sys.exit("):
        return how
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
    last = next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last[:_MAX_LINE]}" if last and last not in how else how


class _Server:
    """The process that starts the script's processes; it ends with this object or this process.

    Attributes:
        folder: A temporary folder, which is removed at the end.
        pid: The id of the process.
    """

    def __init__(self, spec: ScriptSpec, libraries: Iterable[str]) -> None:
        if not Path(spec.folder).is_dir():
            raise UserError(f"client.script runs in {spec.folder}, which is not a folder on this machine")
        self.folder = Path(tempfile.mkdtemp(prefix="fedprox-"))
        self._connection, theirs = socket.socketpair()
        self._log = self.folder / "server.log"
        environment = {name: value for name, value in os.environ.items() if name != TASK}
        environment |= {"OMP_NUM_THREADS": str(spec.num_threads)}
        environment.setdefault("PYTHONHASHSEED", "0")  # the order of sets of strings depends on it
        preload = (*_PRELOADED, *libraries) if spec.preload else ()
        with theirs, self._log.open("wb") as log:
            subprocess.run(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), *preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=spec.folder,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others
                check=True,
            )
        self._unread = b""
        (started,) = self._facts(inf)
        self.pid = started["server"]
        self._end = weakref.finalize(self, _end, self._connection, self.pid, self.folder)

    def start(self, job: Job) -> None:
        """Start a job."""
        self._send(job.line())

    def ended(self, until: float) -> list[tuple[int, int, int]]:
        """Return number, exit status and peak memory of jobs that have ended, after waiting for one until a time."""
        return [(each["job"], each["status"], each["peak"]) for each in self._facts(until)]

    def _facts(self, until: float) -> list[dict[str, int]]:
        """Return what the server says, after waiting for it until a time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if not selector.select(None if until == inf else max(0.0, until - time.monotonic())):
                return []
        received = self._connection.recv(1 << 16)
        if not received:
            raise self._lost()
        *lines, self._unread = (self._unread + received).split(b"\n")
        return list(map(json.loads, lines))

    def stop(self, numbers: Iterable[int]) -> None:
        """End jobs, and wait until they have ended."""
        left, until = set(numbers), time.monotonic() + 2 * KILL_AFTER_S
        for number in left:
            self._send(json.dumps({"stop": number}).encode() + b"\n")
        while left and time.monotonic() < until:
            left -= {number for number, _, _ in self.ended(until)}

    def _send(self, line: bytes) -> None:
        try:
            self._connection.sendall(line)
        except OSError:
            raise self._lost() from None

    def _lost(self) -> RunStopped:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        why = f": {printable(lines[-1])}" if lines else ""
        return RunStopped(f"the process that starts client.script has ended{why}; continue with resume=<run directory>")


def _end(connection: socket.socket, pid: int, folder: Path) -> None:
    """End a server and all that it has started."""
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(2 * KILL_AFTER_S)
        try:
            while connection.recv(1 << 16):
                pass  # it closes its end when it has ended
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
