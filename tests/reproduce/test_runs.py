"""Missing runs are done; finished ones are kept."""

import json

import pytest

from fedprox.errors import UserError
from fedprox.reproduce.runs import run_missing
from fedprox.reproduce.specs import FIGURES, Job, jobs_of
from fedprox.runs.writer import RunRecord

JOBS = jobs_of(FIGURES["fig8"], ["synthetic_1_1"], num_seeds=2, num_rounds=3)


def names(folders):
    return [folder.name for folder in folders]


def test_each_run_is_done_once_and_kept(tmp_path, fake_run):
    assert run_missing([*JOBS, *JOBS], tmp_path, run=fake_run) == 4
    assert names(fake_run.folders) == [job.name for job in JOBS]
    assert all(folder.parent == tmp_path / "runs" for folder in fake_run.folders)
    assert run_missing(JOBS, tmp_path, run=fake_run) == 0
    assert len(fake_run.folders) == 4


def test_more_repetitions_and_another_figure_do_only_the_new_runs(tmp_path, fake_run):
    run_missing(JOBS, tmp_path, run=fake_run)
    more = jobs_of(FIGURES["fig8"], ["synthetic_1_1"], num_seeds=3, num_rounds=3)
    assert run_missing(more, tmp_path, run=fake_run) == 2  # repetition 2 of both lines
    other = jobs_of(FIGURES["fig11"], ["synthetic_1_1"], num_seeds=3, num_rounds=3)
    assert run_missing(other, tmp_path, run=fake_run) == 3  # the adaptive line
    over_data = jobs_of(FIGURES["fig2"], ["synthetic_1_1"], num_seeds=3, num_rounds=3)
    assert run_missing(over_data, tmp_path, run=fake_run) == 4  # seeds 1 and 2 of both lines


def change(folder, **entries):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **entries}))


@pytest.mark.parametrize("damage", ["unfinished", "other settings", "no record", "damaged record"])
def test_a_run_that_is_not_finished_with_these_settings_is_done_again(tmp_path, fake_run, damage):
    run_missing(JOBS, tmp_path, run=fake_run)
    victim = fake_run.folders[1]
    if damage == "unfinished":
        change(victim, status="interrupted")
    elif damage == "other settings":
        settings = json.loads((victim / "run.json").read_text())["settings"]
        change(victim, settings={**settings, "learning_rate": 0.02})
    elif damage == "no record":
        (victim / "run.json").unlink()
    else:
        (victim / "run.json").write_text('{"status": "finish')
    assert run_missing(JOBS, tmp_path, run=fake_run) == 1
    assert fake_run.folders[4:] == [victim]
    assert run_missing(JOBS, tmp_path, run=fake_run) == 0


def test_the_engine_and_the_location_of_the_data_do_not_matter(tmp_path, fake_run, monkeypatch):
    jobs = jobs_of(FIGURES["headline"], ["mnist"], num_seeds=1, num_rounds=3)
    run_missing(jobs, tmp_path, {"mnist": ["engine=local"]}, run=fake_run)
    monkeypatch.setenv("FEDPROX_DATA_DIR", "/elsewhere")
    place = {"mnist": ["engine=ray", "client_resources.num_cpus=1"]}
    assert run_missing(jobs, tmp_path, place, run=fake_run) == 0


def test_overrides_of_a_data_set_reach_only_its_runs(tmp_path, fake_run):
    jobs = [*JOBS, *jobs_of(FIGURES["headline"], ["shakespeare"], num_seeds=1, num_rounds=3)]
    run_missing(jobs, tmp_path, {"shakespeare": ["dataset.path='/my files/plays, all'"]}, run=fake_run)
    paths = {
        json.loads((folder / "run.json").read_text())["settings"]["dataset"].get("path") for folder in fake_run.folders
    }
    assert paths == {None, "/my files/plays, all"}


def test_an_invalid_setting_of_the_last_run_is_reported_before_the_first_one_runs(tmp_path, fake_run):
    wrong = Job("synthetic_iid", 0.0, "x", 0, ("experiment=paper_synthetic_iid", "learning_rate=-1"))
    with pytest.raises(UserError, match="learning_rate must be finite and > 0"):
        run_missing([*JOBS, wrong], tmp_path, run=fake_run)
    assert fake_run.folders == []


def test_progress_counts_the_runs_and_estimates_the_time_left(tmp_path, fake_run, capsys):
    run_missing(JOBS[:1], tmp_path, run=fake_run)
    capsys.readouterr()
    run_missing(JOBS, tmp_path, run=fake_run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["4 runs, 1 of them already done", f"run 1 of 3: {JOBS[1].name}"]
    assert lines[2] == f"run 2 of 3, about 0 s left: {JOBS[2].name}"


def test_an_interrupted_run_is_resumed(tmp_path, monkeypatch):
    job = jobs_of(FIGURES["fig2"], ["synthetic_iid"], num_seeds=1, num_rounds=13)[0]
    place = {"synthetic_iid": ["engine=local", "checkpoint.every=4"]}
    add, rounds = RunRecord.add, []

    def interrupting(self, outcome):
        if outcome.round_num == 10 and 10 not in rounds:
            rounds.append(10)
            raise KeyboardInterrupt
        rounds.append(outcome.round_num)
        return add(self, outcome)

    monkeypatch.setattr(RunRecord, "add", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_missing([job], tmp_path, place)
    assert run_missing([job], tmp_path, place) == 1
    assert rounds == [*range(10), 10, *range(10, 14)]  # an interrupted run has a checkpoint of its last round
    assert run_missing([job], tmp_path, place) == 0
