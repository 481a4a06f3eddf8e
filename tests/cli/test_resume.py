"""The command that repeats an earlier run's settings, with changes."""

import json
import os
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.cli.resume import whole_command, without_resume
from fedprox.cli.words import as_override
from fedprox.config.compose import compose
from fedprox.errors import UserError

OVERRIDES = ["dataset=digits", "mu=0.5", "+repeat_num=2"]
CHECKPOINT = "checkpoint/round_000003.safetensors"


def composed(name: str, overrides: list[str]) -> dict:
    return json.loads(as_json(name, *(word for word in overrides if not word.startswith(("hydra", "-")))))


@cache
def as_json(name: str, *overrides: str) -> str:
    return json.dumps(compose(overrides, name).plain())


@pytest.fixture
def run_of(tmp_path):
    """Return a function that makes the directory of a run with some overrides, with the files read here."""

    def make(*overrides: str, name: str = "config", **changes) -> Path:
        settings = composed(name, list(overrides))
        settings |= {key: value for key, value in changes.items() if key in settings or key == "hydra"}
        record = {"status": "interrupted", "algorithm": "FedAvg", "seed": 0, "name": "digits", "settings": settings}
        record |= {"config_name": name, "overrides": list(overrides), "fingerprint": {}}
        record |= {key: value for key, value in changes.items() if key in record}
        folder = tmp_path / "run of mine"
        (folder / "checkpoint").mkdir(parents=True)
        (folder / CHECKPOINT).touch()
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make


@pytest.fixture
def run_dir(run_of):
    return run_of(*OVERRIDES, name="fedavg")


@pytest.mark.parametrize("words", [[], ["resume=null"], ["branch_from="], ["--multirun", "mu=1,2"]])
def test_a_command_that_names_no_earlier_run_stays_as_it_is(words):
    assert whole_command(words) == words


@pytest.mark.parametrize("form", ["resume={}", "resume='{}'", "++resume={}"])
def test_a_resumed_run_has_the_settings_that_it_had_and_its_directory(run_dir, form):
    word = form.format(run_dir)
    made = ["dataset=digits", "mu=0.5", "++repeat_num=2", word]
    assert whole_command([word]) == ["--config-name", "fedavg", *made, f"hydra.run.dir='{run_dir}'"]


def test_new_overrides_replace_recorded_ones(run_dir):
    command = whole_command([f"resume={run_dir}", "data_dir=elsewhere", "engine=local"])
    assert command[2:-1] == [
        *("dataset=digits", "mu=0.5", "++repeat_num=2"),
        *(f"resume={run_dir}", "data_dir=elsewhere", "engine=local"),
    ]


@pytest.mark.parametrize("override", ["+repeat_num=3", "repeat_num=3"])
def test_with_or_without_a_plus_it_is_the_same_setting(run_dir, override):
    words = [f"branch_from={run_dir}", "branch_round=4", override]
    assert whole_command(words) == ["--config-name", "fedavg", "dataset=digits", "mu=0.5", *words]


def test_a_branch_may_be_swept(run_dir):
    words = ["--multirun", f"branch_from={run_dir}", "branch_round=4", "mu=0,1"]
    assert whole_command(words)[:2] == ["--config-name", "fedavg"]
    assert "mu=0.5" not in whole_command(words)


def test_a_branch_that_chooses_another_file_of_conf_gets_all_its_settings(run_of):
    folder = run_of("dataset=synthetic_1_1", "seed=3")  # which sets num_clients, partition and dataset.seed too
    branch = [f"branch_from={folder}", "branch_round=4", "strategy=fedavg", "dataset=digits", "seed=4"]
    whole = composed("config", whole_command(branch)[2:])
    expected = composed("config", ["strategy=fedavg", "dataset=digits", "seed=4"])
    assert whole | {"branch_from": None, "branch_round": None} == expected
    assert (whole["mu"], whole["num_clients"]) == (0.0, 100)  # and not 1.0 and 30


def test_settings_that_refer_to_others_follow_those_of_the_branch(run_of):
    folder = run_of("dataset=synthetic_1_1", "seed=3", "num_clients=20")
    command = whole_command([f"branch_from={folder}", "branch_round=4", "seed=4"])
    assert composed("config", command[2:])["dataset"]["seed"] == 4
    assert composed("config", command[2:])["dataset"]["num_clients"] == 20


