"""The run directory: every row is on disk at once, whatever happens afterwards."""

import csv
import itertools
import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file

import fedprox
from fedprox.errors import RunStopped
from fedprox.evaluation.metrics import ClassAccuracy, ClientSpread, Evaluation, FederationMetrics
from fedprox.federation.results import ClientOutcome, Round
from fedprox.plan.plan import ClientTask
from fedprox.runs.csv_table import begins_as_marked
from fedprox.runs.writer import CLIENTS, FEDERATION, METRICS, SPREAD, RunRecord


def outcome(round_num: int, accuracy: float = 0.5, loss: float = 1.5) -> Round:
    """Return a round with one client that counts and one that was dropped; round 0 has no clients."""
    clients = (
        ClientOutcome(ClientTask(7, 2, 6, False, (0, 0, round_num, 7)), 30, 6, 0.25, True, drift=0.5),
        ClientOutcome(ClientTask(3, 1, 3, True, (0, 0, round_num, 3)), 28, 0, None, False),
    )
    test = Evaluation(loss, accuracy)
    return Round(round_num, ArrayRecord(), test, clients if round_num else (), round_num + 0.12345678)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_json(folder: Path) -> dict:
    """Return run.json, read as strictly as the JSON standard, which has neither NaN nor Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def finish(record: RunRecord) -> None:
    record.finish({"w": torch.zeros(1)}, {"setup_s": 1.0, "rounds_s": 2.0, "total_s": 3.0}, 10**12)


def test_every_row_is_on_disk_before_the_next_round_and_the_status_is_running(tmp_path):
    with RunRecord(tmp_path, {"seed": 4}) as record:
        for round_num in range(3):
            record.add(outcome(round_num))
            assert [row["round"] for row in rows(tmp_path / "metrics.csv")] == [str(t) for t in range(round_num + 1)]
            assert len(rows(tmp_path / "clients.csv")) == 2 * round_num
        facts = run_json(tmp_path)
        assert (facts["status"], facts["seed"], facts["result"]) == ("running", 4, None)


@pytest.mark.parametrize("table", ["metrics.csv", "clients.csv"])
@pytest.mark.parametrize("is_written", [False, True])
def test_a_round_that_is_interrupted_between_its_tables_is_in_none_of_them_nor_in_the_result(
    tmp_path, monkeypatch, table, is_written
):
    def write_three_rounds() -> None:
        with RunRecord(tmp_path, {}) as record:
            record.add(outcome(0, accuracy=0.1))
            record.add(outcome(1, accuracy=0.2))
            add = record._tables[table].add

            def interrupt(rows) -> None:
                if is_written:
                    add(rows)
                raise KeyboardInterrupt

            monkeypatch.setattr(record._tables[table], "add", interrupt)
            record.add(outcome(2, accuracy=0.3))

    with pytest.raises(KeyboardInterrupt):
        write_three_rounds()
    assert [row["round"] for row in rows(tmp_path / "metrics.csv")] == ["0", "1"]
    assert [row["round"] for row in rows(tmp_path / "clients.csv")] == ["1", "1"]
    result = run_json(tmp_path)["result"]
    assert (result["final"]["round"], result["best"]["round"]) == (1, 1)


def test_metrics_csv_has_the_measured_values(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        record.add(outcome(0, accuracy=0.1, loss=2.302585092994046))
        record.add(outcome(1))
    first, second = rows(tmp_path / "metrics.csv")
    assert tuple(first) == METRICS
    assert first == {
        "round": "0",
        "test_loss": "2.302585092994046",  # with every digit
        "test_accuracy": "0.1",
        "train_loss_cohort": "",
        "num_clients_counted": "0",
        "time_s": "0.123457",
        "drift": "",
    }
    assert (second["train_loss_cohort"], second["num_clients_counted"], second["drift"]) == ("0.25", "1", "0.5")


def test_clients_csv_has_a_row_per_client_of_the_cohort_also_for_dropped_ones(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        record.add(outcome(1))
    table = rows(tmp_path / "clients.csv")
    assert tuple(table[0]) == CLIENTS
    assert [list(row.values()) for row in table] == [
        ["1", "7", "30", "False", "2", "6", "True", "0.25", "0.5"],
        ["1", "3", "28", "True", "1", "0", "False", "", ""],
    ]


def on_clients(round_num: int, gammas: tuple[float | None, ...] = (0.25, None, 0.75), mu: float = 0.3) -> Round:
    """Return a round that was evaluated on all clients; the gamma of one client was not measured."""
    federation = FederationMetrics(1.25, 0.5, 1.5, 0.625, 7.0, 9.0, 3.0)
    task = ClientTask(7, 2, 6, False, (0, 0, round_num, 7))
    clients = tuple(ClientOutcome(task, 30, 6, 0.25, True, gamma) for gamma in gammas)
    return Round(round_num, ArrayRecord(), Evaluation(1.5, 0.625, federation), clients, 2.0, mu)


def test_evaluation_on_clients_adds_columns_after_the_others(tmp_path):
    with RunRecord(tmp_path, {}, METRICS + FEDERATION) as record:
        record.add(on_clients(0, gammas=()))
        record.add(on_clients(1))
    initial, first = rows(tmp_path / "metrics.csv")
    assert tuple(first) == METRICS + FEDERATION
    assert {name: first[name] for name in FEDERATION} == {
        "train_loss": "1.25",
        "train_accuracy": "0.5",
        "gradient_variance": "7.0",
        "gradient_variance_unweighted": "9.0",
        "dissimilarity_b": "3.0",
        "gamma_mean": "0.5",  # of the two measured ones
        "gamma_max": "0.75",
    }
    assert (initial["gamma_mean"], initial["gamma_max"], initial["train_loss"]) == ("", "", "1.25")


def test_adaptive_mu_has_its_own_column(tmp_path):
    with RunRecord(tmp_path, {}, (*METRICS, *FEDERATION, "mu")) as record:
        record.add(on_clients(0, mu=0.3))
        record.add(on_clients(1, mu=0.4))
        finish(record)
    assert [list(row)[-1] for row in rows(tmp_path / "metrics.csv")] == ["mu", "mu"]
    assert [row["mu"] for row in rows(tmp_path / "metrics.csv")] == ["0.3", "0.4"]
    assert run_json(tmp_path)["result"]["final"]["mu"] == 0.4


def test_the_spread_over_clients_has_columns_and_is_in_the_result(tmp_path):
    test = Evaluation(1.5, 0.625, spread=ClientSpread(0.25, 0.125, 1.0))
    with RunRecord(tmp_path, {}, METRICS + SPREAD) as record:
        record.add(replace(outcome(1), test=test))
        record.add(outcome(2))
        finish(record)
    assert tuple(rows(tmp_path / "metrics.csv")[0])[len(METRICS) :] == SPREAD
    first, second = ([row[name] for name in SPREAD] for row in rows(tmp_path / "metrics.csv"))
    assert (first, second) == (["0.25", "0.125", "1.0"], ["", "", ""])
    assert run_json(tmp_path)["result"]["best"]["round"] == 1
    assert run_json(tmp_path)["result"]["best"]["client_accuracy_worst"] == 0.125


def test_classes_csv_has_a_row_per_class_of_each_evaluated_round(tmp_path):
    test = Evaluation(1.5, 0.75, classes=(ClassAccuracy(0, 4, 0.75), ClassAccuracy(1, 0, None)))
    with RunRecord(tmp_path, {}, per_class=True) as record:
        assert (tmp_path / "classes.csv").read_text().splitlines() == ["round,class,num_examples,accuracy,name"]
        for round_num in range(3):
            record.add(replace(outcome(round_num), test=None if round_num == 1 else test))
            assert len(rows(tmp_path / "classes.csv")) == (2, 2, 4)[round_num]  # on disk at once
    assert (tmp_path / "classes.csv").read_text().splitlines()[1:] == [
        *("0,0,4,0.75,", "0,1,0,,", "2,0,4,0.75,", "2,1,0,,")
    ]
    assert list(rows(tmp_path / "metrics.csv")[0]) == list(METRICS)


def test_only_evaluated_rounds_have_a_row_of_metrics_and_all_have_rows_of_clients(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        for round_num in range(6):
            done = outcome(round_num, accuracy=0.1 * round_num)
            record.add(done if round_num in (0, 3, 5) else replace(done, test=None))
        finish(record)
    assert [row["round"] for row in rows(tmp_path / "metrics.csv")] == ["0", "3", "5"]
    clients = rows(tmp_path / "clients.csv")
    assert [row["round"] for row in clients] == ["1", "1", "2", "2", "3", "3", "4", "4", "5", "5"]
    result = run_json(tmp_path)["result"]
    assert (result["final"]["round"], result["best"]["round"]) == (5, 5)


def test_nan_and_infinity_are_in_metrics_csv_and_null_in_run_json(tmp_path):
    # gamma is infinite if the global model already is a client's optimum.
    with RunRecord(tmp_path, {}, METRICS + FEDERATION) as record:
        record.add(on_clients(1, gammas=(0.5, float("inf"))))
        record.add(outcome(2, accuracy=0.1, loss=float("nan")))
        finish(record)
    first, second = rows(tmp_path / "metrics.csv")
    assert (first["gamma_max"], second["test_loss"]) == ("inf", "nan")
    assert run_json(tmp_path)["result"]["best"]["gamma_max"] is None
    assert run_json(tmp_path)["result"]["final"]["test_loss"] is None


def test_a_finished_run_has_its_model_timings_and_result(tmp_path):
    with RunRecord(tmp_path, {"seed": 4}) as record:
        for round_num, accuracy in enumerate((0.1, 0.8, 0.9, 0.9, 0.7)):
            record.add(outcome(round_num, accuracy))
        finish(record)
    facts = run_json(tmp_path)
    assert facts["status"] == "finished"
    assert facts["timings"] == {"setup_s": 1.0, "rounds_s": 2.0, "total_s": 3.0}
    assert facts["peak_memory_bytes"] > 10**12 + 2**20  # other processes and this one
    assert (facts["result"]["final"]["round"], facts["result"]["final"]["test_accuracy"]) == (4, 0.7)
    # Rounds 2 and 3 are equally good: the first of them is the best.
    assert (facts["result"]["best"]["round"], facts["result"]["best"]["test_accuracy"]) == (2, 0.9)


def test_the_model_is_saved_bit_by_bit(tmp_path):
    big = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    params = {"0.weight": big.T, "0.bias": torch.tensor([-0.0, 1e-38]), "n": torch.tensor(3)}
    with RunRecord(tmp_path, {}) as record:
        record.finish(params, {}, 0)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == params.keys()
    for name, value in params.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("lost"), "failed"), (KeyboardInterrupt(), "interrupted"), (MemoryError(), "failed")],
)
def test_after_an_exception_all_rows_are_kept_and_the_status_says_how_the_run_ended(tmp_path, error, status):
    def fail_after_two_rounds() -> None:
        with RunRecord(tmp_path, {"seed": 4}) as record:
            record.add(outcome(0))
            record.add(outcome(1, accuracy=0.6))
            raise error

    with pytest.raises(type(error)):
        fail_after_two_rounds()
    assert [row["round"] for row in rows(tmp_path / "metrics.csv")] == ["0", "1"]
    assert len(rows(tmp_path / "clients.csv")) == 2
    facts = run_json(tmp_path)
    assert (facts["status"], facts["seed"]) == (status, 4)
    assert facts["result"]["final"]["test_accuracy"] == 0.6
    assert not (tmp_path / "model.safetensors").exists()


# Metrics that a strategy reports


def reporting(round_num: int, **metrics: float) -> Round:
    return replace(outcome(round_num), metrics=metrics)


def test_a_strategys_metrics_get_columns_which_are_empty_in_earlier_rows(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        for round_ in (outcome(0), reporting(1, fairness=0.25, best=3), reporting(2, best=4)):
            if new := record.lacks(round_):
                record.widen(new)
            record.add(round_)
        finish(record)
    measured = rows(tmp_path / "metrics.csv")
    assert tuple(measured[0]) == (*METRICS, "fairness", "best")
    assert [(row["fairness"], row["best"]) for row in measured] == [("", ""), ("0.25", "3"), ("", "4")]
    result = run_json(tmp_path)["result"]
    assert (result["final"]["fairness"], result["final"]["best"]) == (None, 4)


def interrupted_at(step: int, function: Callable[[], None]) -> bool:
    """Call a function and send SIGINT before one of the lines that the package runs in it; return whether it has it."""
    left = step

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(str(Path(fedprox.__file__).parent)):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return left <= 0


def test_an_interruption_at_any_line_of_a_widening_leaves_whole_rows_with_or_without_the_columns(tmp_path):
    def widen_after_two_rounds(record: RunRecord, step: int) -> bool:
        with record:
            record.add(outcome(0, accuracy=0.1))
            record.add(outcome(1, accuracy=0.2))
            return interrupted_at(step, lambda: record.widen(["a", "b"]))

    found = set()
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        record = RunRecord(folder, {})
        with suppress(KeyboardInterrupt):
            if not widen_after_two_rounds(record, step):
                break
        assert begins_as_marked(folder / "metrics.csv", record.state["tables"]["metrics.csv"])
        measured = rows(folder / "metrics.csv")
        assert [(row["round"], row["test_accuracy"]) for row in measured] == [("0", "0.1"), ("1", "0.2")]
        found.add(tuple(measured[0]))
        assert not list(folder.glob("*.part"))
    assert found <= {METRICS, (*METRICS, "a", "b")}
    assert step > 10


@pytest.mark.parametrize("name", ["round", "gamma_max", "client_accuracy_std", "mu"])
def test_a_strategys_metric_must_not_have_the_name_of_a_built_in_column_even_if_the_run_lacks_it(tmp_path, name):
    with RunRecord(tmp_path, {}) as record, pytest.raises(RunStopped, match=f"'{name}' has the name of a built-in"):
        record.lacks(reporting(1, **{name: 1.0}))


def test_a_strategys_metric_that_appears_later_is_refused_by_name(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        assert record.lacks(outcome(1)) == []  # no client was left
        record.widen(record.lacks(reporting(2, a=1.0)))
        with pytest.raises(RunStopped, match=r"round 3: the strategy's metric 'b' is new.* with a$"):
            record.lacks(reporting(3, a=1.0, b=2.0))


def test_adopted_rows_keep_their_strategys_columns_and_another_strategy_may_add_its_own(tmp_path):
    earlier = [{**dict.fromkeys(METRICS, ""), "round": str(t), "test_accuracy": "0.5", "a": str(t)} for t in (0, 1)]
    with RunRecord(tmp_path, {}) as record:
        record.adopt({"metrics.csv": earlier, "clients.csv": []})
        record.widen(record.lacks(reporting(2, b=7.0)))
        record.add(reporting(2, b=7.0))
    measured = rows(tmp_path / "metrics.csv")
    assert tuple(measured[0]) == (*METRICS, "a", "b")
    assert [(row["a"], row["b"]) for row in measured] == [("0", ""), ("1", ""), ("", "7.0")]


# Metrics that a training script sends


def sending(round_num: int, **metrics: float) -> Round:
    first, second = outcome(round_num).clients
    third = replace(first, num_examples=10, metrics={name: 2 * value for name, value in metrics.items()})
    return replace(outcome(round_num), clients=(replace(first, metrics=metrics), second, third))


def add(record: RunRecord, round_: Round) -> None:
    if new := record.lacks(round_):
        record.widen(new)
    record.add(round_)


def test_a_scripts_metrics_get_columns_of_both_tables_and_a_mean_weighted_by_examples_also_after_a_resume(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        add(record, outcome(0))
        add(record, sending(1, auc=0.25))
    with RunRecord(tmp_path, {}, state=record.state) as resumed:
        add(resumed, sending(2, auc=0.5, f1=1.0))
    measured, clients = rows(tmp_path / "metrics.csv"), rows(tmp_path / "clients.csv")
    assert tuple(measured[0]) == (*METRICS, "auc", "f1")
    assert tuple(clients[0]) == (*CLIENTS, "auc", "f1")
    assert [row["auc"] for row in clients] == ["0.25", "", "0.5", "0.5", "", "1.0"]
    assert [row["f1"] for row in clients] == ["", "", "", "1.0", "", "2.0"]
    mean = (30 * 0.25 + 10 * 0.5) / 40
    assert [row["auc"] for row in measured] == ["", str(mean), str(2 * mean)]
    assert [row["f1"] for row in measured] == ["", "", "1.25"]


def test_a_strategys_metrics_do_not_appear_among_the_clients(tmp_path):
    with RunRecord(tmp_path, {}) as record:
        add(record, reporting(1, fairness=0.25))
    assert tuple(rows(tmp_path / "clients.csv")[0]) == CLIENTS


@pytest.mark.parametrize("name", ["round", "test_loss", "counted", "mu"])
def test_a_scripts_metric_must_not_have_the_name_of_a_built_in_column(tmp_path, name):
    with (
        RunRecord(tmp_path, {}) as record,
        pytest.raises(RunStopped, match=f"the script's metric '{name}' has the name"),
    ):
        record.lacks(sending(1, **{name: 1.0}))
