"""The schema: every setting's rule with its borders, and the rules between settings."""

import functools
import math
import re

import pytest

from fedprox.config.compose import compose
from fedprox.config.schema import TARGETS, Config, Target
from fedprox.errors import UserError
from tests.settings import config_of


def base(**changes) -> dict:
    return config_of("dataset=digits", "engine=local", "clients_per_round=1", "num_clients=10").plain() | changes


NOT_NUMBERS = [math.nan, math.inf, -math.inf, True, "a", "", [1], {"a": 1}]
NOT_INTEGERS = [*NOT_NUMBERS, 1.5, 1.0, 2**32, 10**30]
NOT_FLAGS = [1, 0, "yes", None]
# setting -> its rule as errors state it, values on its border, values beyond it or of another type
RULES = {
    "num_clients": ("an integer >= 1", [1, None], [0, -1, *NOT_INTEGERS]),
    "num_epochs": ("an integer >= 1 and at most 100,000", [1, 100_000], [0, 100_001, None, *NOT_INTEGERS]),
    "batch_size": ("an integer >= 1", [1, 2**32 - 1], [0, -1, None, *NOT_INTEGERS]),
    "last_batch": ("keep, drop or merge", ["keep", "drop", "merge"], ["", "skip", None]),
    "num_rounds": ("an integer >= 1", [1], [0, -1, None, *NOT_INTEGERS]),
    "clients_per_round": ("an integer >= 1", [1, 10, None], [0, -1, *NOT_INTEGERS]),
    "stragglers_fraction": ("finite and between 0 and 1", [0.0, 1.0], [-1e-12, 1.000001, None, *NOT_NUMBERS]),
    "learning_rate": ("finite and > 0", [1e-12, 100.0], [0.0, -1e-12, None, *NOT_NUMBERS]),
    "mu": ("finite and >= 0", [0.0, 1e-12, 100.0], [-1e-12, None, *NOT_NUMBERS]),
    "adaptive_mu.enabled": ("true or false", [False], NOT_FLAGS),
    "adaptive_mu.initial": ("finite and >= 0", [None, 0.0], [-1, *NOT_NUMBERS]),
    "adaptive_mu.step": ("finite and > 0", [1e-12], [0, None, *NOT_NUMBERS]),
    "adaptive_mu.patience": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "sampling": ("uniform, proportional or poisson", ["uniform", "proportional", "poisson"], ["nope", 1, None]),
    "schedule.name": ("constant or cosine", ["constant", "cosine"], ["step", None]),
    "schedule.final": ("finite and between 0 and 1", [0.0, 1.0], [-0.1, 1.1, None, *NOT_NUMBERS]),
    "schedule.step": ("round or epoch", ["round"], ["step", 1, None]),
    "server_schedule.name": ("constant or cosine", ["constant"], ["step", None]),
    "server_schedule.final": ("finite and between 0 and 1", [0.0, 1.0], [-0.1, 1.1, None, *NOT_NUMBERS]),
    "momentum": ("finite, at least 0 and below 1", [0.0, 0.999999], [1.0, -1e-12, None, *NOT_NUMBERS]),
    "momentum_buffer": ("reset or kept", ["reset", "kept"], ["own", 1, None]),
    "weight_decay": ("finite and >= 0", [0.0, 100.0], [-1e-12, None, *NOT_NUMBERS]),
    "mixed_precision": ("true or false", [False], NOT_FLAGS),
    "server_device": ("cpu, cuda or cuda:<number>", ["cpu", "cuda:1"], ["tpu", "meta", "cuda:-2", "", "CPU", "cpu:x"]),
    "client_resources.num_cpus": ("finite and > 0", [0.5], [0.0, -1.0, None, *NOT_NUMBERS]),
    "client_resources.num_gpus": ("finite and >= 0", [0.0], [-0.1, None, *NOT_NUMBERS]),
    "max_grad_norm": ("finite and > 0", [None, 1e-12, 100.0], [0, -1, *NOT_NUMBERS]),
    "batch_statistics": ("averaged or local", ["averaged", "local"], ["own", 1, None]),
    "on_client_error": ("stop or drop", ["stop", "drop"], ["continue", None]),
    "on_divergence": ("stop, drop or continue", ["stop", "drop", "continue"], ["ignore", None]),
    "round_timeout": ("finite and > 0", [None, 0.1], [0, -1, *NOT_NUMBERS]),
    "on_timeout": ("stop or drop", ["stop", "drop"], ["continue", None]),
    "early_stopping.metric": ("text", [None, "test_loss"], [True, [1]]),
    "early_stopping.patience": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "early_stopping.min_delta": ("finite and >= 0", [0.0], [-1, None, *NOT_NUMBERS]),
    "objective": ("text", [None, "accuracy"], [True, [1]]),
    "pruning_bar": ("a list", [None, [], [[10.0, 0.5]]], [3, "test_loss"]),
    "seed": ("an integer >= 0 and below 2^32", [0, 2**32 - 1], [-1, None, *NOT_INTEGERS]),
    "repeat_num": ("an integer >= 0 and below 2^32", [0, 7], [-1, None, *NOT_INTEGERS]),
    "data_dir": ("text", ["data"], [None, ["a"], True]),
    "hold_out": ("finite, at least 0 and below 1", [0.0, 0.999999], [1.0, -1e-12, None, *NOT_NUMBERS]),
    "client.name": ("built_in or script", ["built_in"], ["nope", 1, None]),
    "client.script": ("text", [None], [True, ["a"]]),
    "client.args": ("text", ["", "--lr 1"], [None, True, ["a"]]),
    "client.data": ("text", ["", "sites"], [None, True, ["a"]]),
    "client.at_once": ("an integer >= 1", [1, None], [0, *NOT_INTEGERS]),
    "client.num_threads": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "client.preload": ("true or false", [True, False], NOT_FLAGS),
    "client.output": ("text", [None, "printed"], [True, ["a"]]),
    "update.count_bytes": ("true or false", [True, False], NOT_FLAGS),
    "update.top_k": ("a group of settings", [None], [1, "half"]),
    "update.quantise": ("a group of settings", [None], [1, "half"]),
    "update.names": ("a list", [None, ["fc*"]], [1, "fc*"]),
    "update.error_feedback": ("true or false", [False], NOT_FLAGS),
    "update.bits": ("an integer >= 2 and at most 16", [None, 2, 16], [1, 17, *NOT_INTEGERS]),
    "update.fraction": ("finite, above 0 and at most 1", [None, 1e-12, 1.0], [0.0, 1.000001, *NOT_NUMBERS]),
    "privacy.name": ("none or client", ["none"], ["nope", 1, None]),
    # On their borders in tests/experiment/test_privacy.py: with privacy=none they are refused.
    "privacy.clip": ("finite and > 0", [None], [0, *NOT_NUMBERS]),
    "privacy.clip_quantile": ("above 0 and below 1", [None], [0, 1, *NOT_NUMBERS]),
    "privacy.clip_rate": ("finite and > 0", [None], [0, *NOT_NUMBERS]),
    "privacy.count_noise": ("finite and > 0", [None], [0, *NOT_NUMBERS]),
    "privacy.noise_multiplier": ("0, or finite and at least 0.05", [None], [-1, 0.049, *NOT_NUMBERS]),
    "privacy.epsilon": ("finite and > 0", [None], [0, *NOT_NUMBERS]),
    "privacy.delta": ("above 0 and below 1", [None], [0, 1, *NOT_NUMBERS]),
    "privacy.max_epsilon": ("finite and > 0", [None], [0, *NOT_NUMBERS]),
    "privacy.noise_cohort": ("an integer >= 1", [None], [0, *NOT_INTEGERS]),
    "personalisation.name": (
        "none, local, fine_tuning, fedper, fedrep, lg, fedbn, apfl or ditto",
        ["none", "local"],
        ["nope", 1, None],
    ),
    "personalisation.names": ("a list", [None], [1, "fc*"]),
    "personalisation.body_epochs": ("an integer >= 1 and at most 100,000", [None], [0, 100_001, *NOT_INTEGERS]),
    "personalisation.epochs": ("an integer >= 1 and at most 100,000", [None], [0, 100_001, *NOT_INTEGERS]),
    "personalisation.weight": ("finite and >= 0", [None], [-1e-12, *NOT_NUMBERS]),
    "personalisation.alpha": ("finite, above 0 and at most 1", [None], [0.0, 1.000001, *NOT_NUMBERS]),
    "personalisation.max_bytes": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "devices.name": ("none, lognormal or file", ["none"], ["nope", 1, None]),
    "devices.seconds_per_step": ("finite, at least 1e-9 and at most 1e9", [None], [0, 0.9e-9, 1.1e9, *NOT_NUMBERS]),
    "devices.sigma": ("finite and between 0 and 10", [None], [-1e-12, 10.1, *NOT_NUMBERS]),
    "devices.bandwidth": ("finite, at least 1 and at most 1e15", [None], [0.9, 1.1e15, *NOT_NUMBERS]),
    "devices.path": ("text", [None], [True, ["a"]]),
    "arrival.name": ("synchronous, deadline or buffered", ["synchronous"], ["nope", 1, None]),
    "arrival.seconds": ("finite, at least 1e-9 and at most 1e9", [None], [0, 0.9e-9, 1.1e9, *NOT_NUMBERS]),
    "arrival.concurrency": ("an integer >= 1", [None], [0, -1, *NOT_INTEGERS]),
    "arrival.buffer": ("an integer >= 1", [None], [0, -1, *NOT_INTEGERS]),
    "arrival.discount": ("finite and >= 0", [None], [-1e-12, *NOT_NUMBERS]),
    "arrival.server_learning_rate": ("finite, above 0 and at most 1000", [None], [0, 1000.1, *NOT_NUMBERS]),
    "evaluation.name": ("server or clients", ["server", "clients"], ["nope", 1, None]),
    "evaluation.every": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "evaluation.per_class": ("true or false", [True, False], NOT_FLAGS),
    "evaluation.per_client": ("true or false", [True, False], NOT_FLAGS),
    "checkpoint.every": ("an integer >= 1", [1, None], [0, *NOT_INTEGERS]),
    "checkpoint.keep": ("an integer >= 1", [1, None], [0, *NOT_INTEGERS]),
    "resume": ("text", [None, "runs/1"], [True, ["a"]]),
    "branch_from": ("text", [None], [True, ["a"]]),
    "branch_round": ("an integer >= 1", [None], [0, *NOT_INTEGERS]),
}


