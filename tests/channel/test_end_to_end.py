"""Whole runs with attackers: columns, the same attackers under every rule, and resuming."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

DIGITS = (
    *("dataset=digits", "engine=local", "num_clients=20", "partition=iid", "clients_per_round=8", "num_epochs=2"),
    *("num_rounds=4", "mu=0", "checkpoint.every=1"),
)


@pytest.fixture
def run(fedprox, tmp_path) -> Callable:
    """Return a function that runs a command and returns how it ended, and its directory."""

    def call(*arguments: str, into: str = "run", status: int = 0) -> tuple[str, Path]:
        ended = fedprox(*DIGITS, *arguments, f"hydra.run.dir={into}")
        assert ended.status == status, ended.err
        return ended.err, tmp_path / into

    return call


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as opened:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(opened)]


def test_every_rule_meets_the_same_attackers_and_columns_name_them(run):
    folders = [
        run("attack=sign_flip", f"strategy={name}", f"strategy.num_malicious={f}" if f else "mu=0", into=name)[1]
        for name, f in (("fedprox", 0), ("fed_median", 0), ("multi_krum", 2))
    ]
    attackers = [[row["is_malicious"] for row in rows(folder, "clients.csv")] for folder in folders]
    assert attackers[0] == attackers[1] == attackers[2]
    assert {"True", "False"} == set(attackers[0])
    counts = [int(row["num_malicious"]) for row in rows(folders[0])]
    assert counts == [0, *(attackers[0][at : at + 8].count("True") for at in range(0, 32, 8))]


def test_without_an_attack_there_are_no_columns_and_an_attack_by_nobody_changes_nothing(run):
    _, honest = run(into="honest")
    _, idle = run("attack=sign_flip", "attack.fraction=0", into="idle")
    assert "is_malicious" not in rows(honest, "clients.csv")[0]
    assert (honest / "model.safetensors").read_bytes() == (idle / "model.safetensors").read_bytes()
    assert [{**row, "num_malicious": "0"} for row in rows(honest)] == rows(idle)


def test_a_resumed_run_with_noise_of_attackers_and_buckets_is_the_same(run, fedprox):
    settings = ("attack=gaussian", "strategy=fed_median", "strategy.before=bucketing")
    _, whole = run(*settings, into="whole")
    _, cut = run(*settings, "num_rounds=2", into="cut")
    ended = fedprox(f"resume={cut}", "num_rounds=4")
    assert ended.status == 0, ended.err
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert rows(whole) == rows(cut)


def test_a_backdoors_success_is_measured(run):
    _, folder = run("attack=backdoor", "attack.fraction=0.5", "attack.target=3", "num_rounds=8")
    success = [float(row["attack_success"]) for row in rows(folder)]
    assert success[-1] > 0.5 > success[0]


def test_flipped_labels_change_the_runs_data(run):
    _, honest = run(into="honest")
    _, flipped = run("attack=label_flip", into="flipped")
    assert (honest / "model.safetensors").read_bytes() != (flipped / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("attack=sign_flip", "attack.fraction=1.5"), "attack.fraction must be between 0 and 1"),
        (("attack=backdoor", "attack.target=10"), "attack.target must be a class between 0 and 9"),
        (("strategy=krum", "strategy.num_malicious=8"), "at least 19 replies a round"),
        (("strategy=multi_krum", "strategy.num_malicious=two"), "strategy.num_malicious must be of type int"),
        (("strategy=krum", "strategy.num_malicious=1", "sampling=proportional"), "use sampling=uniform"),
        (("update=quantise", "update.bits=1"), "update.quantise.bits must be an integer >= 2 and at most 16, got 1"),
        (("update=top_k", "update.fraction=0.001"), "of 650 parameters is less than one"),
        (("update=top_k", "update.fraction=1.5"), "update.top_k.fraction must be finite, above 0 and at most 1"),
        (("update=partial", "update.names=[fc]"), "names no trained parameter; the model has 1.weight, 1.bias"),
        (("update=float32", "+update.error_feedback=true"), "update.error_feedback=true changes nothing"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(run, arguments, line):
    err, folder = run(*arguments, status=2)
    assert line in err
    assert len(err.splitlines()) == 1
    assert not folder.exists()


def test_compressed_runs_count_bytes_and_resume_with_what_was_lost(run, fedprox):
    settings = ("update=[top_k,quantise]", "update.top_k.fraction=0.1", "update.bits=4", "update.error_feedback=true")
    _, whole = run(*settings, into="whole")
    _, cut = run(*settings, "num_rounds=2", into="cut")
    ended = fedprox(f"resume={cut}", "num_rounds=4")
    assert ended.status == 0, ended.err
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert rows(whole) == rows(cut)
    each = 65 * 4 + 4 + 33  # positions, a scale, and 65 values of 4 bits
    assert [row["bytes_up"] for row in rows(whole)] == [str(8 * each * round_num) for round_num in range(5)]
    assert {row["bytes_up"] for row in rows(whole, "clients.csv")} == {str(each)}


def test_a_branch_with_other_compression_starts_without_what_was_lost(run):
    _, first = run("update=top_k", "update.error_feedback=true", "num_rounds=2", into="first")
    _, branch = run("update=quantise", f"branch_from={first}", "branch_round=2", into="branch")
    assert len(rows(branch)) == 5


def test_only_named_parameters_travel(run):
    _, folder = run("update=partial", "update.names=['*.bias']", "model.init=zeros")
    assert {row["bytes_up"] for row in rows(folder, "clients.csv")} == {"40"}
    model = load_file(folder / "model.safetensors")
    assert not model["1.weight"].any()
    assert model["1.bias"].any()
