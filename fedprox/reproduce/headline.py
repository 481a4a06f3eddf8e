"""The headline number: accuracy gain of FedProx over FedAvg at 90% stragglers (Li et al. 2020, app. C.3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedprox.reproduce.specs import BEST_MU, DATASETS, FEDAVG
from fedprox.reproduce.tables import mean_std

CONVERGED = 1e-4  # |f_t - f_{t-1}| below this
DIVERGED = 1.0  # f_t - f_{t-10} above this
BACK = 10  # rounds
PAPER = 22.0  # percentage points, the mean of five data sets


@dataclass(frozen=True)
class Reading:
    """The place at which a curve is read.

    Attributes:
        place: Index into the curve.
        reason: "converged", "diverged" or "last".
    """

    place: int
    reason: str


def read_at(losses: Sequence[float]) -> Reading:
    """Return the first place with |f_t - f_{t-1}| < 1e-4 or f_t - f_{t-10} > 1, or the last place.

    A NaN or infinite loss counts as diverged.

    Args:
        losses: Global training loss by round, the initial model's first; at least one.
    """
    for place, loss in enumerate(losses):
        if not np.isfinite(loss) or (place >= BACK and loss - losses[place - BACK] > DIVERGED):
            return Reading(place, "diverged")
        if place >= 1 and abs(loss - losses[place - 1]) < CONVERGED:
            return Reading(place, "converged")
    return Reading(len(losses) - 1, "last")


def read_runs(curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run: dataset, line, repetition, and round, reason and test_accuracy of its reading."""
    rows = []
    for (dataset, line, repetition), run in curves.groupby(["dataset", "line", "repetition"], sort=False):
        run = run.sort_values("round")
        reading = read_at(run["train_loss"].tolist())
        at = run.iloc[reading.place]
        rows.append((dataset, line, repetition, int(at["round"]), reading.reason, float(at["test_accuracy"])))
    return pd.DataFrame(rows, columns=["dataset", "line", "repetition", "round", "reason", "test_accuracy"])


def compare(readings: pd.DataFrame) -> pd.DataFrame:
    """Return one row per data set: mean and std of both accuracies over runs, and their difference in points.

    Returns:
        dataset, runs, X_mean, X_std and X_read for X = fedavg, fedprox (X_read: rounds and reasons), and points. The
        last row, named "mean", has only points, the mean over the data sets.
    """
    rows: list[dict[str, object]] = []
    for dataset, group in readings.groupby("dataset", sort=False):
        row: dict[str, object] = {"dataset": dataset, "runs": group["repetition"].nunique()}
        means = {}
        for name, line in (("fedavg", FEDAVG), ("fedprox", BEST_MU)):
            runs = group[group["line"] == line.label]
            means[name] = runs["test_accuracy"].mean(skipna=False)
            row |= {
                f"{name}_mean": means[name],
                f"{name}_std": runs["test_accuracy"].std(skipna=False),
                f"{name}_read": ", ".join(f"{at} {why}" for at, why in zip(runs["round"], runs["reason"], strict=True)),
            }
        rows.append({**row, "points": 100 * (means["fedprox"] - means["fedavg"])})
    table = pd.DataFrame(rows)
    mean = pd.DataFrame([{"dataset": "mean", "points": table["points"].mean(skipna=False)}])
    return pd.concat([table, mean], ignore_index=True)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return `compare`'s table formatted for reading."""
    rows = []
    for row in table.to_dict("records"):
        points = f"{row['points']:+.1f}"
        if row["dataset"] == "mean":
            num_datasets = len(table) - 1
            note = f"mean of {num_datasets} data set{'s' * (num_datasets > 1)} (paper: +{PAPER:.0f}, of five)"
            rows.append((note, "", "", "", "", "", points))
            continue
        dataset = DATASETS[str(row["dataset"])]
        rows.append(
            (
                f"{dataset.title} (mu = {dataset.best_mu:g})",
                f"{row['runs']:.0f}",
                mean_std(row["fedavg_mean"], row["fedavg_std"]),
                str(row["fedavg_read"]),
                mean_std(row["fedprox_mean"], row["fedprox_std"]),
                str(row["fedprox_read"]),
                points,
            )
        )
    columns = ["data set", "runs", "FedAvg", "read at round", "FedProx", "read at round ", "points"]
    return pd.DataFrame(rows, columns=columns)
