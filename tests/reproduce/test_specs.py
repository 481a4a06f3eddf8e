"""Contents of the figures."""

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import pytest

from fedprox.experiment.build import check_settings
from fedprox.reproduce.runs import folder_of, settings_of
from fedprox.reproduce.specs import DATASETS, FIGURES, LOWER_RUNS, MU_0, PAPER_DATASETS, SYNTHETIC, jobs_of


def test_there_are_the_papers_twelve_figures_and_the_headline():
    assert list(FIGURES) == [f"fig{number}" for number in range(1, 13)] + ["headline"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fig1", 5 * 3 * 3),  # data sets, straggler levels, lines
        ("fig2", 4 * 2),
        ("fig4", 4 * (4 + 4)),  # the lower row has FedDANE with more devices, twice for each mu
        ("fig5", 1 * 3 * 3),
        ("fig11", 4 * 3),
        ("fig12", 4 * 4),
        ("headline", 5 * 2),
    ],
)
def test_a_figure_has_a_run_per_data_set_level_line_and_repetition_and_may_have_one_per_seed(name, count):
    figure = FIGURES[name]
    assert len(jobs_of(figure, figure.datasets, 1)) == count
    runs = 5 if figure.over_data else 3  # repetitions 0, 1, 2 of seed 0; seeds 1, 2
    fewer = (3 - LOWER_RUNS) * len(figure.datasets) * len(set(figure.lower_lines) - set(figure.lines))
    assert len({job.name for job in jobs_of(figure, figure.datasets, 3)}) == runs * count - fewer


def test_lines_with_more_devices_have_at_most_lower_runs_repetitions():
    jobs = [job for job in jobs_of(FIGURES["fig4"], ["synthetic_iid"], 5) if "FedDANE" in job.label]
    assert Counter(job.label for job in jobs) == {
        "FedDANE (mu = 0)": 5,
        "FedDANE (mu = 1)": 5,
        **{f"FedDANE (mu = {mu}, {devices} devices)": LOWER_RUNS for mu in (0, 1) for devices in (20, 30)},
    }


def test_only_figures_of_synthetic_data_draw_new_data_sets():
    over_data = {name for name, figure in FIGURES.items() if figure.over_data}
    assert over_data == {"fig2", "fig6"}
    assert all(set(FIGURES[name].datasets) <= set(SYNTHETIC) for name in over_data)


@functools.cache
def settings_of_figure(name, num_rounds=None):
    jobs = jobs_of(FIGURES[name], list(DATASETS), 2, num_rounds)
    configs = settings_of({folder_of(job, Path()): job for job in jobs}, {})
    return [(job, configs[folder_of(job, Path())]) for job in jobs]


@pytest.mark.parametrize("name", FIGURES)
def test_every_run_has_settings_that_pass_every_check(name):
    for job, config in settings_of_figure(name):
        check_settings(config)
        assert config.protocol.name == "PaperProtocol", job
        assert (config.evaluation.name, config.evaluation.every) == ("clients", 1)
        assert config.stragglers_fraction == job.stragglers_fraction
        assert config.repeat_num == job.repetition
        assert config.seed == job.seed
        assert job.seed == 0 or job.repetition == 0
        assert config.num_epochs == (1 if name in ("fig9", "fig10") else 20)
        num_devices = next((num for num in (20, 30) if f", {num} devices" in job.label), 10)
        assert (config.clients_per_round, config.batch_size, config.momentum) == (num_devices, 10, 0)


@pytest.mark.parametrize("name", FIGURES)
def test_a_line_runs_the_algorithm_of_its_label(name):
    best = {"shakespeare": 0.001, "sent140": 0.01}  # elsewhere 1
    for job, config in settings_of_figure(name):
        strategy = config.strategy.name
        assert strategy == {"FedAvg": "FedAvgWithStragglerDrop", "FedDANE": "FedDane"}.get(
            job.label.split(" (")[0], "FedProx"
        )
        assert config.adaptive_mu.enabled == ("adaptive" in job.label)
        assert config.sampling == ("proportional" if "by size" in job.label else "uniform")
        if "adaptive" in job.label:
            expected = 1 if job.dataset == "synthetic_iid" else 0
        elif "best" in job.label:
            expected = best.get(job.dataset, 1)
        else:
            expected = 1 if "mu = 1" in job.label else 0
        assert config.mu == expected


@pytest.mark.parametrize(
    ("dataset", "num_rounds", "learning_rate"),
    [
        *((name, 200, 0.01) for name in SYNTHETIC),
        ("mnist", 100, 0.03),
        ("femnist", 200, 0.003),
        ("shakespeare", 40, 0.8),
        ("sent140", 800, 0.3),
    ],
)
def test_rounds_and_learning_rate_are_the_papers_unless_rounds_are_given(dataset, num_rounds, learning_rate):
    name = "fig1" if dataset in PAPER_DATASETS else "fig2"
    of_dataset = [config for job, config in settings_of_figure(name) if job.dataset == dataset]
    assert {(config.num_rounds, config.learning_rate) for config in of_dataset} == {(num_rounds, learning_rate)}
    assert {config.num_rounds for _, config in settings_of_figure("fig2", num_rounds=3)} == {3}


def test_figures_share_runs_because_a_name_has_the_settings_and_not_the_figure():
    names = {figure: {job.name for job in jobs_of(FIGURES[figure], list(DATASETS), 2)} for figure in FIGURES}
    assert names["fig1"] == names["fig7"]
    assert names["fig9"] == names["fig10"]
    assert names["fig2"] == names["fig6"]
    assert {name for name in names["fig2"] if "seed=" not in name} < names["fig12"]
    assert names["fig3"] < names["fig11"]
    assert names["fig8"] < names["fig1"]
    assert names["headline"] < names["fig1"]
    assert not names["fig1"] & names["fig9"]
    assert "shakespeare,mu=0.001,stragglers_fraction=0.9,repeat_num=1" in names["headline"]


def test_a_trial_with_few_rounds_has_separate_folders():
    figure = FIGURES["fig2"]
    whole, trial = ({job.name for job in jobs_of(figure, SYNTHETIC, 1, rounds)} for rounds in (None, 5))
    assert not whole & trial


@pytest.mark.parametrize(("seed", "repetition", "given"), [(0, 2, "+repeat_num=2"), (1, 0, "seed=1")])
def test_a_repetition_or_seed_has_the_same_settings_as_on_the_command_line(seed, repetition, given):
    jobs = jobs_of(FIGURES["fig2"], ["synthetic_iid"], num_seeds=3)
    (job,) = (job for job in jobs if (job.seed, job.repetition, job.label) == (seed, repetition, MU_0.label))
    by_hand = dataclasses.replace(job, seed=0, repetition=0, overrides=(*job.overrides, given))
    configs = settings_of({Path("a"): job, Path("b"): by_hand}, {})
    assert configs[Path("a")] == configs[Path("b")]
    assert configs[Path("a")].dataset.arguments["seed"] == seed