COMMANDS = {
    "fedavg": ["strategy=fedavg", "stragglers_fraction=0.5", "dataset=digits"],
    "a preset": ["experiment=paper_synthetic_1_1", "num_rounds=3"],
    "references": ["dataset=synthetic_0_0", "seed=7", "dataset.seed=3"],
    "nested": ["dataset=digits", "early_stopping.metric=test_loss", "checkpoint.every=null", "adaptive_mu.step=1e-5"],
    "without an entry": ["dataset=digits", "~partition.sigma"],
    "lists and text": ["dataset=digits", "+strategy.a=[1,-2.5,x,[true,null]]", r"+strategy.b='it\'s, {b}'"],
    "words that look like others": ["dataset=digits", "+strategy.a='1'", "+strategy.b='null'", "+strategy.c='1e3'"],
    "words of Hydra's grammar": ["dataset=digits", "+strategy.a='range(3)'", "+strategy.b='a,b'", "+strategy.c=' a '"],
}


@pytest.mark.parametrize("overrides", COMMANDS.values(), ids=COMMANDS)
def test_the_settings_come_out_as_they_went_in(run_of, overrides):
    folder = run_of(*overrides)
    again = [
        f"+{word}" for word in overrides if set(word) & set("(,'\\") and word.startswith("+strategy.b")
    ]  # not a word
    again += ["++strategy.a='range(3)'"] if "+strategy.a='range(3)'" in overrides else []
    command = whole_command([f"resume={folder}", *again])
    assert composed("config", command[2:-1]) | {"resume": None} == composed("config", overrides)


PLAIN = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text()
NAMES = st.from_regex(r"[A-Za-z]\w{0,5}", fullmatch=True).filter(str.isascii)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)))
def test_every_value_survives_hydras_grammar(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if "${" in str(value):
        return  # refused before
    override = OverridesParser.create().parse_override(f"x={as_override(value)}")
    assert not override.is_sweep_override()
    assert unquoted(override.value()) == value


def unquoted(value):
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [unquoted(each) for each in value]
    return {unquoted(key): unquoted(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("more", [["num_rounds=200"], ["mu=0.5"], ["engine=local"], ["checkpoint.every=1"]])
def test_what_changes_no_number_of_the_past_is_accepted(run_dir, more):
    assert whole_command([f"resume={run_dir}", *more])[-2] == more[0]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["mu=1"], "mu=1.0 (was 0.5); leave that out"),
        (["mu=0", "batch_size=5"], "batch_size=5 (was 10), mu=0.0 (was 0.5)"),
        (["dataset=mnist"], 'dataset._target_="fedprox.data.sources.mnist.mnist"'),
        (["model=cnn"], 'model._target_="fedprox.models.cnn.cnn"'),
        (["schedule.name=cosine"], 'schedule.name="cosine" (was "constant")'),
    ],
)
def test_what_would_change_the_past_is_refused_and_named(run_dir, more, named):
    with pytest.raises(UserError, match="would change the past") as raised:
        whole_command([f"resume={run_dir}", *more])
    assert named in str(raised.value)


def test_a_schedules_number_of_rounds_belongs_to_the_past_too(run_of):
    folder = run_of("dataset=digits", "schedule.name=cosine")
    with pytest.raises(UserError, match=r"num_rounds=20 \(was 100\)"):
        whole_command([f"resume={folder}", "num_rounds=20"])


@pytest.mark.parametrize(("word", "message"), [("mu=-1", "mu must be finite and >= 0"), ("no_such=1", "no_such")])
def test_a_wrong_setting_beside_resume_is_reported_as_in_any_command(run_dir, word, message):
    with pytest.raises(UserError, match=message):
        whole_command([f"resume={run_dir}", word])


@pytest.mark.parametrize("word", ["--config-name=config", "-cn", "--multirun", "-m"])
def test_what_does_not_go_with_resume_is_refused(run_dir, word):
    with pytest.raises(UserError, match="resume= "):
        whole_command([f"resume={run_dir}", word])


def test_the_recorded_overrides_do_not_name_the_resumed_run():
    assert without_resume(["mu=1", "resume=a", "++resume=a", "+repeat_num=1"]) == ["mu=1", "+repeat_num=1"]


ADAM = "strategy._target_=flwr.serverapp.strategy.FedAdam"


def test_mu_is_the_recorded_one_even_if_the_strategy_has_another_default(run_of):
    folder = run_of(ADAM, "dataset=digits", mu=1.0)
    for words in ([f"resume={folder}"], [f"branch_from={folder}", "branch_round=3"]):
        assert "mu=1.0" in whole_command([*words, ADAM])


# What a record may not decide.


