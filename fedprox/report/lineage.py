"""Lineage of branches: which run a branch has left in which round, as run.json records it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox.runs.reader import broken

_REPETITION = ("seed", "repeat_num")
# Settings that a figure shows elsewhere (algorithm's name, panel, length of the line), or that make repetitions.
_SHOWN_ELSEWHERE = ("mu", "strategy", "stragglers_fraction", "num_rounds", *_REPETITION)


@dataclass(frozen=True)
class Step:
    """A branching.

    Attributes:
        run: The run directory that was left.
        round_num: The round in which it was left.
        changed: The settings that were changed, such as "mu=1.0 (was 0.0)".
    """

    run: str
    round_num: int
    changed: tuple[str, ...]

    def changes(self, without: Sequence[str]) -> list[str]:
        """Return the changed settings, leaving out some."""
        return [entry for entry in self.changed if entry.partition("=")[0].partition(".")[0] not in without]


def steps(run: Path, record: Mapping[str, Any]) -> list[Step]:
    """Return the branchings that led to a run, oldest first; [] if it is not a branch.

    Raises:
        UserError: If this entry of run.json is invalid.
    """
    step, found = record.get("branched_from"), list[Step]()
    try:
        while step is not None:
            found.append(Step(str(step["run"]), int(step["round"]), tuple(step["changed"])))
            step = step.get("before")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise broken(run / "run.json", f"branched_from: {error!r}") from error
    return found[::-1]


def suffix(lineage: Sequence[Step]) -> str:
    """Return the ending of a branch's algorithm that distinguishes it from other runs: " from round 40, then 60"."""
    changes = [[entry.partition(" (was ")[0] for entry in step.changes(without=_SHOWN_ELSEWHERE)] for step in lineage]
    texts = [", ".join([str(step.round_num), *each]) for step, each in zip(lineage, changes, strict=True)]
    return f" from round {', then '.join(texts)}" if texts else ""


def of_repetitions(lineage: Sequence[Step]) -> list[list[Any]]:
    """Return the part of a lineage that is the same in branches which are repetitions of each other."""
    return [[step.round_num, *step.changes(without=_REPETITION)] for step in lineage]


def own_beginnings(runs: Sequence[Path], lineages: Sequence[Sequence[Step]]) -> list[int]:
    """Return for each run the round in which it leaves another of these runs; 0 if it leaves none."""
    given = {str(run.resolve()) for run in runs}
    return [lineage[-1].round_num if lineage and lineage[-1].run in given else 0 for lineage in lineages]
