"""Runs that began at a round of another one: how they are told from runs of their own, and where their lines begin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprox.runs.reader import broken

# Settings that are seen elsewhere: in the algorithm's name, the panel, the curve's length, or that make repetitions.
_SEEN = ("mu", "strategy", "stragglers_fraction", "num_rounds", "seed", "repeat_num")
_REPETITION = ("seed", "repeat_num")

Step = Mapping[str, Any]


def steps(run: Path, record: Mapping[str, Any]) -> list[Step]:
    """Return where a run left which other one, the first branching first; none for a run of its own.

    Raises:
        UserError: If run.json says it in a way that cannot be read.
    """
    step, found = record.get("branched_from"), list[Step]()
    try:
        while step is not None:
            found.append({"run": str(step["run"]), "round": int(step["round"]), "changed": list(step["changed"])})
            step = step.get("before")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise broken(run / "run.json", f"branched_from: {error!r}") from error
    return found[::-1]


def suffix(lineage: Sequence[Step]) -> str:
    """Return what makes a branch's algorithm another than that of the run it left: " from round 40, then 60"."""
    texts = [", ".join([str(step["round"]), *_changed(step, _SEEN)]) for step in lineage]
    return f" from round {', then '.join(texts)}" if texts else ""


def of_repetitions(lineage: Sequence[Step]) -> list[list[Any]]:
    """Return what branches have in common that are repetitions of each other."""
    return [[step["round"], *_kept(step["changed"], _REPETITION)] for step in lineage]


def own_beginnings(runs: Sequence[Path], lineages: Sequence[Sequence[Step]]) -> list[int]:
    """Return for each run the round at which it leaves another one of these; 0 if it leaves none."""
    given = {str(run.resolve()) for run in runs}
    return [lineage[-1]["round"] if lineage and lineage[-1]["run"] in given else 0 for lineage in lineages]


def _changed(step: Step, without: Sequence[str]) -> list[str]:
    return [entry.partition(" (was ")[0] for entry in _kept(step["changed"], without)]


def _kept(changed: Sequence[str], without: Sequence[str]) -> list[str]:
    return [entry for entry in changed if entry.partition("=")[0].partition(".")[0] not in without]
