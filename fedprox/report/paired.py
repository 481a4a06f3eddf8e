"""Differences between algorithms, paired by repetition, with confidence intervals."""

import difflib
import math

import pandas as pd

from fedprox.errors import UserError
from fedprox.report.runs import EXPERIMENT
from fedprox.report.summary import algorithm_order, counted, per_run

CONFIDENCE = 0.95
_PAIR = ["dataset", "stragglers_fraction", "seed", "repetition"]


def choose_baseline(frame: pd.DataFrame, name: str | None = None) -> str | None:
    """Return the algorithm that the others are compared with: FedAvg if it is there, or the one that is named.

    Args:
        frame: From `fedprox.report.summary.read_runs`.
        name: An algorithm, as tables name it; None: the first in `algorithm_order`, if there are several.

    Raises:
        UserError: If no run has the algorithm, or there is nothing to compare it with.
    """
    algorithms = algorithm_order(frame)
    if name is None:
        return algorithms[0] if len(algorithms) > 1 else None
    if name not in algorithms:
        close = difflib.get_close_matches(name, algorithms, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(algorithms)}"
        raise UserError(f"--baseline must be an algorithm of these runs, got {name}; {hint}")
    if len(algorithms) == 1:
        raise UserError(f"--baseline {name} has nothing to be compared with; add runs of another algorithm")
    return name


def differences(frame: pd.DataFrame, baseline: str, last: int = 10) -> pd.DataFrame:
    """Return how much more accurate each algorithm is than the baseline, in the same repetitions.

    Repetitions with the same `seed` and `repeat_num` have the same data, cohorts, stragglers and batches, so what they
    have in common cancels in d_i, the difference of two runs' mean accuracies over their last rounds. With their mean d
    and sample standard deviation s over n pairs, the interval d ± t(0.975, n - 1) · s / √n, from Student's t
    distribution, covers the expected difference with 95% confidence if the d_i are normal.

    Args:
        frame: From `fedprox.report.summary.read_runs`.
        baseline: An algorithm of the frame.
        last: How many last rounds of a run are averaged, >= 1.

    Returns:
        A row per (dataset, stragglers_fraction, algorithm) that has repetitions in common with the baseline, apart from
        the baseline itself: pairs (their number), difference_mean, difference_std, difference_low and difference_high
        (the interval's ends). The last three are NaN for one pair.
    """
    runs = counted(per_run(frame, last))
    accuracies = runs.groupby([*_PAIR, "algorithm"])["test_accuracy"].mean()  # of copies, which a warning has named
    table = accuracies.rename("accuracy").reset_index()
    of_baseline = table[table["algorithm"] == baseline].drop(columns="algorithm")
    others = table[table["algorithm"] != baseline]
    paired = others.merge(of_baseline, on=_PAIR, suffixes=("", "_of_baseline"))
    paired["difference"] = paired["accuracy"] - paired["accuracy_of_baseline"]
    by_experiment = paired.groupby(EXPERIMENT)["difference"]
    found = by_experiment.agg(pairs="count", difference_mean="mean", difference_std="std").reset_index()
    half = [_half_width(*row) for row in found[["difference_std", "pairs"]].itertuples(index=False)]
    return found.assign(difference_low=found["difference_mean"] - half, difference_high=found["difference_mean"] + half)


def with_differences(summary: pd.DataFrame, frame: pd.DataFrame, baseline: str, last: int = 10) -> pd.DataFrame:
    """Return `summarise`'s table of a frame with the columns of `differences` and baseline, its name."""
    table = summary.merge(differences(frame, baseline, last), how="left", on=EXPERIMENT)
    return table.assign(baseline=baseline, pairs=table["pairs"].fillna(0).astype(int))


def _half_width(std: float, count: int) -> float:
    """Return t((1 + CONFIDENCE) / 2, count - 1) · std / √count; NaN for one pair."""
    from scipy.special import stdtrit  # here: it takes a tenth of a second

    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(count) if count > 1 else math.nan
