"""Time and peak memory of commands in fresh processes, with all their children."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_PERIOD_S = 0.1
_SEARCH_EVERY = 10  # readings; a search of the process table takes 2 ms from a program that uses all cores


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: Its exit status; negative for a signal.
        whole_s: Seconds from before its start to after its end.
        cpu_s: CPU seconds of the process and the children that it waited for.
        peak_bytes: The peak memory of its whole process tree; see `run`.
        out: Its standard output.
        err: Its standard error.
    """

    status: int
    whole_s: float
    cpu_s: float
    peak_bytes: int
    out: str
    err: str


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Ended:
    """Run a command to its end.

    The memory is the sum of the peak resident memory of all processes in its tree. Each peak is VmHWM of /proc, a
    high-water mark, read every 0.1 s; new processes are searched every second. The sum is at least the true peak of
    the processes that were found, because shared pages count in each process, and the peaks need not coincide. A
    process that lives for less than a second may be missed. The result is therefore at least the largest peak of any
    one process, which `wait4` reports at the end, if that exceeds the peak of this process by a tenth: a child starts
    with its parent's, and the kernel counts pages per CPU, so two readings of one peak differ a little.

    The folder is the working directory and receives the output in files.

    Raises:
        OSError: If it cannot be started.
    """
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        own_bytes, start = _high_water_mark(os.getpid()), time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        tree = _Tree(process.pid)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            tree.stop()
        whole_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    largest_bytes = used.ru_maxrss * 1024
    return Ended(
        status=process.returncode,
        whole_s=whole_s,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_bytes=max(tree.peak_bytes(), largest_bytes if largest_bytes > 1.1 * own_bytes else 0),
        out=(folder / "out.txt").read_text(errors="replace"),
        err=(folder / "err.txt").read_text(errors="replace"),
    )


class _Tree:
    """Reads the high-water marks of a process and its descendants until it is stopped."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._marks: dict[int, list[int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        for reading in count():
            if self._ended.wait(_PERIOD_S):
                return
            if reading % _SEARCH_EVERY == 0:
                tree = (self._root, *descendants(self._root))
            for pid in tree:
                if mark := _high_water_mark(pid):
                    self._marks.setdefault(pid, []).append(mark)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def peak_bytes(self) -> int:
        """Return the sum of the last marks; a mark that was read only once may be the parent's, from before an exec."""
        return sum(marks[-1] for marks in self._marks.values() if len(marks) > 1)


def descendants(root: int) -> Iterator[int]:
    """Yield the ids of all descendants of a process, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])  # after the name, which may hold spaces
        except (OSError, IndexError):  # it has ended
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    waiting = list(children.get(root, ()))
    while waiting:
        yield (pid := waiting.pop())
        waiting += children.get(pid, ())


def _high_water_mark(pid: int) -> int:
    """Return a process's peak resident memory in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
