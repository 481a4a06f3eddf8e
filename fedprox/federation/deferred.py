"""Models that are measured together, where rounds are short: it takes a fraction of the time of one after another."""

import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import ArrayRecord

from fedprox.errors import USERS
from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.results import Round

Evaluate = Callable[[Sequence[ArrayRecord]], list[Evaluation]]


def several_at_once(rounds: Iterator[Round], at_most: int = 16, within_s: float = 0.1) -> Iterator[Round]:
    """Yield rounds a little later, so that several models are measured at once where rounds are short.

    Args:
        rounds: From `run_rounds`; what it raises comes after the rounds that have ended.
        at_most: Rounds that wait for each other.
        within_s: Seconds after which they are not waited for.
    """
    ended: list[Round] = []
    start = time.perf_counter()
    try:
        for outcome in rounds:
            ended.append(outcome)
            if len(ended) == at_most or time.perf_counter() - start > within_s:
                yield from _taken(ended)
                start = time.perf_counter()
    except (*USERS, KeyboardInterrupt):
        yield from _taken(ended)
        raise
    yield from _taken(ended)


def _taken(ended: list[Round]) -> list[Round]:
    taken = ended.copy()
    ended.clear()
    return taken


class Measuring:
    """Models that wait to be measured, all together when the first of them is asked for."""

    def __init__(self, evaluate: Evaluate) -> None:
        """Begin without models."""
        self._evaluate = evaluate
        self._waiting: dict[int, ArrayRecord] = {}
        self._done: dict[int, Evaluation] = {}

    def later(self, arrays: ArrayRecord) -> Callable[[], Evaluation]:
        """Return the function that returns a model as measured."""
        number = len(self._waiting) + len(self._done)
        self._waiting[number] = arrays

        def tested() -> Evaluation:
            if number in self._waiting:
                self._done |= zip(self._waiting, self._evaluate([*self._waiting.values()]), strict=True)
                self._waiting.clear()
            return self._done[number]

        return tested
