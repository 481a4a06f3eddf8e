"""Numbers of one run of a case, from its run directories or its line of JSON."""

import csv
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from fedprox.errors import UserError

Numbers = dict[str, float]


def facts_of(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return run directory -> run.json for every run below a folder, in order.

    Raises:
        UserError: If there is none, or a run has not finished.
    """
    facts = {file.parent: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("run.json"))}
    unfinished = sum(fact["status"] != "finished" for fact in facts.values())
    if unfinished or not facts:
        raise UserError(f"{unfinished} of {len(facts)} runs are not finished" if facts else "there is no run directory")
    return facts


def from_runs(folder: Path) -> Numbers:
    """Return the numbers of the runs below a folder: times as sums, all others as means over the runs.

    Raises:
        UserError: See `facts_of`.
    """
    facts = facts_of(folder)
    sums = {key: sum(fact["timings"][key] for fact in facts.values()) for key in ("setup_s", "rounds_s", "total_s")}
    each = [_of_run(run) for run in facts]
    return {**sums, **{key: fmean(numbers[key] for numbers in each) for key in each[0]}, "num_runs": len(each)}


def _of_run(run: Path) -> Numbers:
    """Return a run's accuracy, and its speed after round 1, which compiles code and fills caches."""
    metrics = [row for row in _rows(run / "metrics.csv") if int(row["round"]) >= 1]
    accuracies = [float(row["test_accuracy"]) for row in metrics]
    numbers = {"accuracy": accuracies[-1], "accuracy_last10": fmean(accuracies[-10:])}
    first, last = int(metrics[0]["round"]), int(metrics[-1]["round"])
    if last == first:
        return numbers
    time_s = float(metrics[-1]["time_s"]) - float(metrics[0]["time_s"])
    seen = sum(
        int(row["num_examples"]) * int(row["num_epochs"])
        for row in _rows(run / "clients.csv")
        if int(row["round"]) > first
    )
    return {**numbers, "round_ms": 1000 * time_s / (last - first), "images_per_s": seen / time_s}


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def from_json(out: str) -> Numbers:
    """Return the numbers in a program's last line of JSON; other output is ignored.

    Raises:
        UserError: If there is no such line.
    """
    for line in reversed(out.splitlines()):
        try:
            numbers = json.loads(line)
        except ValueError:
            continue
        if isinstance(numbers, dict) and all(isinstance(value, int | float) for value in numbers.values()):
            return {key: float(value) for key, value in numbers.items()}
    raise UserError("the program printed no line of JSON with numbers")
