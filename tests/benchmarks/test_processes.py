"""Time and memory of a command with its children."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.processes import descendants, run

MB = 10**6
HOLD = "import time; held = bytearray(b'x') * {size}; time.sleep(0.6)"


def test_a_command_leaves_its_status_its_output_and_its_time(tmp_path):
    code = "import sys, time; print('said'); print('wrong', file=sys.stderr); time.sleep(0.3); sys.exit(3)"
    ended = run([sys.executable, "-c", code], tmp_path, os.environ)
    assert (ended.status, ended.out, ended.err) == (3, "said\n", "wrong\n")
    assert ended.whole_s >= 0.3  # it slept that long; no upper bound


def test_memory_is_that_of_the_command_and_its_children_and_not_of_whoever_started_it(tmp_path):
    held = np.ones(50 * MB)  # 400 MB in this process
    child = HOLD.format(size=200 * MB)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    alone = run([sys.executable, "-c", HOLD.format(size=1)], tmp_path, os.environ).peak_bytes
    both = run([sys.executable, "-c", parent], tmp_path, os.environ).peak_bytes
    assert 0 < alone < 100 * MB  # an interpreter
    assert 200 * MB < both < 200 * MB + 3 * alone
    assert held[0] == 1


def test_a_peak_counts_after_it_has_passed(tmp_path):
    code = "import time; held = bytearray(b'x') * 200_000_000; del held; time.sleep(0.6)"
    assert run([sys.executable, "-c", code], tmp_path, os.environ).peak_bytes > 200 * MB


def test_descendants_are_children_and_their_children_and_nobody_else():
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


def test_a_program_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        run([str(tmp_path / "nothing")], tmp_path, os.environ)
