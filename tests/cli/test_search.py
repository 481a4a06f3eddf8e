"""A search by Optuna: what it varies, when it prunes, and that it continues as if it had never stopped."""

import csv
import shutil
from statistics import median

import pytest

from fedprox.cli.search import fixed_words, median_bar, space_of
from fedprox.config.compose import compose
from fedprox.config.schema import Search
from fedprox.errors import UserError

SMALL = ("experiment=digits", "engine=local", "num_rounds=2", "checkpoint.every=null")
SEARCH = ("--multirun", "hydra/sweeper=optuna", "mu=tag(log,interval(0.001,1))", "objective=best_accuracy", *SMALL)


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="Optuna, the extra search, is not installed")


def table(folder):
    with (folder / "trials.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def curve(folder, trial, column="test_accuracy"):
    with (folder / str(trial) / "metrics.csv").open(newline="") as opened:
        return [float(row[column]) for row in csv.DictReader(opened)]


def test_a_search_ranks_its_trials_and_continues_as_if_it_had_not_been_interrupted(optuna, fedprox, tmp_path):
    ended = fedprox(*SEARCH, "hydra.sweeper.num_trials=3", "hydra.sweep.dir=whole")
    assert (ended.status, ended.err) == (0, "")
    whole = table(tmp_path / "whole")
    values = [float(row["best_accuracy"]) for row in whole]
    assert values == sorted(values, reverse=True)
    assert values == [max(curve(tmp_path / "whole", row["trial"])) for row in whole]
    assert all(0.001 <= float(row["mu"]) <= 1 for row in whole)
    assert len({row["mu"] for row in whole}) == 3
    assert ended.out.splitlines()[-3].split()[:2] == [whole[0]["trial"], "finished"]  # the best one is shown first

    shutil.copytree(tmp_path / "whole", tmp_path / "sweep")  # a search that was killed during its last trial
    for file in ("trials.csv", "jobs.csv", "2/run.json"):
        (tmp_path / "sweep" / file).unlink()
    before = (tmp_path / "sweep" / "1" / "run.json").stat().st_mtime_ns
    assert fedprox(*SEARCH, "hydra.sweeper.num_trials=3").status == 0
    assert table(tmp_path / "sweep") == whole
    assert (tmp_path / "sweep" / "1" / "run.json").stat().st_mtime_ns == before  # it did not run again

    changed = fedprox(*SEARCH, "hydra.sweeper.num_trials=3", "seed=1")
    assert changed.status == 2
    assert "sweep/0 holds a run with other settings" in changed.err


def test_trials_that_are_worse_than_the_median_are_pruned_and_those_that_diverge_fail(optuna, fedprox, tmp_path):
    search = ("learning_rate=0.0001,0.03,0.3,1e30", "hydra.sweeper.sampler=random", "hydra.sweeper.num_trials=6")
    pruning = ("early_stopping.metric=test_loss", "hydra.sweeper.num_startup=1", "hydra.sweeper.prune_at=[0.5]")
    ended = fedprox("--multirun", "hydra/sweeper=optuna", *SMALL, *search, *pruning, "objective=loss")
    assert ended.status == 1  # because jobs failed
    rows = sorted(table(tmp_path / "sweep"), key=lambda row: int(row["trial"]))
    in_round_1 = []
    for row in rows:
        if float(row["learning_rate"]) == 1e30:
            assert (row["status"], row["loss"]) == ("failed", "")
            continue
        losses = curve(tmp_path / "sweep", row["trial"], "test_loss")
        if in_round_1 and losses[1] > median(in_round_1):
            assert (row["status"], len(losses), float(row["loss"])) == ("pruned", 2, losses[1])
        else:
            assert (row["status"], len(losses), float(row["loss"])) == ("finished", 3, losses[2])
            in_round_1.append(losses[1])
    assert {row["status"] for row in rows} == {"finished", "pruned", "failed"}


def test_another_packages_sweeper_of_the_same_name_is_not_in_the_way(optuna, fedprox, tmp_path):
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(
        "optuna", {"defaults": [], "_target_": "theirs", "n_trials": 20}, group="hydra/sweeper"
    )
    assert fedprox(*SEARCH, "hydra.sweeper.num_trials=1", "num_rounds=1").status == 0
    assert len(table(tmp_path / "sweep")) == 1


def test_without_optuna_the_error_says_how_to_install_it(fedprox, monkeypatch):
    monkeypatch.setattr("fedprox.cli.search.find_spec", lambda name: None)
    ended = fedprox(*SEARCH)
    assert ended.status == 2
    assert ended.err == "error: hydra/sweeper=optuna needs Optuna; install it with pip install 'fedprox[search]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective=best_acuracy"], "did you mean best_accuracy?"),
        (["momentum=interval(0,1)"], "momentum must be finite, at least 0 and below 1, got 1"),
        (["hydra.sweeper.num_trials=0"], "hydra.sweeper: num_trials must be an integer >= 1 and below 2^32, got 0"),
    ],
)
def test_a_mistake_is_one_line_before_the_first_trial(optuna, fedprox, tmp_path, arguments, message):
    ended = fedprox(*SEARCH, *arguments)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    assert not list(tmp_path.glob("sweep/0"))


