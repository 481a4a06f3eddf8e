"""Runs of a figure -> their rounds in one table -> a summary with mean and deviation over repetitions."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedprox.recorded import read_record
from fedprox.report.checks import percent
from fedprox.report.table import rounds_of
from fedprox.reproduce.figures import DATASETS, Figure, Job
from fedprox.reproduce.runs import folder_of

EXPERIMENT = ["dataset", "stragglers_fraction", "line"]  # runs that agree here are repetitions
LAST = 10  # rounds that a table averages
NAMES = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
    "gradient_variance": "variance of local gradients",
    "gradient_variance_unweighted": "variance, unweighted",
    "mu": "mu",
}


def read_curves(jobs: Sequence[Job], out: Path) -> pd.DataFrame:
    """Return the rounds of finished runs.

    Returns:
        One row per job and round: dataset, stragglers_fraction, line, repetition, and the columns of metrics.csv
        with mu, which stays the setting where it is not adapted.
    """
    tables = []
    for job in jobs:
        folder = folder_of(job, out)
        table = rounds_of(folder, finished=True)
        if "mu" not in table:
            table["mu"] = float(read_record(folder / "run.json")["settings"]["mu"])
        tables.append(
            table.assign(
                dataset=job.dataset,
                stragglers_fraction=job.stragglers_fraction,
                line=job.label,
                repetition=job.repetition,
            )
        )
    return pd.concat(tables, ignore_index=True)


def summarise(curves: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """Return mean and sample standard deviation over repetitions of each line of each panel.

    Returns:
        One row per (dataset, stragglers_fraction, line) in the figure's order, with runs, last_round, and for each
        metric X: X_mean and X_std of the last round, X_last10_mean and X_last10_std of each run's mean over
        the last ten, X_half_mean and X_half_std of that over the first half of its rounds, the initial model left
        aside. Deviations are NaN for a single run.
    """
    run = [*EXPERIMENT, "repetition"]
    columns = table_metrics(figure)
    ordered = curves.sort_values("round").groupby(run)
    experiments = ordered.tail(1).groupby(EXPERIMENT)
    last_round = curves.groupby(run)["round"].transform("max")
    first_half = curves[(curves["round"] > 0) & (curves["round"] <= last_round / 2)]
    means = {
        part: rounds.groupby(run)[columns].mean(skipna=False).reset_index().groupby(EXPERIMENT)
        for part, rounds in (("last10", ordered.tail(LAST)), ("half", first_half))
    }
    summary = pd.DataFrame({"runs": experiments.size(), "last_round": experiments["round"].min()})
    for column in columns:
        for name, groups in ((column, experiments), *((f"{column}_{part}", means[part]) for part in means)):
            summary[f"{name}_mean"] = groups[column].mean(skipna=False)
            summary[f"{name}_std"] = groups[column].std(skipna=False)
    return _in_order(summary.reset_index(), figure)


def table_metrics(figure: Figure) -> list[str]:
    """Return the metrics of a figure's table: those plotted, and the authors' variance beside the weighted one."""
    unweighted = ["gradient_variance_unweighted"] if "gradient_variance" in figure.metrics else []
    return [*figure.metrics, *unweighted]


def readable(summary: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """Return `summarise`'s table for people: means of the last ten rounds ± deviation over repetitions.

    With stragglers also those of the first half of the rounds, where what they cost shows most.
    """
    table = pd.DataFrame({"data set": [DATASETS[name].title for name in summary["dataset"]]})
    table["stragglers"] = [percent(fraction) for fraction in summary["stragglers_fraction"]]
    table["algorithm"] = [
        line.replace("best mu", f"mu = {DATASETS[dataset].best_mu:g}, the best")
        for dataset, line in zip(summary["dataset"], summary["line"], strict=True)
    ]
    table["runs"] = summary["runs"]
    table["rounds"] = summary["last_round"]
    for metric in table_metrics(figure):
        parts = {"": "last10", ", first half": "half"} if len(figure.levels) > 1 else {"": "last10"}
        for said, part in parts.items():
            values = zip(summary[f"{metric}_{part}_mean"], summary[f"{metric}_{part}_std"], strict=True)
            table[NAMES[metric] + said] = [plus_minus(mean, std) for mean, std in values]
    return table


def plus_minus(mean: float, std: float) -> str:
    """Return "0.712 ± 0.031", without the deviation where there is none."""
    if pd.isna(mean) or mean == float("inf"):
        return "diverged"
    digits = ".3f" if mean == 0 or 0.1 <= mean < 1e4 else ".3g"
    return f"{mean:{digits}}" if pd.isna(std) else f"{mean:{digits}} ± {std:{digits}}"


def _in_order(summary: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    datasets, lines = list(figure.datasets), [line.label for line in figure.lines]
    keys = summary.assign(
        dataset=summary["dataset"].map(datasets.index), line=summary["line"].map(lines.index)
    ).sort_values(EXPERIMENT)
    return summary.loc[keys.index].reset_index(drop=True)
