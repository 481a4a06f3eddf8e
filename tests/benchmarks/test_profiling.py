"""Division of the time among the parts of the project."""

import pytest

import fedprox
from benchmarks.profiling import PACKAGE, PARTS, REST, by_part, part_of, profile_w1, table

KERNEL = (str(PACKAGE / "solvers" / "logistic.py"), 1, "solve")
METRICS = (str(PACKAGE / "evaluation" / "metrics.py"), 1, "evaluate")
LINEAR, CALL, FORWARD, BUILTIN = (("torch.py", number, name) for number, name in enumerate("lcfb"))


def entry(own_s: float, **callers: tuple) -> tuple:
    return (1, 1, own_s, own_s, {function: (1, 1, seconds, seconds) for function, seconds in callers.values()})


def test_a_module_belongs_to_one_part_and_a_foreign_file_to_none():
    assert part_of(KERNEL[0]) == "training"
    assert part_of(str(PACKAGE / "evaluation" / "evaluators.py")) == "evaluation"
    assert part_of(str(PACKAGE / "engines" / "local.py")) == "messages and strategy"
    assert part_of(str(PACKAGE / "report" / "curves.py")) == "report.curves"  # in no part: its own row
    assert part_of("/somewhere/else/solvers/logistic.py") == ""
    assert part_of(str(PACKAGE / "solvers" / "kernels" / "lanes.py")) == ""  # its callers' time


def test_every_name_of_a_part_is_a_module_or_package():
    for name in (name for names in PARTS.values() for name in names):
        path = PACKAGE / name
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    assert fedprox.__file__


def test_a_librarys_time_is_divided_among_its_callers_also_through_cycles():
    # The kernel calls linear for 1 s; evaluate calls it for 3 s, but through a circle of two library functions.
    stats = {
        KERNEL: entry(2.0),
        METRICS: entry(0.5),
        CALL: entry(0.1, a=(METRICS, 0.05), b=(FORWARD, 0.05)),
        FORWARD: entry(0.1, a=(CALL, 0.1)),
        LINEAR: entry(4.0, a=(KERNEL, 1.0), b=(FORWARD, 3.0)),
        BUILTIN: entry(0.25),
    }
    seconds = by_part(stats)
    assert seconds["training"] == pytest.approx(2.0 + 1.0)
    assert seconds["evaluation"] == pytest.approx(0.5 + 0.1 + 0.1 + 3.0)
    assert seconds[REST] == pytest.approx(0.25)  # its caller is unknown
    assert sum(seconds.values()) == pytest.approx(2.0 + 0.5 + 0.1 + 0.1 + 4.0 + 0.25)


def test_the_table_is_ordered_by_seconds():
    lines = table({"a": 1.0, "b": 3.0}).splitlines()
    assert lines[2:] == ["| b | 3.000 | 75% |", "| a | 1.000 | 25% |", "| all | 4.000 | |"]


def test_a_small_run_spends_time_in_every_part():
    seconds = profile_w1(["dataset=digits", "num_clients=50", "num_rounds=3"])
    assert set(seconds) >= {*PARTS, REST}
    assert all(seconds[part] > 0 for part in PARTS)