@pytest.fixture(scope="module")
def config():
    return compose(["experiment=digits", "num_rounds=8", "early_stopping.metric=test_loss"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mu=1", "hydra/sweeper=optuna needs a setting to search"),
        ("+repeat_num=range(5)", "repeat_num cannot be searched, got +repeat_num=range(5): a search would choose"),
        ("seed=1,2", "seed cannot be searched"),
        ("early_stopping.metric=test_loss,drift", "early_stopping.metric cannot be searched"),
        ("mu=interval(1,0)", "mu=interval(1,0) must be an interval(low, high) with low < high"),
        ("mu=tag(log,interval(0,1))", "with low > 0 for tag(log, ...)"),
    ],
)
def test_what_cannot_be_searched_is_refused(optuna, config, word, message):
    with pytest.raises(UserError) as error:
        space_of([word], config)
    assert message in str(error.value)


def test_a_search_varies_intervals_ranges_and_choices(optuna, config):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    words = ["mu=interval(0,1)", "batch_size=tag(log,interval(1,64))", "num_epochs=range(1,20,3)"]
    words += ["+model.x=interval(1,2)", "+model.y=int(interval(1,2))"]
    space = space_of(["mu=0.5", *words, "model=cnn,mlp", "num_clients=30"], config)
    assert space.fixed == ["num_clients=30"]
    assert space.searched == {
        "mu": FloatDistribution(0.0, 1.0),  # not 0 or 1
        "batch_size": IntDistribution(1, 64, log=True),
        "num_epochs": IntDistribution(1, 19, step=3),
        "+model.x": FloatDistribution(1.0, 2.0),
        "+model.y": IntDistribution(1, 2),
        "model": CategoricalDistribution(["cnn", "mlp"]),
    }
    assert space.words({"mu": 0.25, "model": "cnn"}) == ["num_clients=30", "mu=0.25", "model=cnn"]
    assert fixed_words([*words, "mu=1", "~logger"]) == ["mu=1", "~logger"]


def rows(*losses):
    return [{"round": at, "test_loss": loss} for at, loss in enumerate(losses)]


def search_with(num_startup, prune_at):
    given = {"num_trials": 9, "num_parallel": 1, "sampler": "tpe", "params": {}}
    return Search.of({**given, "num_startup": num_startup, "prune_at": prune_at})


def test_the_bar_is_the_median_of_the_finished_trials_in_the_same_round(config):
    search = Search.of(
        {
            "num_trials": 9,
            "num_parallel": 1,
            "num_startup": 3,
            "sampler": "tpe",
            "prune_at": [0.3, 0.5, 0.9],
            "params": {},
        }
    )
    curves = [rows(9, 8, 7, 6, 5, 4), rows(9, 5, 5, 5, 3, 3), rows(9, 5, 5, 1, 1, 1)]
    # 0.3 and 0.5 of eight rounds are 2.4 and 4: rounds 3 and 4; 0.9 is the last round, in which nothing is saved
    assert median_bar(curves, config, search) == [[3, 5], [4, 3]]
    assert median_bar([*curves[:2], rows(9, 5, 5, 1)], config, search) == [[3, 5]]  # only two trials had a round 4
    assert median_bar(curves[:2], config, search) == []
    assert median_bar([*curves[:2], rows(9, 5, 5, float("nan"), 2)], config, search) == [[4, 3]]


def test_a_bar_is_in_an_evaluated_round_and_needs_a_column():
    search = Search.of(
        {"num_trials": 9, "num_parallel": 1, "num_startup": 1, "sampler": "tpe", "prune_at": [0.5], "params": {}}
    )
    given = ["experiment=digits", "num_rounds=20", "evaluation.every=4"]
    curves = [[{"round": at, "test_loss": 1.0 / at} for at in (4, 8, 12, 16, 20)]]
    assert median_bar(curves, compose([*given, "early_stopping.metric=test_loss"]), search) == [[12, 1 / 12]]
    assert median_bar(curves, compose(given), search) == []
