"""The command: updates of a run computed again, attacked and drawn, and runs for which that is impossible."""

import re

import pytest

from fedprox.leakage.__main__ import main

ONE_EXAMPLE = (
    *("dataset=digits", "engine=local", "num_clients=1442", "partition=iid", "hold_out=0", "batch_size=1"),
    *("num_epochs=1", "num_rounds=1", "clients_per_round=2"),
)
SMALL = ("dataset=digits", "engine=local", "num_clients=40", "clients_per_round=3", "num_epochs=2")


@pytest.fixture
def leak(in_this_process):
    return lambda *arguments: in_this_process(main, list(arguments))


def test_one_example_behind_logistic_regression_is_given_away_unless_noise_hides_it(fedprox, leak, tmp_path):
    assert fedprox(*ONE_EXAMPLE).status == 0
    ended = leak("run", "round=1", "--out", "leak.png")
    assert (ended.status, ended.err) == (0, "")
    best = {name.strip(): float(db) for name, db in re.findall(r"^(.{20}) best +([\d.]+) dB", ended.out, re.MULTILINE)}
    assert best["as sent"] > 100
    assert best["clipped, noise 1"] < 10
    assert best["masked"] < best["mean example"]
    assert best["8 bits"] > best["mean example"] + 10  # compression hides nothing
    assert (tmp_path / "leak.png").stat().st_size


def test_any_round_is_computed_again_and_the_update_must_be_the_recorded_one(fedprox, leak, tmp_path):
    adaptive = ("evaluation=clients", "adaptive_mu.enabled=true", "adaptive_mu.patience=1", "adaptive_mu.step=0.5")
    assert fedprox(*SMALL, *adaptive, "num_rounds=4", "checkpoint.every=2", "checkpoint.keep=null").status == 0
    for round_num in (3, 4):  # from the checkpoint before it; and from one round later
        ended = leak("run", f"round={round_num}", "--out", "a.png")
        assert (ended.status, ended.err) == (0, "")
    table = tmp_path / "run" / "clients.csv"
    lines = table.read_text().splitlines()
    changed = [re.sub(r"[\d.]+$", "0.5", line) if line.startswith("1,") else line for line in lines]
    table.write_text("\n".join([*changed, ""]))
    ended = leak("run", "round=1", "--out", "b.png")
    assert ended.status == 2
    assert re.fullmatch(
        r"error: the update of client \d+ in round 1 cannot be computed again: its drift is .*\n", ended.err
    )


def test_parameters_that_do_not_travel_give_nothing_away(fedprox, leak):
    # Without the bias of the first layer there is no closed form, and 33 examples are too many for gradient matching.
    partial = ("update=partial", "update.names=[1.weight]", "num_clients=40", "partition=iid", "num_rounds=1")
    assert fedprox(*SMALL, *partial).status == 0
    ended = leak("run", "round=1", "--out", "leak.png")
    assert ended.status == 2
    assert "too many for gradient matching" in ended.err


def test_what_cannot_be_computed_again_is_refused_in_one_line(fedprox, leak, tmp_path):
    assert fedprox(*SMALL, "num_rounds=3").status == 0
    assert fedprox("branch_from=run", "branch_round=3", "num_rounds=4", "hydra.run.dir=branch").status == 0
    clients = sorted(
        {int(row.split(",")[1]) for row in (tmp_path / "run/clients.csv").read_text().splitlines() if row[:2] == "1,"}
    )
    stranger = min(set(range(40)) - set(clients))
    for arguments, line in {
        ("branch", "round=2"): "round=2 of branch has no recorded updates: it is computed again from an earlier "
        "checkpoint, and this run, a branch, has none before it; name a later round",
        ("run", "round=4"): "round=4 of run has no recorded updates; name a round from 1 to 3 in which a client counts",
        ("run",): "round must be an integer >= 1, got None; add round=1",
        ("run", "round=0"): "round must be an integer >= 1, got 0; add round=1",
        ("run", "round=first"): "round must be an integer >= 0, got first",
        (
            "run",
            "round=1",
            f"client={stranger}",
        ): f"client={stranger} has no recorded update in round 1 of run; those of "
        f"clients {', '.join(map(str, clients))} count there",
        ("run", "round=1", "mu=7"): "resume=run would change the past: mu=7",
        ("run", "round=1", "--noise=-1"): "--noise must be finite and >= 0, got -1.0",
        ("nowhere", "round=1"): "nowhere is not a run directory: run.json is missing",
    }.items():
        ended = leak(*arguments, "--out", "leak.png")
        assert ended.status == 2, arguments
        assert ended.err.startswith(f"error: {line}"), ended.err
        assert len(ended.err.splitlines()) == 1
    assert "--out must end in .png or .pdf or .svg" in leak("run", "round=1", "--out", "leak.txt").err
    assert not (tmp_path / "leak.png").exists()
