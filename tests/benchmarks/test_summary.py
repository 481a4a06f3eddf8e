"""Medians and ranges, ratios, verdicts, the table and the JSON file."""

import json

import pytest

from benchmarks.summary import Row, Spread, as_json, quotients_of, rows_of, table
from benchmarks.workloads import Case, Goal, Ratio, Workload

FAST = Case("W", "fast", goals=(Goal("rounds_s", 1, 2),), shown=("whole_s", "setup_s"))
SLOW = Case("W", "slow", shown=("rounds_s",))
WORKLOAD = Workload("W", "two cases", (FAST, SLOW), (Ratio("W", "rounds_s", "slow", "fast"),))
RESULTS = {
    "W fast": [{"rounds_s": 1.5, "whole_s": 10.0}, {"rounds_s": 3.0, "whole_s": 1234.0}, {"rounds_s": 1.0}],
    "W slow": [{"rounds_s": 6.0}, {"rounds_s": 6.0}],
}


@pytest.mark.parametrize(
    ("values", "spread"), [([3, 1, 2], (2, 1, 3)), ([1, 4], (2.5, 1, 4)), ([7], (7, 7, 7)), ([9, 1, 1], (1, 1, 9))]
)
def test_a_spread_is_the_median_and_the_range(values, spread):
    assert Spread.of(values) == Spread(*spread)


def test_rows_are_measured_numbers_with_goals_first_and_ratios_last():
    rows = rows_of(WORKLOAD, RESULTS, cores=2)
    assert [(row.name, row.number) for row in rows] == [
        ("W fast", "rounds_s"),
        ("W fast", "whole_s"),
        ("W slow", "rounds_s"),
        ("W slow / fast, rounds", "ratio"),
    ]
    assert rows[0].spread == Spread(1.5, 1.0, 3.0)
    assert rows[1].spread == Spread(622.0, 10.0, 1234.0)  # of the two runs that have this number
    assert rows[3].spread == Spread(3.0, 2.0, 4.0)  # 6 / 1.5 and 6 / 3, run by run; the third has no partner
    assert rows_of(WORKLOAD, {}, cores=2) == []


def test_a_ratio_per_core_divides_by_all_cores():
    ratio = Ratio("W", "rounds_s", "slow", "fast", per_core=True)
    assert quotients_of(ratio, RESULTS, cores=2) == [6 / (2 * 1.5), 6 / (2 * 3.0)]


@pytest.mark.parametrize(
    ("median", "more_is_better", "verdict"),
    [
        (1.0, False, "goal met"),
        (1.01, False, "within the limit"),
        (2.0, False, "within the limit"),
        (2.01, False, "OVER THE LIMIT"),
        (2.0, True, "goal met"),
        (1.99, True, "within the limit"),
        (0.99, True, "OVER THE LIMIT"),
    ],
)
def test_a_verdict_compares_the_median_with_goal_and_limit(median, more_is_better, verdict):
    goal = Goal("ratio", 2.0, 1.0, True) if more_is_better else Goal("rounds_s", 1.0, 2.0)
    assert Row("W", goal.number, Spread(median, 0.0, 9.0), goal).verdict == verdict
    assert Row("W", goal.number, Spread(median, 0.0, 9.0)).verdict == ""


def test_the_table_is_aligned_markdown_with_units_and_three_digits():
    expected = """\
| what                  | number        | median (range)        | goal | limit |                  |
| --------------------- | ------------- | --------------------- | ---- | ----- | ---------------- |
| W fast                | rounds        | 1.5 (1 to 3) s        | 1    | 2     | within the limit |
| W fast                | whole command | 622 (10 to 1,234) s   |      |       |                  |
| W slow                | rounds        | 6 (6 to 6) s          |      |       |                  |
| W slow / fast, rounds | ratio         | 3 (2 to 4)            |      |       |                  |
"""
    found = table(rows_of(WORKLOAD, RESULTS, cores=2)).splitlines()
    words = [[cell.strip() for cell in line.split("|")] for line in found]
    assert words[2:] == [[cell.strip() for cell in line.split("|")] for line in expected.splitlines()[2:]]
    assert len({len(line) for line in found}) == 1


def test_the_json_file_has_every_run_and_the_table():
    found = json.loads(json.dumps(as_json([WORKLOAD], RESULTS, {"start": "now"}, cores=2)))
    assert found["start"] == "now"
    assert found["runs"] == RESULTS
    assert found["table"][0]["spread"] == {"median": 1.5, "lowest": 1.0, "highest": 3.0}
    assert found["table"][0]["verdict"] == "within the limit"
    assert found["workloads"][0]["cases"][0]["label"] == "fast"
