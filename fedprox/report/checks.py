"""What would silently distort a mean over runs, told in one line each."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fedprox.runs.reader import FREE, flattened

EXPERIMENT = ["dataset", "stragglers_fraction", "algorithm"]  # runs that agree here are repetitions
# Settings in which repetitions may differ: they choose the draws, or where and how fast a run computes.
NUMBERLESS = ("seed", "repeat_num", "branch_from", *FREE)

Facts = Mapping[Any, Any]


def distortions(runs: Sequence[Facts], settings: Sequence[Facts]) -> list[str]:
    """Return a line for: runs not finished; an experiment with mixed settings; an experiment with copies.

    Args:
        runs: Each run's status, seed, repetition and the EXPERIMENT columns.
        settings: Each run's resolved configuration, nested, in the same order.
    """
    experiments: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        experiments[tuple(run[column] for column in EXPERIMENT)].append(index)
    lines = _unfinished([run["status"] for run in runs])
    for members in experiments.values():
        lines += _mixed([runs[index] for index in members], [settings[index] for index in members])
    return lines


def label(experiment: Facts) -> str:
    """Return the EXPERIMENT columns in words: "FedAvg on mnist at 90 % stragglers"."""
    stragglers = percent(experiment["stragglers_fraction"])
    return f"{experiment['algorithm']} on {experiment['dataset']} at {stragglers} stragglers"


def percent(fraction: float) -> str:
    """Return 0.9 as "90 %"."""
    return f"{100 * fraction:g} %"


def _unfinished(statuses: Sequence[str]) -> list[str]:
    counts = Counter(status for status in statuses if status != "finished")
    if not counts:
        return []
    states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return [
        f"{counts.total()} of {len(statuses)} runs are not finished ({states}); "
        "curves show the rounds they have, the table uses finished runs where there are any"
    ]


def _mixed(runs: Sequence[Facts], settings: Sequence[Facts]) -> list[str]:
    """Return a line where the runs of one experiment are no repetitions of each other."""
    flat = [flattened(nested, NUMBERLESS) for nested in settings]
    names = sorted({name for each in flat for name in each})
    differing = [name for name in names if len({each.get(name) for each in flat}) > 1]
    if differing:
        return [f"the runs of {label(runs[0])} differ in {', '.join(differing)}; report them apart"]
    copies = len(runs) - len({(run["seed"], run["repetition"]) for run in runs})
    if copies:
        return [f"{copies} of {len(runs)} runs of {label(runs[0])} repeat another's seed; give each once"]
    return []
