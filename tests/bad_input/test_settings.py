"""A mistake in the settings: one line with the remedy, exit status 2, nothing loaded or computed."""

import pytest
import torch

SMALL = ("dataset=digits", "engine=local", "num_rounds=1")
# A missing data set: if it were loaded before the setting is checked, the error would be about MNIST.
NO_DATA = ("dataset=mnist", "data_dir=nowhere", "engine=local", "num_rounds=1")


# id: (arguments, the words that matter: setting, rule, value, remedy)
SETTINGS = {
    "misspelt": (["lerning_rate=1"], ["unknown setting 'lerning_rate'", "did you mean learning_rate?"]),
    "unknown": (["unknown=1"], ["unknown", "--help"]),
    "unknown in a group": (["client_resources.cpus=1"], ["client_resources.cpus"]),
    "unknown in a group of the schema": (
        ["evaluation.often=1"],
        ["unknown setting 'evaluation.often'", "takes name, every"],
    ),
    "below a setting": (["mu.x=1"], ["unknown setting 'mu.x'; did you mean"]),
    "not a key of a target": (
        ["partition=iid", "partition.alpha=3"],
        ["partition.alpha is not a key of partition as chosen", "add one with a plus: +partition.alpha=<value>"],
    ),
    "unknown for a target": (["+strategy.eta=1"], ["strategy.eta is unknown", "takes fraction_train"]),
    "mu below 0": (["mu=-1"], ["mu must be finite and >= 0", "got -1", "for no proximal term use mu=0"]),
    "repetition without plus": (["repeat_num=1"], ["repeat_num needs a plus", "+repeat_num=3"]),
    "new key in an object": (
        ["strategy={_target_: fedprox.strategies.fedprox.FedProx, eta: 1.0}"],
        ["strategy.eta is not a key of strategy as chosen", "+strategy.eta=<value>"],
    ),
    "target not there": (
        ["strategy._target_=flwr.serverapp.strategy.FedAdm"],
        ["strategy._target_=flwr.serverapp.strategy.FedAdm", "cannot be loaded", "no attribute 'FedAdm'"],
    ),
    "differential privacy of Flower's": (
        ["strategy._target_=flwr.serverapp.strategy.DifferentialPrivacyClientSideAdaptiveClipping"],
        [
            "DifferentialPrivacyClientSideAdaptiveClipping is refused",
            "no client clips",
            "not seeded",
            "name the wrapped",
        ],
    ),
    "a mu of the strategy's own": (
        ["strategy._target_=flwr.serverapp.strategy.FedProx", "+strategy.proximal_mu=0.5"],
        ["strategy.proximal_mu=0.5 has no effect", "set mu=0.5"],
    ),
    "sampling of the strategy's own": (
        ["+strategy.fraction_train=0.5"],
        ["strategy.fraction_train", "clients_per_round"],
    ),
    "strategy without a setting that it needs": (
        ["strategy._target_=flwr.serverapp.strategy.QFedAvg"],
        ["QFedAvg needs client_learning_rate", "add +strategy.client_learning_rate=<value>"],
    ),
    "strategy that cannot be made": (
        ["strategy._target_=flwr.serverapp.strategy.FedTrimmedAvg", "+strategy.beta=0.7"],
        ["FedTrimmedAvg failed with", "ValueError: `beta` must be in the range"],
    ),
    "target a number": (["strategy._target_=5"], ["strategy._target_ must be text, got 5", "name a function or class"]),
    "target's argument of a wrong type": (
        ["partition.sigma=large"],
        ["partition.sigma must be of type float", "'large'"],
    ),
    "sweep without --multirun": (["mu=0,1"], ["mu=0,1", "--multirun"]),
    "word without a value": (["mu"], ["'mu'", "EQUAL"]),
    "range not closed": (["--multirun", "mu=range(3"], ["mu=range(3"]),
    "reference to nothing": (["mu=${nothing}"], ["mu", "nothing"]),
    "reference to a variable that is not set": (["mu=${oc.env:NOT_SET_ANYWHERE}"], ["mu", "NOT_SET_ANYWHERE"]),
    "reference of a wrong type": (["num_rounds=${mu}"], ["num_rounds must be an integer", "got 1.0"]),
    "two values of one group": (["+experiment=digits"], ["experiment"]),
    "adaptive mu without the loss": (
        ["adaptive_mu.enabled=true"],
        ["adaptive_mu.enabled=true", "training loss of all clients", "evaluation=server", "use evaluation=clients"],
    ),
    "authors sample uniformly": (
        ["protocol=authors", "sampling=proportional"],
        ["protocol=authors does not support sampling=proportional", "use it with protocol=paper"],
    ),
    "authors' epoch 1": (
        ["protocol=authors", "num_epochs=1"],
        ["protocol=authors needs num_epochs >= 2", "got num_epochs=1", "protocol=paper", "stragglers_fraction=0"],
    ),
    "authors keep short batches": (
        ["protocol=authors", "last_batch=merge"],
        ["protocol=authors does not support last_batch=merge", "use it with protocol=paper"],
    ),
    "logger with a wrong mode": (
        ["logger=wandb", "logger.wandb.mode=often"],
        ["logger.wandb.mode must be online, offline, disabled or null", "got often"],
    ),
    "logger's setting without the logger": (
        ["logger.wandb.mode=offline"],
        ["logger.wandb.mode is not a key of logger"],
    ),
    "logger not there": (["+logger.mine._target_=no_such.Logger"], ["logger.mine._target_=no_such.Logger", "loaded"]),
    "early stopping by nothing": (
        ["early_stopping.metric=loss"],
        ["early_stopping.metric must be a column", "got loss", "test_loss", "evaluation=clients"],
    ),
    "branch without a round": (
        ["branch_round=3"],
        ["branch_from and branch_round must be given together", "branch_round=3"],
    ),
    "branch from nowhere": (["branch_from=no/run", "branch_round=3"], ["branch_from=no/run is not a run directory"]),
    "resumed from nowhere": (["resume=no/run"], ["resume=no/run is not a run directory"]),
    "evaluation.every taken away": (["~evaluation.every"], ["evaluation.every"]),
}


