"""The claims table of docs/reproduction.md against the tables of the same page."""

import re
from pathlib import Path

import pytest
from scipy.stats import ttest_ind_from_stats

PAGE = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
NUM_RUNS = 5  # of every mean on the page
NUMBER = r"\d+(?:\.\d+)?"
PAIR = re.compile(r"(N) ± (N) against (N) ± (N) \(p (=|<) (N)\)".replace("N", NUMBER))


def section(title: str) -> str:
    """Return the text below a heading, up to the next one."""
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of a section's table rows, header and rule left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


CLAIMS = rows(section("The paper's claims"))
ELSEWHERE = {cell for cells in rows(PAGE.replace(section("The paper's claims"), "")) for cell in cells}
COMPARED = [pytest.param(found.groups(), id=found[0]) for row in CLAIMS for found in PAIR.finditer(row[-1])]


def test_every_claim_is_confirmed_contradicted_or_not_testable():
    assert {row[2] for row in CLAIMS} == {"confirmed", "contradicted", "not testable"}


def test_every_figure_has_a_claim():
    named = {number for row in CLAIMS for number in re.findall(r"\d+", row[0])}
    assert {str(number) for number in range(1, 13)} <= named


@pytest.mark.parametrize("claim", [pytest.param(row, id=f"{row[0]}: {row[1]}") for row in CLAIMS])
def test_every_mean_with_a_standard_deviation_is_in_a_table_of_the_page(claim):
    assert set(re.findall(f"{NUMBER} ± {NUMBER}", claim[-1])) <= ELSEWHERE


@pytest.mark.parametrize("numbers", COMPARED)
def test_every_p_value_is_that_of_welchs_test_on_the_two_means(numbers):
    *stats, relation, given = numbers
    mean, std, other_mean, other_std = map(float, stats)
    test = ttest_ind_from_stats(mean, std, NUM_RUNS, other_mean, other_std, NUM_RUNS, equal_var=False)
    # Within half a unit of the last given digit.
    assert test.pvalue < float(given) if relation == "<" else test.pvalue == pytest.approx(float(given), abs=0.0051)


def test_there_are_p_values():
    assert len(COMPARED) > 20
