"""The rounds of a figure's runs in one table, and its summary with means and standard deviations over runs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedprox.report.runs import percent
from fedprox.report.style import plus_minus
from fedprox.report.summary import rounds_of
from fedprox.reproduce.runs import folder_of
from fedprox.reproduce.specs import DATASETS, Figure, Job
from fedprox.runs.reader import read_record

EXPERIMENT = ["dataset", "stragglers_fraction", "line"]  # runs that agree here differ in their seed or repetition
RUN = [*EXPERIMENT, "seed", "repetition"]
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
        One row per job and round: dataset, stragglers_fraction, line, seed, repetition, the columns of metrics.csv, and
        mu, which is the setting unless it is adapted.
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
                seed=job.seed,
                repetition=job.repetition,
            )
        )
    return pd.concat(tables, ignore_index=True)


def of_data_sets(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the rounds of the first run on each data set: seeds 0, 1, ..., repetition 0."""
    return curves[curves["repetition"] == 0]


def of_repetitions(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the rounds of all repetitions on the data of seed 0."""
    return curves[curves["seed"] == 0]


def summarise(curves: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """Return mean and sample standard deviation over the runs of each line of each panel.

    Returns:
        One row per (dataset, stragglers_fraction, line) in the figure's order, with over ("repetitions"), runs,
        last_round, and for each metric X: X_mean and X_std of the last round, X_last10_mean and X_last10_std of each
        run's mean over its last ten rounds, X_half_mean and X_half_std of its mean over the first half of the rounds
        (without the initial model), and X_each, the list of the runs' means over the last ten. Standard deviations are
        NaN for a single run. A figure over several data sets has two such rows, the first over "data sets".
    """
    repetitions = _summarise(of_repetitions(curves), figure).assign(over="repetitions")
    if curves["seed"].nunique() == 1:
        return _in_order(repetitions, figure)
    data_sets = _summarise(of_data_sets(curves), figure).assign(over="data sets")
    return _in_order(pd.concat([data_sets, repetitions], ignore_index=True), figure)


def _summarise(curves: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    columns = table_metrics(figure)
    ordered = curves.sort_values("round").groupby(RUN)
    experiments = ordered.tail(1).groupby(EXPERIMENT)
    last_round = curves.groupby(RUN)["round"].transform("max")
    first_half = curves[(curves["round"] > 0) & (curves["round"] <= last_round / 2)]
    means = {
        part: rounds.groupby(RUN)[columns].mean(skipna=False).reset_index().groupby(EXPERIMENT)
        for part, rounds in (("last10", ordered.tail(LAST)), ("half", first_half))
    }
    summary = pd.DataFrame({"runs": experiments.size(), "last_round": experiments["round"].min()})
    for column in columns:
        for name, groups in ((column, experiments), *((f"{column}_{part}", means[part]) for part in means)):
            summary[f"{name}_mean"] = groups[column].mean(skipna=False)
            summary[f"{name}_std"] = groups[column].std(skipna=False)
        summary[f"{column}_each"] = means["last10"][column].agg(list)
    return summary.reset_index()


def table_metrics(figure: Figure) -> list[str]:
    """Return the metrics of a figure's table: the plotted ones, and the authors' variance beside the weighted one."""
    unweighted = ["gradient_variance_unweighted"] if "gradient_variance" in figure.metrics else []
    return [*figure.metrics, *unweighted]


def readable(summary: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """Return `summarise`'s table formatted for reading: means of the last ten rounds ± standard deviation over runs.

    With stragglers the table also has the first half of the rounds, in which their cost shows most. A figure over data
    sets also lists the first metric of each run, in the order of seeds or repetitions.
    """
    table = pd.DataFrame({"data set": [DATASETS[name].title for name in summary["dataset"]]})
    table["stragglers"] = [percent(fraction) for fraction in summary["stragglers_fraction"]]
    table["algorithm"] = [
        line.replace("best mu", f"mu = {DATASETS[dataset].best_mu:g}, the paper's best")
        for dataset, line in zip(summary["dataset"], summary["line"], strict=True)
    ]
    over_data = summary["over"].nunique() > 1
    table["runs"] = summary["runs"].astype(str) + (" " + summary["over"] if over_data else "")
    table["rounds"] = summary["last_round"]
    for metric in table_metrics(figure):
        parts = {"": "last10", ", first half": "half"} if len(figure.levels) > 1 else {"": "last10"}
        for said, part in parts.items():
            values = zip(summary[f"{metric}_{part}_mean"], summary[f"{metric}_{part}_std"], strict=True)
            table[NAMES[metric] + said] = [mean_std(mean, std) for mean, std in values]
    if over_data:
        first = figure.metrics[0]
        table[f"{NAMES[first]}, run by run"] = [
            ", ".join(mean_std(value) for value in each) for each in summary[f"{first}_each"]
        ]
    return table


def mean_std(mean: float, std: float = float("nan")) -> str:
    """Return "0.712 ± 0.031", with three significant digits for a mean below 0.1."""
    return plus_minus(mean, std, ".3f" if mean == 0 or 0.1 <= mean < 1e4 else ".3g")


def _in_order(summary: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    datasets, lines = list(figure.datasets), [line.label for line in figure.all_lines]
    keys = summary.assign(
        dataset=summary["dataset"].map(datasets.index), line=summary["line"].map(lines.index)
    ).sort_values([*EXPERIMENT, "over"])  # data sets before repetitions
    return summary.loc[keys.index].reset_index(drop=True)