@pytest.mark.parametrize(("arguments", "words"), SETTINGS.values(), ids=SETTINGS)
def test_a_wrong_setting_is_refused_in_one_line_before_anything_is_loaded(refused, arguments, words):
    base = [setting for setting in NO_DATA if setting.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    refused(*arguments, *base, says=words)


@pytest.mark.parametrize(("group", "one_of_them"), [("dataset", "synthetic_1_1"), ("logger", "tensorboard")])
def test_an_unknown_choice_is_refused_with_a_list_of_all(refused, group, one_of_them):
    base = [setting for setting in NO_DATA if not setting.startswith(group)]
    says = (f"{group}/no_such_thing", f"Available options in '{group}'", one_of_them)
    refused(f"{group}=no_such_thing", *base, says=says)


BAD_FIRST_OR_LAST = {
    "last of three": (["mu=0,1,-1"], ["mu must be finite and >= 0", "got -1"]),
    "second setting": (["mu=0,1", "stragglers_fraction=0.1,7"], ["stragglers_fraction", "between 0 and 1", "7"]),
    "unknown choice": (["model=logistic,no_such_model"], ["model/no_such_model", "logistic"]),
    "target not there": (["strategy._target_=flwr.serverapp.strategy.FedAdam,no.such"], ["strategy._target_=no.such"]),
    "strategy that cannot be made": (
        ["strategy._target_=flwr.serverapp.strategy.FedTrimmedAvg", "+strategy.beta=0.1,0.7"],
        ["FedTrimmedAvg failed with", "`beta`"],
    ),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_FIRST_OR_LAST.values(), ids=BAD_FIRST_OR_LAST)
def test_one_bad_value_in_a_sweep_stops_it_before_its_first_job(refused, tmp_path, arguments, words):
    refused("--multirun", *arguments, *SMALL, says=words)
    assert list(tmp_path.glob("sweep/*/.hydra")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there, so server_device=cuda is no mistake")
def test_cuda_is_refused_if_there_is_none(refused):
    refused("server_device=cuda", *NO_DATA, says=("server_device=cuda", "GPU", "server_device=cpu"))


def test_a_cluster_that_does_not_answer_is_reported(refused):
    says = ("engine.address", "'127.0.0.1:9'", "ray start --head", "remove engine.address")
    refused("dataset=digits", "engine.address=127.0.0.1:9", "num_rounds=1", says=says)


@pytest.mark.parametrize(("mode", "setting"), [([], "hydra.run.dir"), (["--multirun"], "hydra.sweep.dir")])
def test_a_run_directory_that_cannot_be_made_is_reported(refused, tmp_path, mode, setting):
    (tmp_path / "file").write_text("a regular file")
    refused(*mode, *SMALL, f"{setting}=file/below", says=("file", "Not a directory", setting))


def test_a_process_too_writes_only_that_line_and_ends_with_status_2(program, the_line):
    assert "num_clients must be at most 140" in the_line(program("num_clients=1000000", *SMALL))
