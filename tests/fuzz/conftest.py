"""Length of the search: a few examples, the same in every run of the suite, or FEDPROX_FUZZ_S seconds at random."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

LONG_S = float(os.environ.get("FEDPROX_FUZZ_S", "0"))
HANG_S = 60  # an example takes a second
Case = TypeVar("Case")


@pytest.fixture
def fuzzed() -> Callable[..., None]:
    """Return a function that calls another with drawn cases: `examples` of them, or for FEDPROX_FUZZ_S seconds."""

    def search(check: Callable[[Case], None], cases: SearchStrategy[Case], examples: int) -> None:
        count = 0

        def one(case: Case) -> None:
            nonlocal count
            count += 1
            with ended_after(HANG_S):
                check(case)

        options = settings(
            max_examples=20 if LONG_S else examples,
            derandomize=not LONG_S,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # cases are small already, and shrinking takes hundreds of runs
        )
        end = time.monotonic() + LONG_S
        while not count or time.monotonic() < end:
            drawn = options(given(cases)(one))
            (seed(SystemRandom().getrandbits(32))(drawn) if LONG_S else drawn)()
        if LONG_S:
            print(f"\n{count} examples in {LONG_S:g} s")

    return search


@contextmanager
def ended_after(limit_s: int) -> Iterator[None]:
    """Fail if the context hangs."""

    def hangs(*_: object) -> None:
        raise TimeoutError(f"no answer within {limit_s} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
