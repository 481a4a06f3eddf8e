"""The job: a configuration and the user's modules as a folder that Flower packs."""

import importlib
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedprox.config.compose import compose
from fedprox.deployment import job
from fedprox.deployment.flower import environment, program
from fedprox.deployment.job import Job
from fedprox.errors import UserError

DIGITS = ["experiment=digits", "engine=deployment", "num_clients=2", "clients_per_round=2"]


def a_job(*overrides: str, run_dir: str = "/runs/f", resume: bool = False, **origin) -> Job:
    return Job(compose([*DIGITS, *overrides]), run_dir, resume, origin)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Return a function that writes and imports a module of the user's."""
    monkeypatch.syspath_prepend(tmp_path)
    imported = []

    def own(name: str, text: str = "") -> None:
        file = tmp_path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in [each for each in file.parents if each.is_relative_to(tmp_path) and each != tmp_path]:
            (folder / "__init__.py").touch()
        file.write_text(text)
        importlib.invalidate_caches()
        importlib.import_module(name)
        imported.extend([name, name.partition(".")[0]])

    yield own
    for name in imported:
        sys.modules.pop(name, None)


def test_a_job_is_read_as_it_was_written(tmp_path, monkeypatch):
    written = a_job("mu=1e-05", "learning_rate=0.1", "seed=3")
    job.write(written, tmp_path / "job", tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "job")
    assert job.read() == job.absolute(written.config, tmp_path)
    assert job.read().mu == 1e-05


def test_a_process_without_a_job_says_so(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"no config.yaml; submit it by fedprox"):
        job.read()


def test_the_run_config_has_the_run_directory_whether_to_resume_and_the_origin(tmp_path):
    origin = {"config_name": "config", "overrides": ["a='b \"c\"'", "mu=\\1"]}
    job.write(a_job(run_dir='/runs/"f"', resume=True, **origin), tmp_path / "job", tmp_path)
    config = tomllib.loads((tmp_path / "job" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert config["run-dir"] == '/runs/"f"'
    assert config["resume"] is True
    assert json.loads(config["origin"]) == origin


def test_paths_hold_in_every_working_directory(tmp_path):
    overrides = ["data_dir=here", "model.init=weights/w.safetensors"]
    made = job.absolute(a_job(*overrides).config, tmp_path)
    assert made.data_dir == str(tmp_path / "here")
    assert made.model.init == str(tmp_path / "weights/w.safetensors")
    kept = job.absolute(a_job("data_dir=/there", "model.init=zeros").config, tmp_path)
    assert (kept.data_dir, kept.model.init) == ("/there", "zeros")


def test_modules_of_the_working_directory_are_part_of_the_job_by_their_names(tmp_path, own_module):
    own_module("own_model", "width = 3\n")
    own_module("own_package.part", "height = 4\n")
    job.write(a_job(), tmp_path / "job", tmp_path)
    assert (tmp_path / "job" / "own_model.py").read_text() == "width = 3\n"
    assert (tmp_path / "job" / "own_package" / "part.py").read_text() == "height = 4\n"
    assert (tmp_path / "job" / "own_package" / "__init__.py").exists()


def test_neither_installed_modules_nor_this_package_are_part_of_a_job(tmp_path):
    everywhere = Path("/")
    names = [name for name, _ in job.users_modules(everywhere)]
    assert not [name for name in names if name.startswith(("fedprox/", "conf/", "torch/", "numpy/", "json/"))]


def test_flower_packs_what_a_job_lists_and_nothing_else(tmp_path, own_module):
    own_module("own_model", "width = 3\n")
    job.write(a_job(), tmp_path / "job", tmp_path)
    (tmp_path / "job" / "stray.yaml").touch()
    command = [program("flwr"), "build", "--app", str(tmp_path / "job")]
    subprocess.run(command, cwd=tmp_path, env=environment({}), check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.fab")
    names = zipfile.ZipFile(packed).namelist()
    assert sorted(names) == [".info/CONTENT", "config.yaml", "own_model.py", "pyproject.toml"]


@pytest.mark.parametrize("name", ["test_own", "own_test", "build.own"])
def test_a_module_that_flower_would_leave_out_is_refused_by_name(tmp_path, own_module, name):
    own_module(name)
    with pytest.raises(UserError, match=rf"Flower leaves {name.partition('.')[0]}\S*\.py out .* rename"):
        job.write(a_job(), tmp_path / "job", tmp_path)


def test_an_earlier_job_is_replaced_whole(tmp_path, own_module):
    own_module("own_model")
    job.write(a_job(), tmp_path / "job", tmp_path)
    sys.modules.pop("own_model")
    job.write(a_job("seed=1"), tmp_path / "job", tmp_path)
    assert sorted(file.name for file in (tmp_path / "job").iterdir()) == ["config.yaml", "pyproject.toml"]


def test_a_folder_that_is_not_a_job_is_kept(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a job of an earlier run; move it away"):
        job.write(a_job(), tmp_path / "job", tmp_path)
    assert (tmp_path / "job" / "thesis.tex").exists()


def test_a_script_travels_with_what_it_imports_from_beside_it_and_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    for name, text in {"train.py": "import helper, torch", "helper.py": "", "other.py": ""}.items():
        (tmp_path / "own" / name).write_text(text)
    script = ["client=script", "client.script=own/train.py", "client.args=--lr 1", "num_clients=2"]
    config = compose([*script, "engine=deployment"])
    job.write(Job(config, "", False, {}), tmp_path / "job", tmp_path)
    assert {file.name for file in (tmp_path / "job" / "script").iterdir()} == {"train.py", "helper.py"}
    (tmp_path / "job").rename(tmp_path / "at a node")
    monkeypatch.syspath_prepend(tmp_path / "at a node")
    client = job.read().client
    assert (client.script, client.args) == (str(tmp_path / "at a node" / "script" / "train.py"), "--lr 1")
