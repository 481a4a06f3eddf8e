"""Random settings: a run, or one line and exit status 2; never a traceback, never a hang.

`FEDPROX_FUZZ_S=300 pytest tests/fuzz -s` searches for 300 s in each test with random seeds; without it a few examples
are tried, the same ones in every run of the suite.
"""

import shutil

from hypothesis import strategies as st

BASE = {
    "dataset": "digits",
    "engine": "local",
    "num_rounds": "1",
    "num_clients": "5",
    "clients_per_round": "2",
    "num_epochs": "2",
    "engine.num_threads": "1",
}
# Values that a setting may have, or nearly. Work stays small: at most 20 clients, 3 epochs and 2 rounds.
COUNTS, RATES = ("1", "2", "3", "0", "-1"), ("0", "0.1", "0.5", "0.9", "1", "1.1", "1e-300", "1e300", "-0.5", "-0.0")
FLAGS = ("true", "false", "1", "null")
PLAUSIBLE = {
    "num_clients": ("5", "10", "20", "1443", "1000000000", "null"),
    "num_epochs": ("1", "2", "3", "0"),
    "num_rounds": ("1", "2", "0"),
    "batch_size": (*COUNTS, "10", "4000000000"),
    "last_batch": ("keep", "drop", "merge"),
    "clients_per_round": (*COUNTS, "5", "6", "100000000"),
    "stragglers_fraction": RATES,
    "learning_rate": RATES,
    "mu": RATES,
    "momentum": RATES,
    "weight_decay": RATES,
    "hold_out": RATES,
    "schedule.name": ("constant", "cosine"),
    "schedule.final": RATES,
    "adaptive_mu.enabled": FLAGS,
    "adaptive_mu.initial": RATES,
    "adaptive_mu.step": RATES,
    "adaptive_mu.patience": COUNTS,
    "sampling": ("uniform", "proportional"),
    "mixed_precision": FLAGS,
    "server_device": ("cpu", "cpu:1", "cuda:99", "meta", "mps"),
    "client_resources.num_cpus": COUNTS,
    "client_resources.num_gpus": COUNTS,
    "solver": ("auto", "reference", "cohort"),
    "batch_statistics": ("averaged", "local"),
    "seed": (*COUNTS, "4294967295", "4294967296"),
    "repeat_num": COUNTS,
    "data_dir": ("/", "nowhere", "~"),
    "dataset": ("digits", "synthetic_1_1", "synthetic_iid", "leaf", "image_folder", "custom", "shakespeare"),
    "partition": ("iid", "shards", "dirichlet", "pathological", "power_law", "natural", "custom"),
    "partition.sigma": (*RATES, "50"),
    "partition.alpha": (*RATES, "1000", "0.01"),
    "partition.sizes": ("equal", "lognormal", "zipf", "drawn"),
    "partition.exponent": (*RATES, "10"),
    "partition.min_examples": (*COUNTS, "100"),
    "partition.min_examples_per_class": (*COUNTS, "100"),
    "partition.classes_per_client": (*COUNTS, "10", "11"),
    "partition.shards_per_client": (*COUNTS, "1442"),
    "feature_skew": ("none", "rotation", "brightness", "noise"),
    "feature_skew.strength": (*RATES, "180"),
    "model": ("logistic", "mlp", "cnn", "cnn_tutorial", "lstm_shakespeare"),
    "model.init": ("default", "zeros", "/", "nowhere", "é"),
    "personalisation": ("local", "fine_tuning", "fedper", "fedrep", "lg", "fedbn", "apfl", "ditto"),
    "personalisation.weight": (*RATES, "67", "null"),
    "personalisation.alpha": (*RATES, "null"),
    "personalisation.epochs": (*COUNTS, "null"),
    "personalisation.body_epochs": (*COUNTS, "null"),
    "personalisation.names": ("[*]", "['1.*']", "[]", "[1]", "null"),
    "personalisation.max_bytes": COUNTS,
    "strategy": ("fedprox", "fedavg", "feddane"),
    "protocol": ("flower", "paper", "authors"),
    "evaluation": ("server", "clients"),
    "evaluation.name": ("server", "clients"),
    "evaluation.every": COUNTS,
    "evaluation.per_class": FLAGS,
    "evaluation.per_client": FLAGS,
    "devices": ("none", "lognormal", "file"),
    "devices.sigma": (*RATES, "10"),
    "devices.bandwidth": (*COUNTS, "1e15", "null"),
    "arrival": ("synchronous", "deadline", "buffered"),
    "arrival.seconds": (*RATES, "20"),
    "arrival.buffer": COUNTS,
    "arrival.concurrency": (*COUNTS, "5"),
    "augmentation": ("none", "crop_flip"),
    "augmentation.pad": COUNTS,
    "augmentation.mode": ("reflect", "black"),
    "augmentation.flip": FLAGS,
    "engine.num_threads": (*COUNTS, "null", "4000000000"),
    "hydra.job.chdir": FLAGS,
    "hydra.mode": ("RUN", "MULTIRUN"),
    "hydra/job_logging": ("default", "none", "disabled"),
    "nothing_known": FLAGS,
}
# Each of these only fails or creates an object.
TARGETS = """
os.getcwd nope no.pe builtins.dict builtins.int collections.OrderedDict functools.partial . a..b é.é
torch.nn.Linear torch.nn.LSTM fedprox.models.cnn fedprox.models.cnn. fedprox.models.cnn.cnn
fedprox.data.sources.digits.digits fedprox.data.partitioners.iid.iid flwr.serverapp.strategy.FedAvg
flwr.serverapp.strategy.FedAdam flwr.serverapp.strategy.Krum flwr.serverapp.strategy.FedTrimmedAvg
fedprox.strategies.corrected.Scaffold fedprox.strategies.corrected.FedDyn fedprox.strategies.fednova.FedNova
"""
GROUPS = ("dataset", "partition", "feature_skew", "model", "strategy", "protocol", "engine", "augmentation")
SPECIAL = ("_target_", "_target_", "_target_", "_args_", "_partial_", "_convert_", "_recursive_", "x", "a.b")
ODD = r"""
nan inf -inf .nan '' null ~ true [] [1,2] {} é 🙂 1,2 a/b \ \\ " ' "a'b" ${mu} ${nope} ${ $ a=b = 0x10 a:b * &a @
${oc.env:HOME} ${oc.env:NOT_SET} choice(1,2) range(3) glob(*) 1e400 ??? ${seed} ${model} [ { } int(1.5)
"""
ODD_WITH_SPACES = ("", "' '", "{a: 1}", "[[1], {b: 2}]", "a b", "{_target_: os.getcwd}", "!!python/object:os.x", "\t")
SAFE_NUMBERS = st.one_of(  # too large or too small to be much work
    st.integers(min_value=2**32), st.integers(max_value=0), st.floats(max_value=0.9), st.floats(min_value=2**33)
).map(str)
KEYS = st.sampled_from(sorted(PLAUSIBLE))
VALUES = st.one_of(
    st.sampled_from((*ODD_WITH_SPACES, *ODD.split())),
    SAFE_NUMBERS,
    st.text(max_size=6).map(lambda text: text.replace("\0", "")),
)


