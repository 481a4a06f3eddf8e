"""Run directories as one tidy table (a row per run and round), and its summary with means and standard deviations."""

import sys
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedprox.errors import UserError, printable
from fedprox.report.lineage import of_repetitions, own_beginnings, steps
from fedprox.report.runs import EXPERIMENT, LAST_ROUND, Facts, distortions, identify, label, percent, read_metrics
from fedprox.report.style import difference_text, plus_minus
from fedprox.runs.reader import COMPLETE, completed, no_run, read_record, walk

ALWAYS = ("test_accuracy", "test_loss", "final_accuracy", "best_accuracy", "volatility")
WITH_ACCURACY = ("test_accuracy", "final_accuracy", "best_accuracy", "volatility")
IF_RECORDED = (
    *("drift", "client_accuracy_std", "client_accuracy_worst", "client_accuracy_best"),
    *("personal_accuracy", "personal_accuracy_mean", "personal_accuracy_worst"),
)


class Axis(NamedTuple):
    """What figures can be drawn over, and what a run takes to reach a level.

    Attributes:
        column: Of metrics.csv.
        label: Of the figures' horizontal axis.
        unit: In the table's heading, as in "rounds to 0.85".
        counted: Name of the columns of `summarise`, as in "rounds_to_level_mean".
        scale: Units of the column in one of the table and the figure.
        digits: Format of a mean in the table.
        option: Of the report, and what runs need for it.
    """

    column: str
    label: str
    unit: str
    counted: str
    scale: float = 1.0
    digits: str = ".1f"
    option: str = ""


ROUND = Axis("round", "round", "rounds", "rounds")
BYTES = Axis(
    *("bytes_up", "MB sent by clients", "MB", "bytes", 1e6, ".3g"),
    option="--by-bytes needs runs that counted their bytes, and not all of these did; run them with update=float32 or "
    "a compression, such as update=quantise",
)
VIRTUAL = Axis(
    *("virtual_time_s", "virtual seconds", "virtual seconds", "virtual_seconds"),
    option="--by-time virtual needs runs with a virtual clock, and not all of these have one; run them with devices=, "
    "such as devices=lognormal",
)
WALL = Axis("time_s", "seconds", "seconds", "seconds", option="--by-time wall needs runs that recorded their time")
AXES = (ROUND, BYTES, VIRTUAL, WALL)


def per_run(frame: pd.DataFrame, last: int, level: float | None = None, x: Axis = ROUND) -> pd.DataFrame:
    """Return a row per run, indexed by its directory, over its evaluated rounds.

    Args:
        frame: From `read_runs`.
        last: How many last rounds are averaged, >= 1.
        level: A test accuracy, 0 .. 1; None for no column cost_to_level.
        x: What is counted until then.

    Returns:
        The EXPERIMENT columns, seed, repetition and unfinished; means over the last rounds of test_accuracy, test_loss
        and, if any run has them, the columns IF_RECORDED; final_accuracy (last round) and best_accuracy (best round);
        volatility, the sample standard deviation of the accuracy's change from one evaluated round to the next, NaN for
        fewer than two changes; cost_to_level, the value of `x` in the first evaluated round with at least that
        accuracy, NaN if there is none.
    """
    evaluated = evaluated_rounds(frame)
    runs = evaluated.groupby("run", sort=False)
    table = runs[[*EXPERIMENT, "seed", "repetition"]].first()
    table["unfinished"] = ~runs["status"].first().isin(COMPLETE)
    tails = runs.tail(last).groupby("run", sort=False)
    table["test_accuracy"] = tails["test_accuracy"].mean()
    table["test_loss"] = tails["test_loss"].mean(skipna=False)
    table["final_accuracy"] = runs["test_accuracy"].last()
    table["best_accuracy"] = runs["test_accuracy"].max()
    table["volatility"] = runs["test_accuracy"].agg(lambda accuracies: accuracies.diff().std())
    for column in recorded(frame):
        table[column] = tails[column].mean()
    if level is not None:
        table["cost_to_level"] = evaluated[evaluated["test_accuracy"] >= level].groupby("run")[x.column].min()
    return table


