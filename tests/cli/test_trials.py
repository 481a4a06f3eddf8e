"""The table of a search's trials."""

from fedprox.cli.trials import FAILED, FINISHED, PRUNED, Trial, ranked, trials_table, write_trials

TRIALS = [
    Trial(0, {"mu": "0.5"}, FINISHED, 0.25),
    Trial(1, {"mu": "0.125"}, FAILED, None),
    Trial(2, {"mu": "0.25"}, PRUNED, 0.0625),
    Trial(3, {"mu": "1e-05"}, FINISHED, 0.5),
    Trial(4, {"mu": "0.75"}, FINISHED, 0.25),
]


def test_the_best_trial_is_first_and_those_that_did_not_finish_are_last():
    assert [trial.number for trial in ranked(TRIALS, "maximize")] == [3, 0, 4, 2, 1]
    assert [trial.number for trial in ranked(TRIALS, "minimize")] == [0, 4, 3, 2, 1]


def test_the_file_has_all_digits_and_the_terminal_four(tmp_path):
    assert trials_table(tmp_path) == ""
    write_trials(tmp_path, [Trial(0, {"mu": "0.123456789", "model": "cnn"}, FINISHED, 2 / 3)], "maximize", "accuracy")
    file = (tmp_path / "trials.csv").read_text().splitlines()
    assert file == ["trial,status,accuracy,mu,model", "0,finished,0.6666666666666666,0.123456789,cnn"]
    assert trials_table(tmp_path).splitlines()[-1].split() == ["0", "finished", "0.6667", "0.1235", "cnn"]
