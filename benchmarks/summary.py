"""Summary of repeated measurements: medians and ranges, ratios, the table, the JSON file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.readings import Numbers
from benchmarks.workloads import Case, Goal, Ratio, Workload, shown_of

UNITS = {  # number -> name in the table, unit
    "rounds_s": ("rounds", "s"),
    "setup_s": ("set-up", "s"),
    "whole_s": ("whole command", "s"),
    "round_ms": ("a round", "ms"),
    "images_per_s": ("images per second", ""),
    "memory_gb": ("peak memory", "GB"),
    "accuracy": ("final accuracy", ""),
    "accuracy_last10": ("accuracy, last 10 rounds", ""),
    "limit_s": ("limit", "s"),
    "gflop": ("arithmetic", "GFLOP"),
    "gflop_per_s": ("speed", "GFLOP/s"),
    "ratio": ("ratio", ""),
}
Results = dict[str, list[Numbers]]  # Case.name -> its runs


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one number."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Name of the case or the ratio.
        number: A key of UNITS.
        spread: Over the runs.
        goal: Its goal, if it has one.
    """

    name: str
    number: str
    spread: Spread
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """Whether the median meets the goal, only the limit, or neither; "" without a goal."""
        if self.goal is None:
            return ""
        sign = -1 if self.goal.more_is_better else 1
        if sign * self.spread.median <= sign * self.goal.goal:
            return "goal met"
        return "within the limit" if sign * self.spread.median <= sign * self.goal.limit else "OVER THE LIMIT"


def rows_of(workload: Workload, results: Results, cores: int) -> list[Row]:
    """Return the table's rows for a workload, without numbers that were not measured."""
    rows = []
    for case in workload.cases:
        rows += _rows_of_case(case, results.get(case.name, []))
    for ratio in workload.ratios:
        if quotients := quotients_of(ratio, results, cores):
            rows.append(Row(f"{ratio.name}, {UNITS[ratio.number][0]}", "ratio", Spread.of(quotients), *ratio.goals))
    return rows


def _rows_of_case(case: Case, runs: Sequence[Numbers]) -> list[Row]:
    goals = {goal.number: goal for goal in case.goals}
    measured = {key: [run[key] for run in runs if key in run] for key in shown_of(case)}
    return [Row(case.name, key, Spread.of(values), goals.get(key)) for key, values in measured.items() if values]


def quotients_of(ratio: Ratio, results: Results, cores: int) -> list[float]:
    """Return a ratio's value in each run that both sides have completed."""
    above, below = (results.get(f"{ratio.workload} {label}", []) for label in (ratio.of, ratio.to))
    scale = cores if ratio.per_core else 1
    pairs = zip(above, below, strict=False)  # the last run may have been interrupted
    return [a[ratio.number] / (scale * b[ratio.number]) for a, b in pairs if ratio.number in a and ratio.number in b]


def table(rows: Sequence[Row]) -> str:
    """Return rows as aligned Markdown."""
    head = ["what", "number", "median (range)", "goal", "limit", ""]
    body = [
        [
            row.name,
            UNITS[row.number][0],
            _range(row.spread, UNITS[row.number][1]),
            *((_short(row.goal.goal), _short(row.goal.limit)) if row.goal else ("", "")),
            row.verdict,
        ]
        for row in rows
    ]
    widths = [max(3, *(len(line[column]) for line in [head, *body])) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _range(spread: Spread, unit: str) -> str:
    return f"{_short(spread.median)} ({_short(spread.lowest)} to {_short(spread.highest)}) {unit}".rstrip()


def _short(value: float) -> str:
    """Return a number with three significant digits, or all digits before its decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(workloads: Sequence[Workload], results: Results, facts: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """Return the content of the JSON file: facts, workloads, the numbers of each run, and the table's rows."""
    return {
        **facts,
        "workloads": [asdict(workload) for workload in workloads],
        "runs": results,
        "table": [
            {**asdict(row), "verdict": row.verdict}
            for workload in workloads
            for row in rows_of(workload, results, cores)
        ],
    }