def evaluated_rounds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of rounds whose model was measured; regression has a loss, but no accuracy."""
    return frame.dropna(subset=["test_loss", "test_accuracy"], how="all")


def has_accuracy(frame: pd.DataFrame) -> bool:
    """Return whether any run has an accuracy."""
    return bool(frame["test_accuracy"].notna().any())


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """Return those rows of `per_run` that means are of: finished runs, and all runs of experiments that have none."""
    return runs[~runs["unfinished"] | runs.groupby(EXPERIMENT)["unfinished"].transform("all")]


def recorded(frame: pd.DataFrame) -> list[str]:
    """Return those columns of IF_RECORDED that any run has."""
    return [column for column in IF_RECORDED if column in frame and frame[column].notna().any()]


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return every run directory (a folder with run.json) among and below `paths`, each once, sorted.

    Raises:
        UserError: If a path is not a directory, or there is no run at all.
    """
    roots = [Path(path) for path in paths]
    runs = {folder.resolve(): folder for folder, files in walk(roots) if "run.json" in files}
    if not runs:
        raise no_run(roots)
    return sorted(runs.values())


def read_runs(paths: Iterable[str | Path], by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rounds of all runs among and below `paths` as one tidy table.

    Warnings on stderr list what would distort a mean over these runs: unfinished runs, runs given twice, and runs of
    one experiment whose settings differ.

    Args:
        paths: Run directories, or folders of them.
        by: More settings that distinguish experiments, such as partition.alpha; their values are appended to the data
            set's name.

    Returns:
        One row per run and round with the columns run (the directory), status, algorithm, mu (NaN if the algorithm has
        none), stragglers_fraction (0 .. 1), seed, repetition, dataset, begins (the round in which a branch leaves
        another of these runs, whose rows are also its own until then; otherwise 0), and those of metrics.csv: round,
        test_loss, test_accuracy (0 .. 1), train_loss_cohort, num_clients_counted, time_s and any others, NaN for runs
        that lack them.

    Raises:
        UserError: If there is no run, no run has a round yet, a run.json or metrics.csv is damaged, or a run lacks a
            setting of `by`.
    """
    directories = find_runs(paths)
    records = [read_record(directory / "run.json") for directory in directories]
    runs = [identify(directory, record, by) for directory, record in zip(directories, records, strict=True)]
    lineages = [steps(directory, record) for directory, record in zip(directories, records, strict=True)]
    tables = [
        rounds_of(directory, finished=run["status"] in COMPLETE).assign(**run, begins=begins)
        for directory, run, begins in zip(directories, runs, own_beginnings(directories, lineages), strict=True)
    ]
    if not any(len(evaluated_rounds(table)) for table in tables):
        script = " and give its script an evaluate= function" if any("script" in record for record in records) else ""
        raise UserError(f"no evaluated round yet in {directories[0]} (of {len(runs)} runs); wait for the first{script}")
    settings = [
        {**completed(record["settings"]), "branched_from": of_repetitions(lineage)}
        for record, lineage in zip(records, lineages, strict=True)
    ]
    for line in distortions(runs, settings):
        print(f"warning: {printable(line)}", file=sys.stderr)
    frame = pd.concat([table for table in tables if len(table)], ignore_index=True)
    first = [*runs[0], "begins"]
    return frame[[*first, *frame.columns.drop(first)]]


def rounds_of(run: Path, finished: bool) -> pd.DataFrame:
    """Return a run's metrics.csv as a table; see `fedprox.report.runs.read_metrics`."""
    return pd.DataFrame(read_metrics(run / "metrics.csv", finished)).astype({"round": int})


def check_rounds(last: int, level: float | None) -> None:
    """Raise UserError unless `summarise` takes these."""
    if not 1 <= last < LAST_ROUND:
        raise UserError(
            f"last must be >= 1 and below {LAST_ROUND}, got {last}; it is the number of last rounds that are averaged"
        )
    if level is not None and not 0 < level <= 1:
        raise UserError(f"level must be above 0 and at most 1, got {level:g}; for 60% give 0.6")


def check_recorded(frame: pd.DataFrame, x: Axis) -> None:
    """Raise UserError unless all runs have recorded what is to be counted."""
    if x.column not in frame or evaluated_rounds(frame)[x.column].isna().any():
        raise UserError(x.option)


def summarise(frame: pd.DataFrame, last: int = 10, level: float | None = None, x: Axis = ROUND) -> pd.DataFrame:
    """Return mean and sample standard deviation over the runs of each experiment.

    Only finished runs count, unless an experiment has none; a warning on stderr says so then. A run with a NaN or
    infinite loss is not left out, so it makes the mean NaN or infinite.

    Args:
        frame: From `read_runs`.
        last: A run's test_accuracy and test_loss are its means over this many last rounds, >= 1.
        level: Also count the rounds to this test accuracy, above 0 and at most 1; None for no such columns.
        x: What to count instead of rounds, such as BYTES that clients have sent until then.

    Returns:
        One row per (dataset, stragglers_fraction, algorithm), algorithms in `algorithm_order`, with runs (how many
        count), used (whether those are "finished" or "unfinished"), unfinished (how many there are), and X_mean and
        X_std for X = test_accuracy, test_loss, final_accuracy, best_accuracy, volatility and the other columns of
        `per_run`. X_std is NaN for a single run; both are NaN if a run lacks X. With a level also level, reached (how
        many of the runs reach it) and rounds_to_level_mean and _std over those, or for another `x` bytes_to_level_mean
        and so on.

    Raises:
        UserError: If last or level is out of range, or runs have not recorded `x`.
    """
    check_rounds(last, level)
    check_recorded(frame, x)
    runs = per_run(frame, last, level, x)
    used = counted(runs).groupby(EXPERIMENT)
    summary = pd.DataFrame({"runs": used.size()})
    summary["used"] = used["unfinished"].any().map({False: "finished", True: "unfinished"})
    summary["unfinished"] = runs.groupby(EXPERIMENT)["unfinished"].sum()
    for column in (*ALWAYS, *recorded(frame)):
        summary[f"{column}_mean"] = used[column].mean(skipna=False)
        summary[f"{column}_std"] = used[column].std(skipna=False)
    if level is not None:
        costs = used["cost_to_level"]
        summary["level"], summary["reached"] = level, costs.count()
        summary[f"{x.counted}_to_level_mean"], summary[f"{x.counted}_to_level_std"] = costs.mean(), costs.std()
    summary = in_order(summary.reset_index(), algorithm_order(frame))
    for row in summary[summary["used"] == "unfinished"].to_dict("records"):
        print(f"warning: {printable(label(row))} has no finished run; using its unfinished ones", file=sys.stderr)
    return summary


def mean_by_round(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean and sample standard deviation over the runs of each experiment, round by round.

    Every run counts for the evaluated rounds that it has, so n falls along an experiment with unfinished runs. A NaN or
    infinite loss makes the mean of its round NaN or infinite: a mean without diverged runs would flatter the algorithm.

    Returns:
        One row per (dataset, stragglers_fraction, algorithm, round) with n (runs that have this round), begins,
        test_loss_mean, test_loss_std, test_accuracy_mean and test_accuracy_std (std is NaN if n = 1), the same for
        drift if any run has it, and the means of the columns of AXES that runs have.
    """
    groups = evaluated_rounds(frame).groupby([*EXPERIMENT, "round"])
    means = pd.DataFrame({"n": groups.size(), "begins": groups["begins"].min()})
    for column in ("test_loss", "test_accuracy", *(name for name in recorded(frame) if name == "drift")):
        means[f"{column}_mean"] = groups[column].mean(skipna=False)
        means[f"{column}_std"] = groups[column].std(skipna=False)
    for column in (each.column for each in AXES if each is not ROUND and each.column in frame):
        means[column] = groups[column].mean()
    return in_order(means.reset_index(), algorithm_order(frame))


def algorithm_order(frame: pd.DataFrame) -> list[str]:
    """Return the algorithms of `frame`: FedAvg, then FedProx by mu, then the others by name and mu; branches last."""
    first = frame.drop_duplicates("algorithm").set_index("algorithm")["mu"].fillna(0.0)

    def key(algorithm: str) -> tuple[bool, int, str, float, str]:
        whole, _, branch = algorithm.partition(" from round ")
        name = whole.split(" (")[0]
        rank = {"FedAvg": 0, "FedProx": 1}.get(name, 2)
        return bool(branch), rank, name, float(first[algorithm]), branch

    return sorted(map(str, first.index), key=key)


def in_order(table: pd.DataFrame, algorithms: Sequence[str]) -> pd.DataFrame:
    """Return `table` sorted by data set, straggler level and algorithm (as in `algorithms`), stably."""
    rank = {algorithm: position for position, algorithm in enumerate(algorithms)}
    keyed = table.assign(_rank=table["algorithm"].map(rank))
    keyed = keyed.sort_values(["dataset", "stragglers_fraction", "_rank"], kind="stable", ignore_index=True)
    return keyed.drop(columns="_rank")


def readable(summary: pd.DataFrame, last: int = 10) -> pd.DataFrame:
    """Return `summarise`'s table for the same `last`, each value formatted as `mean ± standard deviation`.

    It may have the columns of `fedprox.report.paired.with_differences`.
    """
    values = {
        f"accuracy (last {last})": "test_accuracy",
        f"loss (last {last})": "test_loss",
        "final accuracy": "final_accuracy",
        "best accuracy": "best_accuracy",
        "volatility": "volatility",
        f"drift (last {last})": "drift",
        f"std over clients (last {last})": "client_accuracy_std",
        f"worst clients (last {last})": "client_accuracy_worst",
        f"best clients (last {last})": "client_accuracy_best",
        f"personal accuracy (last {last})": "personal_accuracy",
        f"mean over clients (last {last})": "personal_accuracy_mean",
        f"worst personal (last {last})": "personal_accuracy_worst",
    }
    table = pd.DataFrame({"data set": summary["dataset"].map(printable)})
    table["stragglers"] = [percent(fraction) for fraction in summary["stragglers_fraction"]]
    table["algorithm"] = summary["algorithm"].map(printable)
    table["runs"] = [_counted(row) for row in summary.to_dict("records")]
    if not summary["best_accuracy_mean"].notna().any():  # regression
        values = {heading: name for heading, name in values.items() if name not in WITH_ACCURACY}
    for heading, name in values.items():
        if f"{name}_mean" in summary:
            rows = zip(summary[f"{name}_mean"], summary[f"{name}_std"], summary["test_loss_mean"], strict=True)
            table[heading] = [  # with a finite loss an accuracy is not diverged, but missing
                _mean_std(mean, std, can_be_missing=name not in ALWAYS[:4] or (name != "test_loss" and isfinite(loss)))
                for mean, std, loss in rows
            ]
    if "level" in summary:
        table[level_heading(summary)] = to_level(summary)
    if "baseline" in summary:
        ends = summary[["difference_mean", "difference_low", "difference_high", "pairs"]].itertuples(index=False)
        heading = f"difference to {printable(summary['baseline'].iloc[0])}"
        table[heading] = [
            f"{difference_text(mean, low, high)}{f', n = {pairs}' if pairs else ''}" for mean, low, high, pairs in ends
        ]
    return table


def level_heading(summary: pd.DataFrame) -> str:
    """Return the heading of what runs take to a level, such as "rounds to 0.85"."""
    return f"{_counted_to_level(summary).unit} to {summary['level'].iloc[0]:g}"


def to_level(summary: pd.DataFrame) -> list[str]:
    """Return what each row's runs take to the level, in words."""
    x = _counted_to_level(summary)
    return [_to_level(row, x) for row in summary.to_dict("records")]


def _counted_to_level(summary: pd.DataFrame) -> Axis:
    return next(each for each in AXES if f"{each.counted}_to_level_mean" in summary)


def _to_level(row: Facts, x: Axis) -> str:
    """Return the mean rounds, or what else was counted, to the level; if not all runs reach it, how many do."""
    if not row["reached"]:
        return "not reached"
    mean, std = (row[f"{x.counted}_to_level_{each}"] / x.scale for each in ("mean", "std"))
    text = plus_minus(mean, std, x.digits)
    return text if row["reached"] == row["runs"] else f"{text} ({row['reached']} of {row['runs']} runs)"


def _mean_std(mean: float, std: float, can_be_missing: bool) -> str:
    return "-" if can_be_missing and pd.isna(mean) else plus_minus(mean, std, ".3f" if mean < 1e4 else ".3g")


def _counted(row: Facts) -> str:
    if row["used"] == "unfinished":
        return f"{row['runs']} unfinished"
    return f"{row['runs']} (+ {row['unfinished']} unfinished)" if row["unfinished"] else str(row["runs"])