@st.composite
def overrides(draw) -> list[str]:
    """Return one to four overrides, most of them with plausible values."""
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["plausible"] * 8 + ["odd"] * 2 + ["without"] + ["special"]))
        key, prefix = draw(KEYS), draw(st.sampled_from(["", "", "", "", "", "+", "++", "~"]))
        if key in ("repeat_num", "engine.num_threads") and not prefix:
            prefix = "++"
        if kind == "plausible":
            drawn.append(f"{prefix}{key}={draw(st.sampled_from(PLAUSIBLE[key]))}")
        elif kind == "odd":
            drawn.append(f"{prefix}{key}={draw(VALUES)}")
        elif kind == "without":
            drawn.append(f"~{key}")
        else:
            value = draw(st.one_of(st.sampled_from(TARGETS.split()), VALUES))
            drawn.append(f"++{draw(st.sampled_from(GROUPS))}.{draw(st.sampled_from(SPECIAL))}={value}")
    return drawn


def with_base(given: list[str]) -> list[str]:
    keys = {each.lstrip("+~").partition("=")[0] for each in given}
    return [f"{key}={value}" for key, value in BASE.items() if key not in keys] + given


def test_any_settings_give_a_run_or_one_line(fedprox, fuzzed, tmp_path):
    ended_in = {0: 0, 1: 0, 2: 0}  # 1: it diverged

    def check(given: list[str]) -> None:
        ended = fedprox(*with_base(given))
        errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert ended.status in ended_in, ended.err
        assert len(errors) == (1 if ended.status else 0), ended.err
        if ended.status:
            assert ended.err.splitlines() == errors
        assert bool(list(tmp_path.rglob("run.json"))) == (ended.status != 2)
        for folder in ("run", "sweep"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        ended_in[ended.status] += 1

    check([])
    fuzzed(check, overrides(), examples=30)
    assert ended_in[0]  # else every case was refused
    assert ended_in[2]
