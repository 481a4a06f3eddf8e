"""The table of a report in LaTeX, with booktabs' rules."""

import math
import re
from collections.abc import Callable, Sequence

import pandas as pd

from fedprox.errors import printable
from fedprox.report.figures import titled
from fedprox.report.paired import CONFIDENCE
from fedprox.report.runs import Facts, percent
from fedprox.report.style import difference_text, plus_minus
from fedprox.report.summary import level_heading, to_level

_SPECIAL = {each: f"\\{each}" for each in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex_table(summary: pd.DataFrame, last: int) -> str:
    r"""Return a tabular of accuracies, losses, rounds to a level if there is one, and differences to a baseline.

    The best means of a data set and straggler level are bold, as they are printed: two of 0.812 are both bold.

    Args:
        summary: From `fedprox.report.summary.summarise` or `fedprox.report.paired.with_differences`.
        last: How many last rounds of a run are averaged.
    """
    baseline = str(summary["baseline"].iloc[0]) if "baseline" in summary else None
    panels = [panel for _, panel in summary.groupby(["dataset", "stragglers_fraction"], sort=False)]
    headings = ["Data set", "Stragglers", "Algorithm", "$n$", f"Accuracy (last {last})", f"Loss (last {last})"]
    if "level" in summary:
        headings.append(level_heading(summary).capitalize())
    if baseline:
        headings.append(f"Difference to {escaped(baseline)}")
    bodies = ["\n".join(" & ".join(row) + r" \\" for row in _rows(panel, baseline)) for panel in panels]
    lines = [
        *_explanation(last, baseline),
        rf"\begin{{tabular}}{{llll{'r' * (len(headings) - 4)}}}",
        r"\toprule",
        " & ".join(headings) + r" \\",
        r"\midrule",
        "\n\\midrule\n".join(bodies),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _explanation(last: int, baseline: str | None) -> list[str]:
    """Return comments that say what the table holds."""
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% mean and sample standard deviation, over n runs, of each run's mean over its last {last} evaluated rounds; "
        "the best in bold",
    ]
    if baseline:
        lines.append(
            f"% difference: accuracy less that of {printable(baseline)} in the same repetition, which has the same "
            f"clients and batches; mean and {100 * CONFIDENCE:g}% t-interval over the pairs, n unless given"
        )
    return lines


def _rows(panel: pd.DataFrame, baseline: str | None) -> list[list[str]]:
    """Return the cells of a data set and straggler level; both are named in its first row only."""
    records = panel.to_dict("records")
    others = [""] * (len(records) - 1)
    columns = [
        [escaped(titled(str(records[0]["dataset"]))), *others],
        [escaped(percent(records[0]["stragglers_fraction"])), *others],
        [escaped(str(row["algorithm"])) for row in records],
        [f"{row['runs']}{'' if row['used'] == 'finished' else ' unfinished'}" for row in records],
        _means(records, "test_accuracy", max),
        _means(records, "test_loss", min),
    ]
    if "level" in panel:
        columns.append(list(map(_in_math, to_level(panel))))
    if baseline:
        columns.append([_difference(row, is_baseline=row["algorithm"] == baseline) for row in records])
    return [list(row) for row in zip(*columns, strict=True)]


def _means(records: Sequence[Facts], name: str, best_of: Callable[[list[float]], float]) -> list[str]:
    """Return means and deviations, with the best means in bold."""
    finite = [row[f"{name}_mean"] for row in records if math.isfinite(row[f"{name}_mean"])]
    best = f"{best_of(finite):.3f}" if finite else ""
    texts = [plus_minus(row[f"{name}_mean"], row[f"{name}_std"], ".3f") for row in records]
    return [_in_math(text, is_bold=text.partition(" ")[0] == best) for text in texts]


def _difference(row: Facts, *, is_baseline: bool) -> str:
    """Return a difference with its interval, and the number of pairs if it is not that of the runs."""
    if is_baseline or math.isnan(row["difference_mean"]):
        return "--"
    text = _in_math(difference_text(row["difference_mean"], row["difference_low"], row["difference_high"]))
    return text if row["pairs"] == row["runs"] else f"{text} ($n = {row['pairs']:g}$)"


def _in_math(text: str, *, is_bold: bool = False) -> str:
    """Return a mean with its deviation or interval in mathematics; any other text as it is."""
    found = re.match(r"[+-]?\d[\d.e+-]*( ± [\d.e+-]+| \[[^]]*\])?", text)
    if not found:
        return text
    formula = found[0].replace("±", r"\pm").replace(" [", r"\ [")
    formula = rf"\mathbf{{{formula}}}" if is_bold else formula
    return f"${formula}${text[found.end() :]}"


def escaped(text: str) -> str:
    r"""Return a text for LaTeX, with mu as a letter: "FedProx ($\mu = 0.1$)"."""
    plain = "".join(_SPECIAL.get(each, each) for each in printable(text))
    return re.sub(r"\bmu = ([^,)]+)", r"$\\mu = \1$", plain)
