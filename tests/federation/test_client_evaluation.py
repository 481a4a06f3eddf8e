"""Evaluation at the clients: every client is asked, and what they report is averaged by their held-out examples."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped
from fedprox.evaluation.metrics import ClientSpread
from fedprox.federation.client_evaluation import ClientEvaluation
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import failed, late, record_of, task_of

MODEL = ArrayRecord({"w": Array(np.ones(2))})


class FakeEngine:
    """Replies what each client is to report; an error for None, nothing for "late"."""

    def __init__(self, *reports) -> None:
        act_as_server()
        self.reports, self.messages = reports, []

    def send_and_receive(self, messages, *, timeout=None):
        self.messages = list(messages)
        return [self._reply(message, self.reports[task_of(message).client]) for message in messages]

    @staticmethod
    def _reply(message, report):
        if report is None:
            return failed(message, "no such file")
        if report == "late":
            return late(message)
        return Message(RecordDict({"metrics": MetricRecord(report)}), reply_to=message)


def report(num_examples, loss, accuracy):
    return {"num-examples": num_examples, "loss": loss, "accuracy": accuracy}


def test_every_client_gets_the_model_and_the_round():
    engine = FakeEngine(*[report(1, 1.0, 1.0)] * 3)
    ClientEvaluation(engine, 3)(7, MODEL)
    assert [task_of(message).client for message in engine.messages] == [0, 1, 2]
    for message in engine.messages:
        assert message.metadata.message_type == "evaluate"
        assert record_of(message, "arrays") is MODEL
        assert message.content["config"]["server-round"] == 7
        assert message.content["task"]["client"] == task_of(message).client


def test_loss_and_accuracy_are_means_over_all_held_out_examples():
    # 10 examples of loss 1 and 30 of loss 3 have the mean loss 2.5; 5 and 6 of them are right, 11 of 40.
    measured = ClientEvaluation(FakeEngine(report(10, 1.0, 0.5), report(30, 3.0, 0.2)), 2)(1, MODEL)
    assert (measured.loss, measured.accuracy) == (2.5, 11 / 40)
    assert measured.spread is None


def test_the_spread_counts_every_client_the_same():
    engine = FakeEngine(report(10, 1.0, 1.0), report(1000, 1.0, 0.5))
    assert ClientEvaluation(engine, 2, per_client=True)(1, MODEL).spread == ClientSpread(0.25, 0.5, 1.0)


def test_what_a_client_does_not_report_is_a_mean_of_the_others_and_of_none_missing():
    engine = FakeEngine({"num-examples": 10, "accuracy": 0.5}, {"num-examples": 30, "accuracy": 0.5, "auc": 0.9})
    measured = ClientEvaluation(engine, 2)(1, MODEL)
    assert (measured.loss, measured.accuracy) == (None, 0.5)
    engine = FakeEngine({"num-examples": 10, "accuracy": 0.5}, report(30, 4.0, 0.1))
    assert ClientEvaluation(engine, 2)(1, MODEL).loss == 4.0


def test_clients_that_fail_or_are_late_are_left_out_or_end_the_run(caplog):
    engine = FakeEngine(report(10, 1.0, 0.5), None, "late")
    dropping = FailurePolicy("drop", round_timeout=1.0, on_timeout="drop")
    assert ClientEvaluation(engine, 3, dropping)(2, MODEL).loss == 1.0
    assert "round 2: client 1 is left out: no such file" in caplog.text
    with pytest.raises(RunStopped, match="round 2: client 1: no such file"):
        ClientEvaluation(FakeEngine(report(10, 1.0, 0.5), None), 2)(2, MODEL)
    with pytest.raises(RunStopped, match="round 2: none of 2 clients has measured the model"):
        ClientEvaluation(FakeEngine(None, None), 2, dropping)(2, MODEL)


def test_a_loss_that_is_nan_is_the_models_and_no_clients_fault():
    engine = FakeEngine(report(10, float("nan"), 0.5), report(10, 1.0, 0.5))
    assert np.isnan(ClientEvaluation(engine, 2)(1, MODEL).loss)
