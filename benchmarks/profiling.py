"""Profile of W1's rounds by the parts of the project."""

import cProfile
import logging
import pstats
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fedprox
from benchmarks.export import composed
from benchmarks.workloads import WORKLOADS
from fedprox.experiment import build
from fedprox.experiment import run as experiment
from fedprox.federation.results import Round
from fedprox.federation.rounds import run_rounds

PACKAGE = Path(fedprox.__file__).parent
PARTS = {  # part in the table -> modules and packages of `fedprox`
    "training": ("solvers",),
    "examples of a client": ("data",),
    "evaluation": ("evaluation",),
    "plan and batch order": ("plan", "seeds"),
    "messages and strategy": ("federation", "strategies", "engines"),
    "records": ("runs", "storage", "experiment"),
}
REST = "rest"
_LONGEST_CHAIN = 30  # calls from one library function to the next
_LEAST_S = 1e-9  # for calls too short to be timed
Function = tuple[str, int, str]  # file, line, name, as in pstats
Stats = dict[Function, tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]]


def profile_w1(overrides: Sequence[str] = ()) -> dict[str, float]:
    """Run W1 twice in this process and return the seconds of the second run's rounds by part.

    It uses one thread, because a profile covers only one. The first run loads the compiled code.
    """
    config = composed([*WORKLOADS["W1"].cases[0].commands[0], "engine.num_threads=1", *overrides])
    profile = cProfile.Profile()

    def profiled(*arguments: Any) -> Iterator[Round]:
        profile.enable()
        yield from run_rounds(*arguments)
        profile.disable()

    logging.getLogger("flwr").setLevel(logging.ERROR)  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        experiment.run(config, Path(folder))
        with patch.object(build, "run_rounds", profiled):
            experiment.run(config, Path(folder))
    return by_part(pstats.Stats(profile).stats)  # type: ignore[attr-defined]


def by_part(stats: Stats) -> dict[str, float]:
    """Return seconds by part of the program.

    The time in one of our functions belongs to its module. The time in a library's function is divided among the
    modules that called it, directly or through other library functions, in proportion to their calls.
    """
    shares = {function: {part: 1.0} if (part := part_of(function[0])) else {} for function in stats}
    for _ in range(_LONGEST_CHAIN):  # from callers to what they call, one link at a time
        for function, (_, _, _, _, callers) in stats.items():
            if not part_of(function[0]):
                shares[function] = _mixed([(shares.get(caller, {}), entry[2]) for caller, entry in callers.items()])
    seconds = dict.fromkeys((*PARTS, REST), 0.0)
    for function, (_, _, own_s, _, _) in stats.items():
        for part, share in (shares[function] or {REST: 1.0}).items():
            seconds[part] = seconds.get(part, 0.0) + share * own_s
    return seconds


def _mixed(callers: Sequence[tuple[dict[str, float], float]]) -> dict[str, float]:
    """Return the weighted mean of the callers' shares, which sum to 1; callers without shares do not count yet."""
    mixed: dict[str, float] = {}
    for shares, weight in callers:
        for part, share in shares.items():
            mixed[part] = mixed.get(part, 0.0) + share * max(weight, _LEAST_S)
    total = sum(mixed.values())
    return {part: value / total for part, value in mixed.items()}


def part_of(file: str) -> str:
    """Return the part that a source file belongs to: a module in no part is its own; "" for a library's.

    Kernels and threads count as libraries: solvers train with them, and evaluation measures with them.
    """
    path = Path(file)
    shared = (PACKAGE / "solvers" / "kernels", PACKAGE / "solvers" / "threads.py")
    if not path.is_relative_to(PACKAGE) or any(path.is_relative_to(place) for place in shared):
        return ""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    owners = (part for part, names in PARTS.items() if any(f"{module}.".startswith(f"{name}.") for name in names))
    return next(owners, module)


def table(seconds: dict[str, float]) -> str:
    """Return the parts as Markdown, the largest first."""
    total = sum(seconds.values())
    lines = [
        f"| {part} | {value:.3f} | {100 * value / total:.0f}% |"
        for part, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return "\n".join(["| part of the rounds | s | share |", "| --- | --- | --- |", *lines, f"| all | {total:.3f} | |"])
