"""A machine without Ray: engine=local runs, engine=ray says what is missing."""

import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from fedprox import engines
from fedprox.runs import environment
from fedprox.runs.reader import read_record

DIGITS = ("dataset=digits", "num_rounds=1", "num_clients=10", "partition=iid")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    def hidden(name: str) -> str:
        if name == "ray":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setitem(sys.modules, "ray", None)  # an import of it fails as if it were not installed
    for name in ("ray", "ray_cluster", "actor_pool", "tokens"):
        monkeypatch.delitem(sys.modules, f"fedprox.engines.{name}", raising=False)
        monkeypatch.delattr(engines, name, raising=False)
    monkeypatch.setattr(environment, "version", hidden)
    environment._versions.cache_clear()
    yield
    environment._versions.cache_clear()  # other tests are to see it again


def test_a_run_in_this_process_needs_no_ray_and_its_record_names_none(fedprox, tmp_path):
    ended = fedprox(*DIGITS, "engine=local")
    assert (ended.status, ended.err) == (0, "")
    record = read_record(tmp_path / "run" / "run.json")
    assert record["status"] == "finished"
    assert set(record["versions"]) == {"python", *environment.PACKAGES} - {"ray"}


def test_engine_ray_says_what_to_install_before_anything_is_loaded(fedprox):
    ended = fedprox(*DIGITS, "engine=ray", "data_dir=nowhere")
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    for words in ("ray is not installed", "pip install ray", "engine=local"):
        assert words in ended.err
