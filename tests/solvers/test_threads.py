"""Thread pools."""

import re
import subprocess
import sys
import threading
import time

import pytest
import torch

from fedprox.solvers.threads import Pool, one_thread


@pytest.mark.parametrize("num_threads", [1, 2, 7])
@pytest.mark.parametrize("order", [[], [3], [2, 0, 1, 5, 4]])
def test_every_number_has_the_functions_result(num_threads, order):
    pool = Pool(num_threads)
    assert pool.map(lambda number: number**2, order) == {number: number**2 for number in order}
    assert pool.map(str, order) == {number: str(number) for number in order}  # and again


@pytest.mark.parametrize("num_threads", [1, 3])
def test_numbers_are_processed_in_their_order(num_threads):
    begun, lock = [], threading.Lock()

    def note(number: int) -> None:
        with lock:
            begun.append(number)
        time.sleep(0.01)

    Pool(num_threads).map(note, list(range(20)))
    # At most all other threads are delayed between taking a number and noting it.
    for at, number in enumerate(begun):
        assert len({*range(number)} - {*begun[:at]}) < num_threads
    assert sorted(begun) == list(range(20))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_after_an_error_no_thread_continues(num_threads):
    begun = []

    def fail(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        raise ArithmeticError(number)

    with pytest.raises(ArithmeticError):
        Pool(num_threads).map(fail, list(range(50)))
    num_begun = len(begun)
    time.sleep(0.1)
    assert len(begun) == num_begun <= num_threads


def test_torch_uses_one_thread_in_each_and_in_the_context():
    assert set(Pool(2).map(lambda _: torch.get_num_threads(), list(range(4))).values()) == {1}
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_all_threads_work_at_the_same_time():
    all_here = threading.Barrier(3)
    assert sorted(Pool(3).map(lambda _: all_here.wait(timeout=120), [0, 1, 2]).values()) == [0, 1, 2]


ENDS_AT_ONCE = """
import torch
from fedprox.solvers.threads import Pool
def job(_):
    w = torch.ones(3, requires_grad=True)
    return torch.autograd.grad((w * w).sum(), w)[0].sum().item()
assert set(Pool(4).map(job, range(40)).values()) == {6.0}
"""


def test_a_process_may_end_as_soon_as_its_threads_have_used_autograd(environment):
    # Without waiting for the threads, about half of the processes aborted.
    command = [sys.executable, "-c", ENDS_AT_ONCE]
    started = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, errors


def test_libraries_of_torch_use_one_thread_in_a_pool_whatever_this_thread_has_set_since_it_began():
    # Otherwise a matrix product may be divided among threads or not, and rounded differently, as the machine is busy.
    pool, before = Pool(2), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pool.map(lambda number: number, range(2))
        with one_thread():
            pass  # which sets the number of all threads again
        info = pool.map(lambda _: torch.__config__.parallel_info(), range(2))
    finally:
        torch.set_num_threads(before)
    numbers = {number for text in info.values() for number in re.findall(r"get_max_threads\(\) : (\d+)", text)}
    assert numbers == {"1"}
