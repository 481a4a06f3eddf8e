"""The command line of an earlier run, with what is to be different."""

import json
from pathlib import Path

import pytest

from fedprox import config
from fedprox.errors import UserError
from fedprox.resuming import whole_command, without_resume

CONF = Path(__file__).parents[1] / "conf"
OVERRIDES = ["dataset=digits", "mu=0.5", "+repeat_num=2", "data_dir=data"]


@pytest.fixture(autouse=True)
def _schema():
    config.register()


@pytest.fixture
def run_dir(tmp_path):
    """Return a directory whose run.json is that of a run with OVERRIDES."""
    return written(tmp_path / "run of mine", "fedavg", OVERRIDES)


def written(folder: Path, config_name: str, overrides: list[str], **settings: object) -> Path:
    """Return a folder with the run.json of a command, where a few settings may be an earlier version's."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        settings = config.plain(compose(config_name, overrides)) | settings
    record = {"status": "interrupted", "algorithm": "FedAvg", "seed": 0, "name": "digits", "settings": settings}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**record, "config_name": config_name, "overrides": overrides}))
    return folder


@pytest.mark.parametrize("words", [[], ["mu=1"], ["resume=null"], ["branch_from="], ["--multirun", "mu=1,2"]])
def test_a_command_that_names_no_earlier_run_stays_as_it_is(words):
    assert whole_command(words, CONF) == words


@pytest.mark.parametrize("form", ["resume={}", "resume='{}'", "++resume={}"])
def test_a_resumed_run_has_the_command_that_made_it_and_its_directory(run_dir, form):
    word = form.format(run_dir)
    command = ["--config-name", "fedavg", *OVERRIDES, word, f"hydra.run.dir='{run_dir}'"]
    assert whole_command([word], CONF) == command


def test_what_is_given_anew_replaces_what_was_given_then(run_dir):
    command = whole_command([f"resume={run_dir}", "data_dir=elsewhere", "engine=local"], CONF)
    assert command[2:-1] == [*OVERRIDES[:3], f"resume={run_dir}", "data_dir=elsewhere", "engine=local"]


@pytest.mark.parametrize("anew", ["+repeat_num=3", "++repeat_num=3", "repeat_num=3"])
def test_with_or_without_a_plus_it_is_the_same_setting(run_dir, anew):
    words = [f"branch_from={run_dir}", "branch_round=4", anew]
    assert whole_command(words, CONF) == ["--config-name", "fedavg", *OVERRIDES[:2], OVERRIDES[3], *words]


def test_a_branch_may_be_swept(run_dir):
    words = ["--multirun", f"branch_from={run_dir}", "branch_round=4", "mu=0,1"]
    assert whole_command(words, CONF)[:2] == ["--config-name", "fedavg"]
    assert "mu=0.5" not in whole_command(words, CONF)


@pytest.mark.parametrize("more", [["num_rounds=200"], ["mu=0.5"], ["engine=local"], ["checkpoint.every=1"]])
def test_what_changes_no_number_of_the_past_is_accepted(run_dir, more):
    assert whole_command([f"resume={run_dir}", *more], CONF)[-2] == more[0]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["mu=1"], "mu=1.0 (was 0.5)"),
        (["+repeat_num=3"], "repeat_num=3 (was 2)"),
        (["dataset=mnist"], 'dataset._target_="fedprox.data.mnist.mnist"'),
        (["schedule.name=cosine"], 'schedule.name="cosine" (was "constant")'),
    ],
)
def test_what_would_change_the_past_is_refused_and_named(run_dir, more, named):
    with pytest.raises(UserError, match="would change the past") as raised:
        whole_command([f"resume={run_dir}", *more], CONF)
    assert named in str(raised.value)


@pytest.mark.parametrize("word", ["--config-name=config", "-cn", "--multirun", "-m"])
def test_what_does_not_go_with_resume_is_refused(run_dir, word):
    with pytest.raises(UserError, match="resume= "):
        whole_command([f"resume={run_dir}", word], CONF)


def test_the_overrides_of_a_run_do_not_tell_that_it_was_resumed():
    assert without_resume(["mu=1", "resume=a", "++resume=a", "+repeat_num=1"]) == ["mu=1", "+repeat_num=1"]


ADAM = "strategy._target_=flwr.serverapp.strategy.FedAdam"


@pytest.mark.parametrize(
    ("overrides", "mu"),
    [
        ([ADAM, "dataset=digits"], 1.0),  # once the default with every strategy
        ([ADAM, "dataset=shakespeare", "dataset.path=there"], 0.001),
        (["experiment=flare_cifar10"], 1.0),  # once not what the preset's comment says
        (["experiment=flare_cifar10", "strategy=feddane"], 1.0),
    ],
)
def test_a_run_of_an_earlier_version_keeps_the_mu_that_was_a_default_then(tmp_path, overrides, mu):
    folder = written(tmp_path / "run", "config", overrides, mu=mu)
    assert whole_command([f"resume={folder}"], CONF)[2] == f"mu={mu}"


@pytest.mark.parametrize(("anew", "keeps"), [([], True), (["mu=0.5"], False), (["strategy=fedavg"], False)])
def test_so_does_a_branch_of_it_but_for_another_mu_or_strategy_which_has_its_own(tmp_path, anew, keeps):
    folder = written(tmp_path / "run", "config", [ADAM, "dataset=digits"], mu=1.0)
    command = whole_command([f"branch_from={folder}", "branch_round=3", *anew], CONF)
    assert ("mu=1.0" in command) == keeps


def test_a_mu_that_never_was_a_default_is_not_the_commands(tmp_path):
    folder = written(tmp_path / "run", "config", [ADAM, "dataset=digits"], mu=0.25)
    with pytest.raises(UserError, match=r"would change the past: mu=0.0 \(was 0.25\)"):
        whole_command([f"resume={folder}"], CONF)