def with_value(name: str, value: object) -> dict:
    config, (*above, key) = base(), name.split(".")
    node = config[above[0]] if above else config
    node[key] = value
    return config


def test_no_setting_is_forgotten():
    flat = {
        f"{name}.{key}" if key else name
        for name, value in Config.of(base(repeat_num=0)).plain().items()
        for key in (value if name not in TARGETS and isinstance(value, dict) else [""])
    }
    assert flat - {*TARGETS} == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_value_on_the_border_is_accepted(name):
    for value in RULES[name][1]:
        config = Config.of(with_value(name, value)).plain()
        assert functools.reduce(lambda node, key: node[key], name.split("."), config) == value


@pytest.mark.parametrize("name", RULES)
def test_a_value_beyond_the_border_or_of_another_kind_is_refused_by_name_rule_and_value(name):
    rule, _, bad = RULES[name]
    for value in bad:
        with pytest.raises(UserError, match=rf"^{re.escape(f'{name} must be {rule}')}.*, got ") as told:
            Config.of(with_value(name, value))
        assert str(value) in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(("name", "script"), [("script", None), ("built_in", "train.py")])
def test_a_script_and_the_choice_of_one_go_together(name, script):
    client = base()["client"] | {"name": name, "script": script}
    expected = f"client=script and client.script must be given together, got client={name} and client.script={script}"
    with pytest.raises(UserError, match=f"^{expected}; name a Python program$"):
        Config.of(base(client=client))


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ({"name": "ditto"}, ".weight must be given with personalisation=ditto, got null"),
        (
            {"name": "none", "weight": 1.0},
            ".weight=1.0 means nothing with personalisation=none; it is for ditto; leave it",
        ),
        ({"name": "lg", "body_epochs": 1}, ".body_epochs=1 means nothing with personalisation=lg; it is for fedrep;"),
        ({"name": "ditto", "weight": 66.7}, ".weight times learning_rate must be below 2, .*, got 66.7 times 0.03"),
        (
            {"name": "fedrep", "body_epochs": 10},
            ".body_epochs must be below num_epochs=10, .*, got 10; raise num_epochs",
        ),
    ],
)
def test_a_setting_of_personal_models_fits_their_method(method, line):
    with pytest.raises(UserError, match=f"^personalisation{line}"):
        Config.of(base(personalisation=method))
    for good in ({"name": "ditto", "weight": 66.6}, {"name": "ditto", "weight": 0.0}, {"name": "apfl", "alpha": 1.0}):
        assert Config.of(base(personalisation=good)).personalisation.keeps_models


