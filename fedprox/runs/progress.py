"""Progress of a run: a bar on a terminal, plain log lines otherwise."""

import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.results import Round
from fedprox.process import Reminder

LINE_EVERY_S = 5.0
BAR_AFTER_S = 2.0  # of a run started from Python
_log = logging.getLogger("fedprox")


def with_progress(rounds: Iterator[Round], num_rounds: int, name: str, first_round: int = 0) -> Iterator[Round]:
    """Yield the rounds and show their progress: round, test accuracy, rate and time left.

    Args:
        rounds: The rounds from `first_round` on.
        num_rounds: Number of the last round.
        name: Such as "FedAvg".
        first_round: > 0 in a resumed run; earlier rounds count as done, but not in the rate.
    """
    done_before = _done_before(num_rounds, name, first_round)
    if (
        sys.stderr and sys.stderr.isatty() and multiprocessing.parent_process() is None
    ):  # joblib's jobs would share one line
        yield from _with_bar(rounds, num_rounds, name, done_before)
    else:
        yield from _with_lines(rounds, num_rounds, name, done_before)


def with_quiet_progress(rounds: Iterator[Round], num_rounds: int, name: str, first_round: int = 0) -> Iterator[Round]:
    """Yield the rounds and log their progress; if they take long and are watched, show a bar that vanishes at the end.

    A terminal and a notebook show it; see `with_progress`, which this replaces for runs started from Python.
    """
    done_before = _done_before(num_rounds, name, first_round)
    logged = _with_lines(rounds, num_rounds, name, done_before)
    if (sys.stderr and sys.stderr.isatty()) or _in_notebook():
        yield from _with_bar(logged, num_rounds, name, done_before, delay=BAR_AFTER_S, leave=False)
    else:
        yield from logged


def _done_before(num_rounds: int, name: str, first_round: int) -> int:
    """Return the number of rounds done by earlier processes, which is logged if there are any."""
    done_before = max(first_round - 1, 0)
    if first_round:
        _log.info("%s resumes after round %d of %d", name, done_before, num_rounds)
    return done_before


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def _with_bar(
    rounds: Iterator[Round], num_rounds: int, name: str, done_before: int, *, delay: float = 0.0, leave: bool = True
) -> Iterator[Round]:
    with (
        tqdm(total=num_rounds, initial=done_before, unit="round", desc=name, delay=delay, leave=leave) as bar,
        Reminder(lambda _: bar.refresh()),  # keeps its clock running during a long round
    ):
        for outcome in rounds:
            yield outcome
            if outcome.test is not None:
                bar.set_postfix_str(measured(outcome.test), refresh=False)
            bar.update(outcome.round_num - bar.n)


def _with_lines(rounds: Iterator[Round], num_rounds: int, name: str, done_before: int) -> Iterator[Round]:
    start = last_line = time.monotonic()
    round_num = done_before

    def remind(time_s: float) -> None:
        at = min(round_num + 1, num_rounds)
        _log.info("%s, computing round %d/%d, %.0f s since the last line", name, at, num_rounds, time_s)

    with Reminder(remind) as reminder:
        for outcome in rounds:
            yield outcome
            round_num = outcome.round_num
            if outcome.test is None:
                continue
            if round_num in (0, num_rounds) or time.monotonic() - last_line >= LINE_EVERY_S:
                last_line = time.monotonic()
                reminder.restart()
                num_done, num_left = round_num - done_before, num_rounds - round_num
                _log.info(
                    "%s, round %d/%d: %s, %.1f s%s",
                    name,
                    round_num,
                    num_rounds,
                    measured(outcome.test) or "not measured",
                    outcome.time_s,
                    pace(num_done, num_left, last_line - start),
                )


def measured(test: Evaluation) -> str:
    """Return what is known of a model, such as "accuracy 0.8123, loss 0.6543"; "" if nothing is."""
    values = {"accuracy": test.accuracy, "loss": test.loss}
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)


def pace(num_done: int, num_left: int, time_s: float) -> str:
    """Return the rate and the time left, such as ", 2.5 rounds/s, 01:20 left"; "" before the first round is done."""
    if num_done <= 0 or time_s <= 0:
        return ""
    each_s = time_s / num_done
    rate = f"{1 / each_s:.1f} rounds/s" if each_s < 1 else f"{each_s:.1f} s/round"
    left = f", {tqdm.format_interval(num_left * each_s)} left" if num_left else ""
    return f", {rate}{left}"
