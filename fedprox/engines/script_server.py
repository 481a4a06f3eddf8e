"""The process that starts a script's processes: it loads the script's libraries once, and forks for every task.

A fork has the libraries already, so a task costs tenths of a second instead of seconds. `fedprox.engines.scripts` talks
to it over a socket, one JSON object a line. The first is {"server": its process id}. `Job`s go in, and {"job": number,
"status": exit status, "peak": memory in bytes} comes out when a process has ended. {"stop": number} sends SIGTERM to a
job's process group, and SIGKILL after some seconds. If the other end of the socket closes, however its process ended,
all jobs are stopped and the server ends.

This module imports no library, so that a server without preloaded ones forks a bare Python.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

KILL_AFTER_S = 5.0  # from SIGTERM to SIGKILL
_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends
FAILURE = "failure.txt"  # in a task's folder: the exception that ended the script, in one line


@dataclass(frozen=True)
class Job:
    """One run of a script.

    Attributes:
        number: Identifies the job; higher than those of earlier jobs.
        script: The script's absolute path.
        args: Its arguments.
        task: The task's folder.
        output: The file to which what it prints is appended.
        environment: Environment variables that it has besides the server's.
    """

    number: int
    script: str
    args: list[str]
    task: str
    output: str
    environment: Mapping[str, str]

    def line(self) -> bytes:
        """Return the job as a line for the server."""
        return json.dumps(asdict(self)).encode() + b"\n"


def main(connection: int, preload: Iterable[str]) -> None:
    """Serve until the other end of a socket closes; in a forked process, run its job and return.

    The server is no child of the process that calls for it: Ray kills a worker's children without notice, and with the
    server those that it must stop in order.

    Args:
        connection: File descriptor of the socket.
        preload: Names of modules to import before the first fork; those that cannot be imported are left out.
    """
    if os.fork():
        os._exit(0)
    end = _QuickEnd()
    atexit.register(end)
    for name in preload:
        with contextlib.suppress(Exception, SystemExit):  # the script's own import says what is wrong
            importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy the memory that it shares
    if job := _Server(socket.socket(fileno=connection)).serve():
        _run(job, end)


class _QuickEnd:
    """The last of a process's exit functions: ends it before the interpreter takes apart all that was imported.

    That would take 1.5 s of computing in every fork. Threads have ended and all other exit functions have run by then.

    Attributes:
        status: The exit status.
    """

    def __init__(self) -> None:
        self.status = 0

    def __call__(self) -> None:
        """End this process."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the script may have closed or replaced it
                stream.flush()
        os._exit(self.status)

    def after(self, error: BaseException) -> None:
        """Set the status that Python has after an exception."""
        code = error.code if isinstance(error, SystemExit) else 1
        self.status = 0 if code is None else code & 0xFF if isinstance(code, int) else 1


def _run(job: Job, end: _QuickEnd) -> None:
    """Run a job's script as `python script.py` would, in this process, which ends with it."""
    with open(os.devnull) as nothing, open(job.output, "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(job.environment)
    from fedprox import federated

    os.environ[federated.TASK] = job.task  # for processes that the script starts
    sys.argv = [job.script, *job.args]
    sys.path.insert(0, str(Path(job.script).parent))
    federated.begin(job.task)
    try:
        runpy.run_path(job.script, run_name="__main__")
    except BaseException as error:
        from fedprox.errors import with_location

        end.after(error)
        if end.status:
            (Path(job.task) / FAILURE).write_text(with_location(error), encoding="utf-8")
        raise


class _Server:
    """Forks, stops and waits for the processes of jobs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._running: dict[int, int] = {}  # job number -> process id, which is its process group's, too
        self._kill_at: dict[int, float] = {}
        self._wakeup, write = socket.socketpair()
        for end in (self._wakeup, write):
            end.setblocking(False)
        self._write = write
        self._libc = ctypes.CDLL(None)
        self._send({"server": os.getpid()})
        signal.set_wakeup_fd(write.fileno())
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the wake-up tells

    def serve(self) -> Job | None:
        """Return None once all has ended, or in a forked process its job."""
        unread = b""
        is_open = True
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while is_open or self._running:
                ready = [key.fileobj for key, _ in selector.select(self._patience_s())]
                if self._wakeup in ready and any(self._wakeup.recv(4096).translate(None, bytes([signal.SIGCHLD]))):
                    is_open = self._end(selector) if is_open else False
                if self._connection in ready:
                    received = self._received()
                    unread += received
                    if not received and is_open:
                        is_open = self._end(selector)
                *lines, unread = unread.split(b"\n")
                for line in lines if is_open else ():
                    if job := self._obey(json.loads(line)):
                        return job
                self._kill_overdue()
                self._take_ended()
        return None

    def _received(self) -> bytes:
        try:
            return self._connection.recv(1 << 16)
        except OSError:
            return b""

    def _end(self, selector: selectors.BaseSelector) -> bool:
        """Stop all jobs; return False, as the connection is closed."""
        selector.unregister(self._connection)
        for number in self._running:
            self._stop(number)
        return False

    def _obey(self, order: dict[str, object]) -> Job | None:
        """Stop a job, or start one: return it in the forked process."""
        if "stop" in order:
            self._stop(order["stop"])  # type: ignore[arg-type]
            return None
        job = Job(**order)  # type: ignore[arg-type]
        process = os.fork()
        if process:
            with contextlib.suppress(OSError):
                os.setpgid(process, process)  # in both, because either may be first
            self._running[job.number] = process
            return None
        os.setpgid(0, 0)
        if hasattr(self._libc, "prctl"):
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for end in (self._connection, self._wakeup, self._write):
            end.close()
        return job

    def _stop(self, number: int) -> None:
        if number in self._running and number not in self._kill_at:
            self._signal(number, signal.SIGTERM)
            self._kill_at[number] = time.monotonic() + KILL_AFTER_S

    def _signal(self, number: int, which: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._running[number], which)

    def _patience_s(self) -> float | None:
        """Return the seconds until the next kill; None without any."""
        return max(0.0, min(self._kill_at.values()) - time.monotonic()) if self._kill_at else None

    def _kill_overdue(self) -> None:
        for number, at in self._kill_at.items():
            if time.monotonic() >= at:
                self._signal(number, signal.SIGKILL)
                self._kill_at[number] = at + KILL_AFTER_S

    def _take_ended(self) -> None:
        """Report the jobs that have ended, and end what they have left behind."""
        for number in list(self._ended()):
            self._signal(number, signal.SIGKILL)  # before the process is reaped, while its id cannot be another's
            _, status, usage = os.wait4(self._running.pop(number), 0)
            self._kill_at.pop(number, None)
            ended = {"job": number, "status": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024}
            self._send(ended)

    def _send(self, fact: dict[str, int]) -> None:
        with contextlib.suppress(OSError):  # no process listens any more
            self._connection.sendall(json.dumps(fact).encode() + b"\n")

    def _ended(self) -> Iterator[int]:
        for number, process in self._running.items():
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                yield number