@pytest.mark.parametrize("name", [*TARGETS, "logger", "checkpoint", "client", "evaluation"])
def test_a_group_is_no_single_value(name):
    for value in (3, "a", None, [1]):
        with pytest.raises(UserError, match=rf"^{name} must be a group of settings, got "):
            Config.of(base(**{name: value}))


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**32, [1, {"a": -(2**32)}]])
def test_a_number_of_a_group_that_no_array_or_record_could_hold_is_refused(value):
    with pytest.raises(UserError, match=r"^partition\.x\b.* must be (finite|between -2\^32 and 2\^32), got "):
        Config.of(base(partition={"_target_": "a.b", "x": value}))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("momentun", "did you mean momentum?"),
        ("num_client", "did you mean num_clients?"),
        ("zzzzzz", "see --help"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(name, remedy):
    with pytest.raises(UserError, match=rf"^unknown setting '{name}'; ") as told:
        Config.of(base(**{name: 1}))
    assert remedy in str(told.value)


def test_a_setting_that_is_missing_is_named():
    config = base()
    del config["mu"]
    with pytest.raises(UserError, match=r"^mu is required; give it a value$"):
        Config.of(config)
    with pytest.raises(UserError, match=r"^settings of a/run\.json: mu is required"):  # a record of another version
        Config.of(config, "settings of a/run.json")


def test_plain_settings_come_out_as_they_went_in_and_repeat_num_only_if_it_was_given():
    assert Config.of(base()).plain() == base()
    assert Config.of(base(repeat_num=0)).plain() == base(repeat_num=0)


def test_the_text_of_a_variable_is_the_number_that_it_looks_like(monkeypatch):
    monkeypatch.setenv("TASK_ID", "7")
    monkeypatch.setenv("RATE", "1e-3")
    config = compose(["seed=${oc.env:TASK_ID}", "learning_rate=${oc.env:RATE}"])
    assert (config.seed, config.learning_rate) == (7, 0.001)


def test_targets_are_the_same_if_they_are_written_alike():
    one, same, other = (Target.model_validate({"_target_": "a.b", "x": x}) for x in (1, 1, True))
    assert (one == same, hash(one) == hash(same), one == other) == (True, True, False)


def test_mixed_precision_needs_clients_on_a_gpu():
    with pytest.raises(UserError, match="mixed_precision=true needs clients on a GPU"):
        compose(["mixed_precision=true", "engine=local"])
    with pytest.raises(UserError, match="mixed_precision=true needs clients on a GPU"):
        compose(["mixed_precision=true", "engine=ray", "server_device=cpu"])
