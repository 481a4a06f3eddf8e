"""Where the time of W1's rounds goes, by the project's own parts."""

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
PARTS = {  # of the table -> modules below `fedprox`; a name stands for itself and all below it
    "training": ("solvers",),
    "examples of a client": ("data",),
    "evaluation": ("evaluation",),
    "plan and batch order": ("plan", "seeds"),
    "messages and strategy": ("federation", "strategies", "engines"),
    "records": ("runs", "storage", "experiment"),
}
REST = "rest"
_LONGEST_CHAIN = 30  # of calls from one library function to the next
_LEAST_S = 1e-9  # for calls too short to have been timed
Function = tuple[str, int, str]  # file, line, name, as in pstats
Stats = dict[Function, tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]]


def profile_w1(overrides: Sequence[str] = ()) -> dict[str, float]:
    """Run W1 twice in this process, on one thread, and return the seconds of the second one's rounds by part.

    One thread, because a profile sees one; the first run loads what is compiled.
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

    The time inside a function of ours belongs to its module; that inside a library's belongs to the modules that called
    it, directly or through other functions of libraries, as far as each did.
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
    """Return the mean of the callers' shares by their weights, without those not known yet; shares sum to 1."""
    mixed: dict[str, float] = {}
    for shares, weight in callers:
        for part, share in shares.items():
            mixed[part] = mixed.get(part, 0.0) + share * max(weight, _LEAST_S)
    total = sum(mixed.values())
    return {part: value / total for part, value in mixed.items()}


def part_of(file: str) -> str:
    """Return the part that a source file belongs to: a module without one is its own; "" for a library's.

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
        f"| {part} | {value:.3f} | {100 * value / total:.0f} % |"
        for part, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return "\n".join(["| part of the rounds | s | share |", "| --- | --- | --- |", *lines, f"| all | {total:.3f} | |"])