@pytest.mark.parametrize("option", ["resume", "branch_from"])
@pytest.mark.parametrize("text", ["a${now:%Y}b", "'a${now:%Y}b'", "${oc.env:HOME}", r"\${x}"])
def test_a_run_is_named_without_references(option, text):
    with pytest.raises(UserError, match=f"{option} must be the path of a run directory"):
        whole_command([f"{option}={text}"])


HYDRAS = [
    *("hydra.callbacks.evil={_target_: os.abort}", "+hydra.x=1", "++hydra.callbacks.evil._target_=os.abort"),
    *("~hydra.callbacks", "++hydra={}", "hydra/launcher=joblib", "+hydra/launcher@x=joblib", "'hydra'.x=1"),
    *('"hydra".x=1', "hydra@x=1", " hydra.x=1", "hydra.searchpath=[file:///evil]", "--config-dir=/evil", "-cd=/evil"),
]


@pytest.mark.parametrize("word", HYDRAS)
def test_a_record_with_hydras_own_settings_is_refused(run_of, word):
    folder = run_of("dataset=digits", overrides=["dataset=digits", word])
    with pytest.raises(UserError, match="was not made by this command"):
        whole_command([f"resume={folder}"])


PLACES = [
    *("logger=mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9/${oc.env:SECRET}", "logger=[mlflow,wandb]"),
    *("engine=ray", "engine.address=127.0.0.1:9", "++engine._target_=os.abort", "data_dir=/evil", "server_device=cuda"),
    *("client_resources.num_cpus=9", "dataset.cache_dir=/evil", "model.init=/evil", "+x=../../evil", "mu=9"),
    *("experiment=../../evil", "model=../../evil", "dataset@hydra.x=digits", "resume=/evil", "branch_from=/evil"),
    *("mu=${oc.env:SECRET}", "experiment='digits,x'", "checkpoint.every=1"),
]


@pytest.mark.parametrize("words", [["resume={}"], ["branch_from={}", "branch_round=2"]])
def test_recorded_overrides_that_contradict_the_settings_change_nothing(run_of, words):
    folder = run_of("dataset=digits", overrides=["dataset=digits", *PLACES])
    command = whole_command([each.format(folder) for each in words])
    # A name of conf/, without an address, stays.
    assert command[2 : command.index(words[0].format(folder))] == ["dataset=digits", "engine=ray"]


def test_of_where_a_run_computes_and_its_loggers_only_the_engines_name_is_taken_over(run_of):
    theirs = [
        "engine=local",
        "engine.num_threads=3",
        "server_device=cuda",
        "client_resources.num_gpus=1",
        "data_dir=/x",
    ]
    folder = run_of("dataset=digits", *theirs, "logger=mlflow", "logger.mlflow.tracking_uri=http://x")
    assert whole_command([f"resume={folder}"])[2:4] == ["dataset=digits", "engine=local"]


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["dataset=image_folder", "dataset.path=/their/images"], "dataset.path=/their/images"),
        (["dataset=image_folder", "dataset.path='/a b'"], "\"dataset.path='/a b'\""),
        (["dataset=mnist", "data_dir=/theirs"], "dataset.data_dir=/theirs"),
        (["dataset=digits", "model.init=/their/model.safetensors"], "model.init=/their/model.safetensors"),
        (["dataset=digits", "model._target_=their_model.Net"], "model._target_=their_model.Net"),
        (["dataset=custom", "dataset._target_=x.y", "+dataset.file=/z"], "dataset._target_=x.y ++dataset.file=/z"),
        (["dataset=digits", "+strategy.hook._target_=os.abort"], "++strategy.hook._target_=os.abort"),
        (["dataset=digits", "+strategy._partial_=true"], "++strategy._partial_=<value>"),
        (["dataset=digits", "+strategy.x='\x1b[31m/'"], r"\x1b[31m"),
    ],
)
def test_the_refusal_of_what_is_called_or_read_quotes_the_overrides_to_add(run_of, overrides, asked):
    folder = run_of(*overrides)
    for words in ([f"resume={folder}"], [f"branch_from={folder}", "branch_round=2"]):
        with pytest.raises(UserError, match="may not decide what is called, read or written") as raised:
            whole_command(words)
        assert asked in str(raised.value)
        assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "again"),
    [
        (["dataset=image_folder", "dataset.path=/a", "dataset.size=8"], "dataset.path=/moved"),
        (["dataset=mnist", "data_dir=/a"], "data_dir=/b"),
        (["dataset=sent140", "data_dir=/a", "model=lstm_sent140", "model.hidden_size=5"], "data_dir=/b"),
        (["dataset=custom", "dataset._target_=x.y", "+dataset.noise=0.2"], "dataset._target_=x.y"),
        (["dataset=digits", "strategy._target_=x.y", "+strategy.eta=0.03"], "strategy._target_=x.y"),
        (["dataset=digits", "strategy._target_=x.y", "+strategy.hook._target_=z"], "strategy._target_=x.y"),
    ],
)
def test_what_the_command_repeats_is_combined_with_the_rest_of_the_record(run_of, overrides, again):
    folder = run_of(*overrides)
    words = [f"resume={folder}", again, *(["++strategy.hook._target_=z"] if "hook" in str(overrides) else [])]
    made = composed("config", whole_command(words)[2:-1])
    expected = composed("config", [*(word for word in overrides if word.split("=")[0] != again.split("=")[0]), again])
    assert made | {"resume": None} == expected


