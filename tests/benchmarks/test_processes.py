"""Time and memory of a command and its children."""

import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from benchmarks import processes
from benchmarks.processes import descendants, run

MB = 10**6
HOLD = """
import os, time
held = bytearray(b'x') * {size}
{then}
while not os.path.exists('read'):
    time.sleep(0.01)
"""


@pytest.fixture
def until_read(tmp_path, monkeypatch):
    """Return a function that creates the file "read", for which processes wait, once enough of them were read twice."""
    read = processes._high_water_mark

    def let_go(num_processes: int, of_bytes: int) -> None:
        (tmp_path / "read").unlink(missing_ok=True)
        marks = Counter()

        def reading(pid: int) -> int:
            mark = read(pid)
            marks[pid] += 1
            large = mark > of_bytes
            if pid != os.getpid() and large and sum(count > 2 for count in marks.values()) >= num_processes:
                (tmp_path / "read").touch()
            return mark

        monkeypatch.setattr(processes, "_high_water_mark", reading)

    return let_go


def test_an_ended_command_has_its_status_output_and_time(tmp_path):
    code = "import sys, time; print('said'); print('wrong', file=sys.stderr); time.sleep(0.3); sys.exit(3)"
    ended = run([sys.executable, "-c", code], tmp_path, os.environ)
    assert (ended.status, ended.out, ended.err) == (3, "said\n", "wrong\n")
    assert ended.whole_s >= 0.3  # it slept that long; no upper bound


def test_memory_is_that_of_the_command_and_its_children_without_this_process(tmp_path, until_read):
    held = np.ones(50 * MB)  # 400 MB in this process
    child = HOLD.format(size=200 * MB, then="")
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    until_read(1, MB)
    alone = run([sys.executable, "-c", HOLD.format(size=1, then="")], tmp_path, os.environ).peak_bytes
    until_read(2, 200 * MB)
    both = run([sys.executable, "-c", parent], tmp_path, os.environ).peak_bytes
    assert 0 < alone < 100 * MB  # an interpreter
    assert 200 * MB < both < 200 * MB + 3 * alone
    assert held[0] == 1


def test_a_peak_counts_after_it_has_passed(tmp_path, until_read):
    until_read(1, 200 * MB)
    code = HOLD.format(size=200 * MB, then="del held")
    assert run([sys.executable, "-c", code], tmp_path, os.environ).peak_bytes > 200 * MB


def test_a_peak_that_was_not_sampled_is_reported_by_wait4(tmp_path, environment):
    # In a small process, because a child's peak starts with its parent's.
    command = [sys.executable, "-c", f"held = bytearray(b'x') * {200 * MB}"]
    code = f"""
import os
from pathlib import Path
from benchmarks import processes
processes._PERIOD_S = 1000.0  # no sampling
print(processes.run({command!r}, Path({str(tmp_path)!r}), os.environ).peak_bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert 200 * MB < int(done.stdout) < 300 * MB  # and an interpreter


def test_descendants_are_children_and_their_children_only():
    child = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", child]) as process, subprocess.Popen(["sleep", "60"]) as other:
        try:
            while not (found := list(descendants(process.pid))):
                time.sleep(0.01)
            assert other.pid not in found
            assert {process.pid, other.pid, *found} <= set(descendants(os.getpid()))
        finally:
            for pid in (*descendants(process.pid), process.pid, other.pid):
                os.kill(pid, 15)


def test_a_missing_program_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        run([str(tmp_path / "nothing")], tmp_path, os.environ)
