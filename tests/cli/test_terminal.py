"""Standard output and error that are closed or lose their reader: no traceback, no lost file."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedprox.cli.terminal import ends_quietly


@contextmanager
def replaced(descriptor: int, by: int | None) -> Iterator[None]:
    """Replace a descriptor by another one, or close it, within the context."""
    kept = os.dup(descriptor)
    os.close(descriptor) if by is None else os.dup2(by, descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """Return the write end of a pipe whose read end is closed."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def speaks(status: int = 0) -> int:
    """Write to standard output in all ways that the program uses."""
    log = logging.Logger("of this test")
    log.addHandler(logging.StreamHandler(sys.stdout))
    for _ in range(3):
        print("printed", flush=True)
        log.info("logged")
        os.write(1, b"written past Python\n")
    print("not flushed")
    return status


@pytest.mark.parametrize(("status", "expected"), [(0, 141), (2, 2), (130, 130)])  # 141 = 128 + SIGPIPE's 13
def test_a_program_whose_reader_has_left_finishes_quietly(capfd, closed_pipe, status, expected):
    with replaced(1, closed_pipe):
        assert ends_quietly(lambda: speaks(status) or status) == expected
    assert capfd.readouterr() == ("", "")


def test_standard_error_may_lose_its_reader_too(capfd, closed_pipe):
    def warns() -> int:
        print("error: not read", file=sys.stderr, flush=True)
        return 0

    with replaced(2, closed_pipe):
        assert ends_quietly(warns) == 141
    assert capfd.readouterr() == ("", "")


def test_output_that_cannot_be_written_for_another_reason_is_one_line_and_status_1(capfd):
    with open("/dev/full", "w") as full, replaced(1, full.fileno()):
        assert ends_quietly(speaks) == 1
    assert capfd.readouterr() == ("", "error: standard output cannot be written: No space left on device\n")


def test_with_closed_output_and_error_no_file_gets_their_numbers(tmp_path):
    # A table that had number 2 would receive whatever is written to standard error.
    def opens() -> int:
        with (tmp_path / "table").open("w") as table:
            return int(table.fileno() <= 2)

    with replaced(1, None), replaced(2, None):
        assert ends_quietly(lambda: speaks() or opens()) == 0


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_code_of_the_users_that_closes_or_replaces_a_stream_ends_nothing(capfd, name):
    def closes(then: object) -> int:
        getattr(sys, name).close()
        print("written", file=getattr(sys, name))
        setattr(sys, name, then)
        return 0

    assert ends_quietly(lambda: closes(None)) == 0
    assert ends_quietly(lambda: closes(io.StringIO())) == 0
    assert getattr(capfd.readouterr(), name[3:]) == "written\n" * 2


def test_output_that_is_read_is_complete_and_the_streams_are_restored(capfd):
    before = (sys.stdout, sys.stderr)

    def helps() -> int:
        print("usage")
        raise SystemExit(0)  # as argparse does

    assert ends_quietly(helps) == 0
    assert ends_quietly(lambda: 3) == 3
    assert capfd.readouterr() == ("usage\n", "")
    assert (sys.stdout, sys.stderr) == before


def test_a_run_whose_reader_leaves_finishes_silently(tmp_path, environment):
    run = ("dataset=digits", "engine=local", "num_rounds=2", "num_clients=10", "partition=iid", "hydra.run.dir=run")
    command = [sys.executable, "-m", "fedprox.main", *run]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert (tmp_path / "run" / "model.safetensors").is_file()
