"""A mistake in the settings: one line that says what to do, exit status 2, nothing loaded or computed."""

import os

import pytest
import torch

SMALL = ("dataset=digits", "engine=local", "num_rounds=1")
# A data set that is not there: had anything been loaded before the setting was checked, the line would say MNIST.
NO_DATA = ("dataset=mnist", "data_dir=nowhere", "engine=local", "num_rounds=1")


# id: (arguments, the words that matter: setting, rule, value, remedy)
SETTINGS = {
    "misspelt": (["lerning_rate=1"], ["unknown setting 'lerning_rate'", "did you mean learning_rate?"]),
    "misspelt with a plus": (["+num_round=1"], ["unknown setting 'num_round'", "did you mean num_rounds?"]),
    "unknown": (["unknown=1"], ["unknown setting 'unknown'", "--help"]),
    "unknown with a plus": (["+unknown=1"], ["unknown setting 'unknown'", "--help"]),
    "unknown with two": (["++unknown=1"], ["unknown setting 'unknown'", "--help"]),
    "unknown in a group": (["client_resources.cpus=1"], ["client_resources.cpus"]),
    "unknown for a target": (["+strategy.eta=1"], ["strategy.eta is unknown", "takes fraction_train"]),
    "mu of letters": (["mu=large"], ["mu must be finite and >= 0", "got large"]),
    "mu below 0": (["mu=-1"], ["mu must be finite and >= 0", "got -1", "for no proximal term use mu=0"]),
    "cohort above clients": (
        ["num_clients=20", "clients_per_round=21"],
        ["clients_per_round must be at most num_clients=20", "got 21", "lower it or raise num_clients"],
    ),
    "rounds a fraction": (["num_rounds=1.5"], ["num_rounds must be an integer >= 1", "got 1.5"]),
    "repetition of letters": (["+repeat_num=often"], ["repeat_num must be an integer >= 0", "got often"]),
    "repetition without plus": (["repeat_num=1"], ["repeat_num needs a plus", "+repeat_num=3"]),
    "device unknown": (["server_device=tpu"], ["server_device must be cpu, cuda", "got tpu"]),
    "CPUs beyond the machine": (
        ["engine=ray", "client_resources.num_cpus=100000"],
        [
            "client_resources.num_cpus must be at most",
            f" {os.cpu_count()}, ",
            "got 100000",
            "lower it",
            "use engine=local",
        ],
    ),
    "GPUs beyond the machine": (
        ["engine=ray", "client_resources.num_gpus=999"],
        ["client_resources.num_gpus must be at most", f" {torch.cuda.device_count()}, ", "got 999", "lower it"],
    ),
    "new key in an object": (
        ["strategy={_target_: fedprox.strategies.fedprox.FedProx, eta: 1.0}"],
        ["strategy.eta is not a key of strategy", "+strategy.eta=<value>"],
    ),
    "target not there": (
        ["strategy._target_=flwr.serverapp.strategy.FedAdm"],
        ["strategy._target_=flwr.serverapp.strategy.FedAdm", "cannot be loaded", "no attribute 'FedAdm'"],
    ),
    "target's module not there": (
        ["strategy._target_=no_such_package.Mine"],
        ["strategy._target_=no_such_package.Mine", "cannot be loaded", "No module named 'no_such_package'"],
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
    "strategy within a strategy not there": (
        ["strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.train_metrics_aggr_fn._target_=no.such"],
        ["FedAvg failed with", "no.such"],
    ),
    "target a number": (["strategy._target_=5"], ["strategy._target_ must be text, got 5", "name a function or class"]),
    "target's argument of a wrong type": (
        ["partition.sigma=large"],
        ["partition.sigma must be of type float", "'large'"],
    ),
    "strength of letters": (
        ["feature_skew=noise", "feature_skew.strength=much"],
        ["feature_skew.strength must be of type float", "'much'"],
    ),
    "strength of no skew": (["+feature_skew.strength=1"], ["feature_skew.strength is unknown"]),
    "sizes a number": (["partition=iid", "partition.sizes=3"], ["partition.sizes must be of type str", "got 3"]),
    "sweep without --multirun": (["mu=0,1"], ["mu=0,1", "--multirun"]),
    "word without a value": (["mu"], ["'mu'", "EQUAL"]),
    "bracket not closed": (["mu=[1"], ["mu=[1"]),
    "range not closed": (["--multirun", "mu=range(3"], ["mu=range(3"]),
    "setting taken away": (["~mu"], ["mu"]),
    "reference to nothing": (["mu=${nothing}"], ["mu", "nothing"]),
    "reference to a variable that is not set": (["mu=${oc.env:NOT_SET_ANYWHERE}"], ["mu", "NOT_SET_ANYWHERE"]),
    "reference of a wrong type": (["num_rounds=${mu}"], ["num_rounds must be an integer", "got 1.0"]),
    "two values of one group": (["+experiment=digits"], ["experiment"]),
    "batch statistics unknown": (
        ["batch_statistics=own"],
        ["batch_statistics must be averaged or local", "got own"],
    ),
    "unknown in evaluation": (
        ["+evaluation.often=1"],
        ["unknown setting 'evaluation.often'", "name, every, per_class, per_client"],
    ),
    "adaptive mu without the loss": (
        ["adaptive_mu.enabled=true"],
        ["adaptive_mu.enabled=true", "training loss of all clients", "evaluation=server", "use evaluation=clients"],
    ),
    "adaptive mu with gaps": (
        ["adaptive_mu.enabled=true", "evaluation=clients", "evaluation.every=2"],
        ["adaptive_mu.enabled=true", "after every round", "evaluation.every=2", "use evaluation=clients"],
    ),
    "unknown in adaptive mu": (["adaptive_mu.rate=1"], ["adaptive_mu.rate"]),
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
    "threads of letters": (["engine.num_threads=all"], ["engine.num_threads must be of type int", "'all'"]),
    "logger with a wrong mode": (
        ["logger=wandb", "logger.wandb.mode=often"],
        ["logger.wandb.mode must be online, offline, disabled or null", "got often"],
    ),
    "logger's setting of a wrong type": (
        ["logger=mlflow", "logger.mlflow.experiment=5"],
        ["logger.mlflow.experiment must be of type str", "got 5"],
    ),
    "unknown for a logger": (["logger=tensorboard", "+logger.tensorboard.flush=1"], ["logger.tensorboard.flush is"]),
    "logger's setting without the logger": (["logger.wandb.mode=offline"], ["logger.wandb"]),
    "logger a number": (["+logger.mine=3"], ["logger.mine must be a group of settings", "got 3"]),
    "logger not there": (["+logger.mine._target_=no_such.Logger"], ["logger.mine._target_=no_such.Logger", "loaded"]),
    "round_timeout 0": (["round_timeout=0"], ["round_timeout must be finite and > 0", "null for no limit"]),
    "early stopping by nothing": (
        ["early_stopping.metric=loss"],
        ["early_stopping.metric must be a column", "got loss", "test_loss", "evaluation=clients"],
    ),
    "checkpoints every 0": (["checkpoint.every=0"], ["checkpoint.every must be an integer", "got 0; null for none"]),
    "branch without a round": (
        ["branch_round=3"],
        ["branch_from and branch_round must be given together", "branch_round=3"],
    ),
    "branch from nowhere": (["branch_from=no/run", "branch_round=3"], ["branch_from=no/run is no run directory"]),
    "resumed from nowhere": (["resume=no/run"], ["resume=no/run is no run directory"]),
    "evaluation.every taken away": (["~evaluation.every"], ["evaluation.every"]),
}


@pytest.mark.parametrize(("arguments", "words"), SETTINGS.values(), ids=SETTINGS)
def test_a_wrong_setting_is_told_in_one_line_before_anything_is_loaded(refused, arguments, words):
    base = [setting for setting in NO_DATA if setting.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    refused(*arguments, *base, says=words)


@pytest.mark.parametrize(
    ("group", "one_of_them"),
    [
        ("dataset", "synthetic_1_1"),
        ("model", "logistic"),
        ("engine", "local"),
        ("strategy", "fedavg"),
        ("partition", "power_law"),
        ("feature_skew", "rotation"),
        ("protocol", "paper"),
        ("experiment", "paper_mnist"),
        ("evaluation", "clients"),
        ("logger", "tensorboard"),
    ],
)
def test_an_unknown_choice_is_told_with_all_there_are(refused, group, one_of_them):
    refused(
        f"{group}=no_such_thing",
        *(setting for setting in NO_DATA if not setting.startswith(group)),
        says=(f"{group}/no_such_thing", f"Available options in '{group}'", one_of_them),
    )


BAD_FIRST_OR_LAST = {
    "last of three": (["mu=0,1,-1"], ["mu must be finite and >= 0", "got -1"]),
    "first of three": (["mu=-1,0,1"], ["mu must be finite and >= 0", "got -1"]),
    "second setting": (["mu=0,1", "stragglers_fraction=0.1,7"], ["stragglers_fraction", "between 0 and 1", "7"]),
    "wrong type": (["mu=0,large"], ["mu must be finite and >= 0", "got large"]),
    "unknown choice": (["model=logistic,no_such_model"], ["model/no_such_model", "logistic"]),
    "outside the sweep": (["mu=0,1", "learning_rate=0"], ["learning_rate must be finite and > 0", "got 0"]),
    "misspelt and swept": (["learn_rate=0.1,1"], ["unknown setting 'learn_rate'", "did you mean learning_rate?"]),
    "range of repetitions below 0": (["+repeat_num=range(-1,2)"], ["repeat_num must be an integer >= 0", "got -1"]),
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


@pytest.mark.parametrize("value", ["0", "-2"])
def test_a_number_of_threads_below_1_is_told(refused, value):
    refused(*SMALL, f"engine.num_threads={value}", says=("num_threads", ">= 1", f"got {value}"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there, so server_device=cuda is no mistake")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none_is_told(refused, device):
    refused(f"server_device={device}", *NO_DATA, says=(f"server_device={device}", "GPU", "server_device=cpu"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense"])
def test_a_cluster_that_is_not_there_is_told(refused, address):
    says = ("engine.address", f"'{address}'", "ray start --head", "leave engine.address out")
    refused("dataset=digits", f"engine.address={address}", "num_rounds=1", says=says)


@pytest.mark.parametrize(
    ("mode", "setting"),
    [
        ([], "hydra.run.dir"),
        (["--multirun"], "hydra.sweep.dir"),
    ],
)
def test_a_run_directory_that_cannot_be_made_is_told(refused, tmp_path, mode, setting):
    (tmp_path / "file").write_text("a regular file")
    refused(*mode, *SMALL, f"{setting}=file/below", says=("file", "Not a directory", setting))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--multirun", "mu=0,-1", *SMALL], ["mu must be finite and >= 0", "got -1"]),
        (["num_clients=1000000", *SMALL], ["num_clients must be at most 140", "got 1000000"]),
    ],
    ids=["sweep", "data"],
)
def test_as_a_process_too_stderr_is_that_one_line_and_the_status_2(program, the_line, arguments, words):
    line = the_line(program(*arguments))
    assert all(word in line for word in words)
