"""Strategies with robust rules: the same as Flower's, on any arrays, refused with too few clients."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flowers

from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped, UserError
from fedprox.federation.messages import node_id
from fedprox.federation.planned_strategy import CohortGrid
from fedprox.strategies import robust
from fedprox.strategies.robust import Bulyan, CentredClipping, Krum, Median, MultiKrum, Robust, TrimmedMean

START = {"weight": np.array([[0.5, -1.0], [2.0, 0.0]]), "bias": np.array([3.0])}


def replies_of(models: list[dict[str, np.ndarray]]) -> list[Message]:
    act_as_server()
    replies = []
    for client, model in enumerate(models):
        asked = Message(RecordDict(), dst_node_id=node_id(client), message_type="train")
        record = ArrayRecord({name: Array(value) for name, value in model.items()})
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 10 + client})})
        replies.append(Message(content, reply_to=asked))
    return replies


def aggregate(strategy: Robust, models: list[dict[str, np.ndarray]], start=START, round_num: int = 1) -> dict:
    act_as_server()
    grid = CohortGrid([node_id(client) for client in range(len(models))])
    record = ArrayRecord({name: Array(value) for name, value in start.items()})
    list(strategy.configure_train(round_num, record, ConfigRecord({}), grid))
    arrays, metrics = strategy.aggregate_train(round_num, replies_of(models))
    assert metrics is None
    return {name: array.numpy() for name, array in arrays.items()}


def noisy(n: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{name: value + rng.normal(size=value.shape) for name, value in START.items()} for _ in range(n)]


@pytest.mark.parametrize(
    ("ours", "flowers_own"),
    [
        (Median(), flowers.FedMedian()),
        (TrimmedMean(num_malicious=2), flowers.FedTrimmedAvg(beta=0.2)),
        (Krum(num_malicious=2), flowers.Krum(num_malicious_nodes=2)),
        (Bulyan(num_malicious=1), flowers.Bulyan(num_malicious_nodes=1)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_rules_give_what_flowers_give(ours, flowers_own):
    models = noisy(11)
    theirs, _ = flowers_own.aggregate_train(1, replies_of(models))
    for name, array in aggregate(ours, models).items():
        assert array == pytest.approx(theirs[name].numpy(), rel=1e-5)


def test_a_late_round_keeps_distances_that_float32_would_lose():
    # Whole models of norm 1e4 with updates of 1e-4: all |x|^2 are equal in float32, but one update is an outlier.
    start = {"w": np.full(4, 5e3)}
    models = [{"w": start["w"] + step * 1e-4} for step in (1.0, 1.1, 0.9, 1.0, 50.0)]
    made = aggregate(Krum(num_malicious=1), models, start)
    assert made["w"] - start["w"] == pytest.approx(np.full(4, 1e-4), rel=0.2)


def test_every_client_counts_the_same_whatever_size_it_claims():
    models = [{"w": np.array([float(value)])} for value in (0, 1, 2, 3, 4)]  # sizes are 10 .. 14
    made = aggregate(MultiKrum(num_malicious=0, num_selected=5), models, {"w": np.zeros(1)})
    assert made["w"].item() == pytest.approx(2.0)


def test_arrays_keep_their_types_and_integers_get_their_median():
    start = {"w": np.zeros(2, np.float32), "count": np.array(3)}
    models = [{"w": np.full(2, value, np.float32), "count": np.array(value)} for value in (1, 5, 7)]
    made = aggregate(Median(), models, start)
    assert made["w"].dtype == np.float32
    assert made["count"].dtype == start["count"].dtype
    assert (made["w"].tolist(), made["count"].item()) == ([5.0, 5.0], 5)


def test_buckets_follow_from_seed_round_and_repetition():
    models = noisy(8)

    def made(round_num: int = 1, **settings) -> bytes:
        rule = Median(before="bucketing", bucket_size=2, **settings)
        return aggregate(rule, models, round_num=round_num)["weight"].tobytes()

    assert made(seed=1) == made(seed=1)
    assert len({made(seed=1), made(seed=2), made(seed=1, repetition=1), made(round_num=2, seed=1)}) == 4


@pytest.mark.parametrize(
    ("strategy", "least"),
    [
        (Krum(num_malicious=8), 19),
        (MultiKrum(num_malicious=2), 7),
        (MultiKrum(num_malicious=2, num_selected=9), 9),
        (Bulyan(num_malicious=2), 11),
        (TrimmedMean(num_malicious=3), 7),
        (Median(num_malicious=3, before="nnm"), 7),
        (Krum(num_malicious=1, before="bucketing", bucket_size=2), 9),  # five buckets, the last one with one update
    ],
)
def test_too_small_cohorts_are_refused_and_too_few_replies_end_the_run(strategy, least):
    strategy.check_cohort(least)
    aggregate(strategy, noisy(least))
    with pytest.raises(UserError, match=f"at least {least} replies a round.*got clients_per_round={least - 1}"):
        strategy.check_cohort(least - 1)
    with pytest.raises(RunStopped, match=f"round 1.*at least {least} replies.*got {least - 1}"):
        aggregate(strategy, noisy(least - 1))


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Krum(num_malicious=-1), "num_malicious must be >= 0, got -1"),
        (lambda: Median(before="mixing"), "before must be one of none, nnm, bucketing, got mixing"),
        (lambda: Median(bucket_size=0), "bucket_size must be >= 1, got 0"),
        (lambda: MultiKrum(num_selected=0), "num_selected must be >= 1 or null"),
        (lambda: CentredClipping(radius=0.0), "radius must be > 0, got 0"),
        (lambda: CentredClipping(iterations=0), "iterations must be >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, rule):
    with pytest.raises(UserError, match=rule):
        make()


def test_no_state_is_carried_besides_the_model():
    strategy = robust.GeometricMedian()
    aggregate(strategy, noisy(3))
    assert strategy.state_dict() == {}