def test_a_branch_is_resumed_without_its_trunk_unless_it_has_no_checkpoint(run_of):
    folder = run_of("dataset=digits", "branch_from=/their/run", "branch_round=3")
    assert "branch_from='/their/run'" in whole_command([f"resume={folder}"])
    (folder / CHECKPOINT).unlink()
    with pytest.raises(UserError, match="branch_from=/their/run"):
        whole_command([f"resume={folder}"])
    assert whole_command([f"resume={folder}", "branch_from=/their/run"])[-2] == "branch_from=/their/run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hydra": {"callbacks": {"evil": {"_target_": "os.abort"}}}}, ["run.json cannot be used", "'hydra'"]),
        ({"dataset": "../../evil"}, ["run.json cannot be used", "settings.dataset must be an object"]),
        ({"strategy": ["a", "b"]}, ["settings.strategy must be an object"]),
        ({"mu": {"_target_": "os.abort"}}, ["may not decide"]),
        ({"sampling": "${oc.env:HOME}"}, ["sampling=<value>"]),
        ({"dataset": {"_target_": "os.abort"}}, ["dataset._target_=os.abort"]),
    ],
)
def test_invalid_settings_are_refused(run_of, changes, words):
    folder = run_of("dataset=digits", **changes)
    with pytest.raises(UserError) as raised:
        whole_command([f"resume={folder}"])
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("name", ["metrics.csv", "clients.csv.part", "checkpoint", CHECKPOINT])
def test_a_link_among_the_files_that_a_resumed_run_would_write_is_refused(run_dir, tmp_path, name):
    target = tmp_path / "precious"
    if (run_dir / name).exists():
        (run_dir / name).rename(target)
    (run_dir / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a link"):
        whole_command([f"resume={run_dir}"])


@pytest.mark.parametrize("name", ["metrics.csv", "main.log", "run.json.part", "checkpoint/round_000009.safetensors"])
def test_a_pipe_among_the_files_that_a_resumed_run_would_write_is_refused(run_dir, name):
    (run_dir / name).unlink(missing_ok=True)
    os.mkfifo(run_dir / name)
    with pytest.raises(UserError, match=f"{name} is a pipe, a device or a socket"):
        whole_command([f"resume={run_dir}"])


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [
        *[("metrics.csv", True), ("clients.csv", True), ("main.log", True), (".hydra/config.yaml", True)],
        *[("model.safetensors.part", True), ("model.safetensors", False), ("run.json", False), (CHECKPOINT, False)],
    ],
)
def test_a_file_with_a_second_name_is_refused_if_a_resumed_run_would_change_it_in_place(
    run_dir, tmp_path, name, is_refused
):
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).touch()
    (tmp_path / "its other name").hardlink_to(run_dir / name)
    with pytest.raises(UserError, match=f"{name} has a second name") if is_refused else nullcontext():
        whole_command([f"resume={run_dir}"])


def test_a_record_of_gigabytes_is_not_read(run_dir):
    with (run_dir / "run.json").open("r+b") as file:
        file.truncate(2**33)  # a sparse file: it takes no space
    with pytest.raises(UserError, match="more than 33,554,432 bytes"):
        whole_command([f"resume={run_dir}"])


def test_a_setting_that_the_runs_partition_does_not_have_is_one_line(run_of):
    run_dir = run_of(*OVERRIDES, "partition=iid")
    with pytest.raises(UserError, match=r"^partition\.alpha is not a key of partition as chosen; add one with a plus"):
        whole_command([f"resume={run_dir}", "partition.alpha=3"])
