"""Measurement of cases in fresh processes, in turn."""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import readings
from benchmarks.processes import Ended, run
from benchmarks.readings import Numbers
from benchmarks.workloads import Case, Workload
from fedprox.errors import UserError

ROOT = Path(__file__).parents[1]


def measure_in_turn(workloads: Sequence[Workload], runs: int) -> Iterator[tuple[Case, Numbers, dict[str, Any]]]:
    """Yield the cases with their numbers and facts, one after another, and all of that `runs` times.

    They run in turn so that a temporary disturbance of the machine affects both sides of a comparison.
    """
    for _ in range(runs):
        for workload in workloads:
            for case in workload.cases:
                yield case, *measure(case)


def measure(case: Case) -> tuple[Numbers, dict[str, Any]]:
    """Return the numbers of a fresh run of a case, and its first run.json; {} for another program.

    Raises:
        UserError: If a command fails.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        ended = [_run(case.name, command, folder) for command in command_lines(case)]
        numbers = readings.from_json(ended[0].out) if case.program else readings.from_runs(folder)
        facts = {} if case.program else next(iter(readings.facts_of(folder).values()))
    numbers |= {
        "whole_s": sum(one.whole_s for one in ended),
        "cpu_s": sum(one.cpu_s for one in ended),
        "memory_gb": max(one.peak_bytes for one in ended) / 1e9,
    }
    return numbers, facts


def command_lines(case: Case) -> list[tuple[str, ...]]:
    """Return the command lines of a case, which run one after another."""
    if case.program:
        return [tuple(sys.executable if word == "{python}" else word for word in case.program)]
    return [(sys.executable, "-m", "fedprox.main", *arguments) for arguments in case.commands]


def environment() -> dict[str, str]:
    """Return the environment variables for this checkout's code and data from any working directory."""
    data = Path(os.environ.get("FEDPROX_DATA_DIR", ROOT / "data")).absolute()
    return {**os.environ, "PYTHONPATH": str(ROOT), "FEDPROX_DATA_DIR": str(data)}


def export(workload: str, file: Path, overrides: Sequence[str]) -> None:
    """Write the data for peers in a separate process, so that this one stays small.

    Raises:
        UserError: If that fails.
    """
    command = (sys.executable, "-m", "benchmarks", "export", workload, str(file), *overrides)
    _run(f"exporting {workload}", command, file.parent)


def _run(what: str, command: Sequence[str], folder: Path) -> Ended:
    ended = run(command, folder, environment())
    if ended.status:
        reason = (ended.err.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"{what} ended with status {ended.status}: {reason}; the command was {shlex.join(command)}")
    return ended
