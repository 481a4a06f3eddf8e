"""Fixtures for several tests."""

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from absl import logging as absl_logging  # dp-accounting's
from hypothesis import settings

from tests.quick_composition import quick_composition

# Before torch is loaded: its idle threads would spin, and keep the processors from the other worker's tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Hundreds of processes import this checkout: they compile it once, not each for itself.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
settings.register_profile("any machine", deadline=None)  # 200 ms are not enough on a busy one
settings.load_profile("any machine")
signal.signal(signal.SIGINT, signal.default_int_handler)  # `pytest &` ignores it, and so would all that tests start

# Hydra closes all handlers, and absl's handler then closes the standard error of the test that first imported it.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

LONGEST_FIRST = (  # of two workers that take file after file, none is left with a long one at the end
    "tests/deployment/test_federation.py",  # its nodes must start in time, so it is not beside a Ray
    "tests/test_documented_commands.py",
    "tests/experiment/test_faulty_runs.py",
    "tests/engines/test_ray.py",
    "tests/equivalence/test_engines.py",
    "tests/test_main.py",
    "tests/engines/test_scripts.py",
    "tests/benchmarks/test_main.py",
    "tests/cli/test_joblib.py",
    "tests/deployment/test_apps.py",
    "tests/cli/test_resumed_runs.py",
    "tests/experiment/test_script_runs.py",
    "tests/test_examples.py",
    "tests/test_packaging.py",  # 15 s; the others take less
)
ROOT = Path(__file__).parents[1]
DATA_DIR = Path(os.environ.get("FEDPROX_DATA_DIR", "data")).absolute()  # before a test changes the working directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; with `--no-loadscope-reorder` pytest-xdist keeps that order."""
    rank = {ROOT / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def _composition_is_quick() -> Iterator[None]:
    with quick_composition():
        yield


@pytest.fixture(autouse=True, scope="module")
def _process_of_wandb_ends_with_the_module() -> Iterator[None]:
    """End the process that wandb keeps for the next run: waiting, it takes a thirtieth of a processor."""
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


@pytest.fixture
def data_dir() -> Path:
    """Return the folder that holds MNIST/raw; without it the test is skipped, under CI it fails."""
    raw = DATA_DIR / "MNIST" / "raw"
    if (raw / "train-images-idx3-ubyte").is_file():
        return DATA_DIR
    missing = f"MNIST is not in {raw}; set FEDPROX_DATA_DIR to the folder that holds MNIST/raw"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a command.

    Attributes:
        status: Its exit status.
        out: Its standard output.
        err: Its standard error.
    """

    status: int
    out: str
    err: str


@pytest.fixture
def in_this_process(monkeypatch, capfd, request, tmp_path_factory) -> Iterator[Callable[..., Ended]]:
    """Return a function that calls a program's main function in this process, as if in a new one.

    Modules that the test has written are unloaded at the end: another test may use their names.
    A run's curves.png is empty unless the test is marked draws_curves: drawing takes longer than a small run.
    """
    from hydra._internal.hydra import Hydra
    from matplotlib.figure import Figure

    # Hydra composes everything once more, only to read hydra.mode; without that a refused command takes half the time.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    if not request.node.get_closest_marker("draws_curves"):
        monkeypatch.setattr("fedprox.report.curves.draw", lambda *_: Figure(figsize=(1, 1)))
    monkeypatch.setattr(sys, "argv", ["fedprox"])
    monkeypatch.setenv("FEDPROX_DATA_DIR", str(DATA_DIR))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for Ray's workers, which would import the installed package
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # main sets it; this restores it

    def call(main: Callable[[list[str]], int], arguments: list[str]) -> Ended:
        capfd.readouterr()
        with _restored_hydra_and_logging():
            try:
                status = main(arguments)
            except SystemExit as end:
                status = int(end.code or 0)
        _look_for_no_garbage_in_libraries()
        return Ended(status, *capfd.readouterr())

    yield call
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(f"{tmp_path_factory.getbasetemp()}{os.sep}"):
            del sys.modules[name]


@cache
def _look_for_no_garbage_in_libraries() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def fedprox(tmp_path, monkeypatch, in_this_process) -> Callable[..., Ended]:
    """Return a function that calls `fedprox.main.main` in this process, from tmp_path as working directory.

    A run's directory is tmp_path / "run", a sweep's tmp_path / "sweep", unless the arguments say otherwise.
    """
    from fedprox.main import main

    monkeypatch.chdir(tmp_path)
    return lambda *arguments: in_this_process(main, _with_directories(arguments))


def _with_directories(arguments: tuple[str, ...]) -> list[str]:
    given = {argument.partition("=")[0] for argument in arguments}
    defaults = {"hydra.run.dir": "run", "hydra.sweep.dir": "sweep"}
    return [*arguments, *(f"{key}={value}" for key, value in defaults.items() if key not in given)]


@contextmanager
def _restored_hydra_and_logging() -> Iterator[None]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()  # main.log
        root.handlers[:] = handlers
        root.setLevel(level)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


@pytest.fixture
def program(tmp_path) -> Callable[..., Ended]:
    """Return a function that runs `python -m fedprox.main` as a process of its own, in tmp_path."""

    def call(*arguments: str) -> Ended:
        command = [sys.executable, "-m", "fedprox.main", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600)
        return Ended(done.returncode, done.stdout, done.stderr)

    return call


def environment(**more: str) -> dict[str, str]:
    """Return the variables for a process that runs this checkout's code from any working directory."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "FEDPROX_DATA_DIR": str(DATA_DIR), **more}


@pytest.fixture(name="environment")
def environment_fixture() -> Callable[..., dict[str, str]]:
    """Return `environment`."""
    return environment
