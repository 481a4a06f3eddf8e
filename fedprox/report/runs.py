"""One run directory as the reports see it: its identity (run.json) and its rounds (metrics.csv)."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.report.lineage import steps, suffix
from fedprox.runs.reader import COMPLETE, RESUME_MAY_CHANGE, as_texts, broken, read_rows

TITLES = {  # name in run.json -> name in the paper
    "synthetic_iid": "Synthetic-IID",
    "synthetic_0_0": "Synthetic(0,0)",
    "synthetic_0.5_0.5": "Synthetic(0.5,0.5)",
    "synthetic_1_1": "Synthetic(1,1)",
    "mnist": "MNIST",
    "femnist": "FEMNIST",
    "shakespeare": "Shakespeare",
    "sent140": "Sent140",
}
EXPERIMENT = ["dataset", "stragglers_fraction", "algorithm"]  # runs with the same values here are repetitions
# Settings in which repetitions may differ: random draws, and where and how fast a run computes.
MAY_DIFFER = ("seed", "repeat_num", "branch_from", *RESUME_MAY_CHANGE)

Facts = Mapping[Any, Any]


def distortions(runs: Sequence[Facts], settings: Sequence[Facts]) -> list[str]:
    """Return a line for each thing that distorts means: unfinished runs, mixed settings, and copies of a run.

    Args:
        runs: Status, seed, repetition and the EXPERIMENT columns of each run.
        settings: The resolved, nested configuration of each run.
    """
    experiments: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, run in enumerate(runs):
        experiments[tuple(run[column] for column in EXPERIMENT)].append(index)
    lines = _unfinished([run["status"] for run in runs])
    for members in experiments.values():
        lines += _mixed([runs[index] for index in members], [settings[index] for index in members])
    return lines


def label(experiment: Facts) -> str:
    """Return the EXPERIMENT columns in words: "FedAvg on mnist at 90% stragglers"."""
    stragglers = percent(experiment["stragglers_fraction"])
    return f"{experiment['algorithm']} on {experiment['dataset']} at {stragglers} stragglers"


def percent(fraction: float) -> str:
    """Return 0.9 as "90%"."""
    return f"{100 * fraction:g}%"


def _unfinished(statuses: Sequence[str]) -> list[str]:
    counts = Counter(status for status in statuses if status not in COMPLETE)
    if not counts:
        return []
    states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return [
        f"{counts.total()} of {len(statuses)} runs are not finished ({states}); "
        "curves show the rounds they have, and the table uses finished runs if there are any"
    ]


def _mixed(runs: Sequence[Facts], settings: Sequence[Facts]) -> list[str]:
    """Return a line if the runs of an experiment are not repetitions of each other."""
    flat = [as_texts(nested, MAY_DIFFER) for nested in settings]
    names = sorted({name for each in flat for name in each})
    differing = [name for name in names if len({each.get(name) for each in flat}) > 1]
    if differing:
        return [f"the runs of {label(runs[0])} differ in {', '.join(differing)}; report them separately or use --by"]
    copies = len(runs) - len({(run["seed"], run["repetition"]) for run in runs})
    if copies:
        return [f"{copies} of {len(runs)} runs of {label(runs[0])} have another run's seed; give each seed once"]
    return []


REQUIRED = ("round", "test_loss", "test_accuracy", "train_loss_cohort", "num_clients_counted", "time_s")

LAST_ROUND = 2**32  # num_rounds is always smaller


def identify(run: Path, record: dict[str, Any], by: Sequence[str] = ()) -> dict[str, Any]:
    """Return the columns that distinguish a run from others: run, status, algorithm, mu, ..., dataset.

    Args:
        run: The run directory.
        record: Its run.json.
        by: Settings whose values are appended to the data set's name, as in "cifar10, alpha = 0.1".

    Raises:
        UserError: If mu, stragglers_fraction, seed or repetition is missing or not a number, or a setting is missing.
    """
    values = [f", {name.rpartition('.')[2]} = {_setting(run, record, name)}" for name in by]
    try:
        mu = record["settings"].get("mu")
        return {
            "run": str(run),
            "status": str(record["status"]),
            "algorithm": str(record["algorithm"]) + suffix(steps(run, record)),
            "mu": float("nan") if mu is None else float(mu),
            "stragglers_fraction": float(record["settings"]["stragglers_fraction"]),
            "seed": int(record["seed"]),
            "repetition": int(record.get("repetition") or 0),
            "dataset": str(record["name"]) + "".join(values),
        }
    except KeyError as error:
        raise broken(run / "run.json", f"settings lack {error.args[0]}") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise broken(run / "run.json", error) from error


def _setting(run: Path, record: dict[str, Any], name: str) -> Any:
    value: Any = record["settings"]
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"{run} has no setting {name}; its settings are in {run / '.hydra/config.yaml'}")
        value = value[key]
    return value


def read_metrics(file: Path, finished: bool) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a metrics.csv, with complete rows only.

    Args:
        file: The metrics.csv of a run.
        finished: Whether the run is finished; an unfinished one may lack the file or its header.

    Returns:
        Name -> one value per row, NaN for empty cells.

    Raises:
        UserError: If a column is missing, a row has too few or too many values, a value is not a number, or
            the rounds do not increase.
    """
    try:
        header, rows = read_rows(file) if finished or file.exists() else ([], [])
        if not header and not finished:
            header = list(REQUIRED)
        if lacking := [column for column in REQUIRED if column not in header]:
            raise ValueError(f"it lacks the columns {', '.join(lacking)}")
        numbers = [[float(value or "nan") for value in row] for row in rows]  # "nan" and "inf" are numbers too
        columns = dict(zip(header, np.array(numbers).reshape(-1, len(header)).T, strict=True))
        if not (np.all(np.diff(columns["round"], prepend=-1.0) > 0) and np.all(columns["round"] < LAST_ROUND)):
            raise ValueError("the rounds do not increase")
        return columns
    except ValueError as error:
        raise broken(file, error) from error
