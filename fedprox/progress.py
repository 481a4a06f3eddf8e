"""How far a run is: a bar on a terminal, plain lines otherwise."""

import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from fedprox.outcomes import Round

LINE_EVERY_S = 5.0
_log = logging.getLogger("fedprox")


def watched(rounds: Iterator[Round], num_rounds: int, name: str) -> Iterator[Round]:
    """Yield the rounds as they come and show the current test accuracy, under a name such as "FedAvg"."""
    if sys.stderr.isatty() and multiprocessing.parent_process() is None:  # joblib's workers would share the line
        yield from _with_bar(rounds, num_rounds, name)
    else:
        yield from _with_lines(rounds, num_rounds, name)


def _with_bar(rounds: Iterator[Round], num_rounds: int, name: str) -> Iterator[Round]:
    with tqdm(total=num_rounds, unit="round", desc=name) as bar:
        for outcome in rounds:
            yield outcome
            if outcome.test is not None:
                measured = f"accuracy {outcome.test.accuracy:.4f}, loss {outcome.test.loss:.4f}"
                bar.set_postfix_str(measured, refresh=False)
            bar.update(outcome.round_num - bar.n)


def _with_lines(rounds: Iterator[Round], num_rounds: int, name: str) -> Iterator[Round]:
    last_line = time.monotonic()
    for outcome in rounds:
        yield outcome
        if outcome.test is None:
            continue
        if outcome.round_num in (0, num_rounds) or time.monotonic() - last_line >= LINE_EVERY_S:
            last_line = time.monotonic()
            _log.info(
                "%s, round %d/%d: accuracy %.4f, loss %.4f, %.1f s",
                name,
                outcome.round_num,
                num_rounds,
                outcome.test.accuracy,
                outcome.test.loss,
                outcome.time_s,
            )
