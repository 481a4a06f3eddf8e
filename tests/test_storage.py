"""Atomic files, and locks on folders."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fedprox.errors import UserError
from fedprox.storage import is_locked, locked, write_atomic

HOLDS = """
import sys, time
from pathlib import Path
from fedprox.storage import locked
with locked(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""
DIES = """
import os, sys
from pathlib import Path
from fedprox.storage import write_atomic
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), 9))
if sys.argv[2] == "replace":
    Path.replace = lambda *_: os.kill(os.getpid(), 9)
write_atomic(Path(sys.argv[1]), b"new" * 100_000)
"""


def test_a_file_is_written_and_nothing_is_left_beside_it(tmp_path):
    for content in (b"first", b"", b"a longer one"):
        write_atomic(tmp_path / "file", content)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", content)]


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_writer_that_dies_in_between_leaves_the_old_file(tmp_path, at, environment):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", DIES, str(file), at], env=environment(), timeout=600)
    assert done.returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
    write_atomic(file, b"next")  # whatever the killed process left
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"next")]


def test_a_full_disk_leaves_the_old_file_and_the_error_names_it(tmp_path, environment):
    code = (
        "import resource, sys; from pathlib import Path; from fedprox.storage import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomic(Path(sys.argv[1]), b'x' * 5000)"
    )
    file = tmp_path / "file"
    file.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.stderr.splitlines()[-1] == f"OSError: [Errno 27] File too large: '{file}'"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_second_process_is_refused_and_a_dead_one_is_forgotten(tmp_path, environment):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], env=environment(), stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "has it\n"
            with pytest.raises(UserError, match="is being written by another process"), locked(tmp_path):
                pass
        finally:
            os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with locked(tmp_path):
        pass


def test_a_folder_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError


def test_a_folder_is_locked_as_long_as_a_context_holds_it(tmp_path):
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        assert is_locked(tmp_path)  # the check did not take the lock away
        with pytest.raises(UserError, match="is being written by another process"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "missing")


def test_a_check_does_not_keep_others_from_locking_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprox.storage.PATIENCE_S", 60.0)  # the timer may be late
    opened = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_SH)  # as is_locked does for an instant
    threading.Timer(0.1, os.close, [opened]).start()
    with locked(tmp_path):
        assert is_locked(tmp_path)


def test_waiting_for_a_folder_ends_when_it_is_free(tmp_path):
    order = []

    def second() -> None:
        with locked(tmp_path, wait=True):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.7)  # longer than PATIENCE_S
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
