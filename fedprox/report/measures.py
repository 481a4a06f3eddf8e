"""What the rounds of one run say: its last ones, how steady it was, and when it got to a level."""

import pandas as pd

from fedprox.report.checks import EXPERIMENT

ALWAYS = ("test_accuracy", "test_loss", "final_accuracy", "best_accuracy", "volatility")
WHERE_RECORDED = ("drift", "client_accuracy_std", "client_accuracy_worst", "client_accuracy_best")


def per_run(frame: pd.DataFrame, last: int, level: float | None = None) -> pd.DataFrame:
    """Return a row per run, by its directory; rounds that were not evaluated have no part in it.

    Args:
        frame: From `fedprox.report.table.read_runs`.
        last: How many last rounds are averaged, >= 1.
        level: A test accuracy, 0 .. 1; None for none.

    Returns:
        The EXPERIMENT columns and status; means over the last rounds of test_accuracy, test_loss and, where any run
        has them, the columns WHERE_RECORDED; final_accuracy (last round) and best_accuracy (best round); volatility,
        the sample standard deviation of the accuracy's change from each evaluated round to the next, NaN below two
        changes; with a level rounds_to_level, the first evaluated round with at least that accuracy, else NaN.
    """
    evaluated = frame.dropna(subset=["test_accuracy"])
    runs = evaluated.groupby("run", sort=False)
    table = runs[[*EXPERIMENT, "status"]].first()
    tails = runs.tail(last).groupby("run", sort=False)
    table["test_accuracy"] = tails["test_accuracy"].mean()
    table["test_loss"] = tails["test_loss"].mean(skipna=False)
    table["final_accuracy"] = runs["test_accuracy"].last()
    table["best_accuracy"] = runs["test_accuracy"].max()
    table["volatility"] = runs["test_accuracy"].agg(lambda accuracies: accuracies.diff().std())
    for column in recorded(frame):
        table[column] = tails[column].mean()
    if level is not None:
        table["rounds_to_level"] = evaluated[evaluated["test_accuracy"] >= level].groupby("run")["round"].min()
    return table


def recorded(frame: pd.DataFrame) -> list[str]:
    """Return those columns of WHERE_RECORDED that any run has."""
    return [column for column in WHERE_RECORDED if column in frame and frame[column].notna().any()]
