"""What is installed, and from where: the lock, the wheel, the Makefile, the licence."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedprox.cli.version import HOME

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12")
PLATFORMS = (  # sys_platform, platform_system, platform_machine
    ("linux", "Linux", "x86_64"),
    ("linux", "Linux", "aarch64"),
    ("darwin", "Darwin", "arm64"),
)


@pytest.fixture(scope="module")
def committed() -> list[Path]:
    """Return the files under version control; without a checkout the test is skipped."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("these files are not in a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# The lock and requirements.txt.


def machines() -> Iterator[dict[str, str]]:
    """Yield environments in which a marker is evaluated: every Python and platform the project is for."""
    for python in PYTHONS:
        for sys_platform, system, machine in PLATFORMS:
            yield {
                "python_version": python,
                "python_full_version": f"{python}.4",
                "implementation_version": f"{python}.4",
                "sys_platform": sys_platform,
                "platform_system": system,
                "platform_machine": machine,
                "platform_release": "",
                "platform_version": "",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "os_name": "posix",
                "extra": "",
            }


def requirements() -> list[tuple[Requirement, frozenset[str]]]:
    """Return each requirement of requirements.txt with its hashes."""
    text = (ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    lines = [line.split("--hash=") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(Requirement(first.strip()), frozenset(part.strip() for part in rest)) for first, *rest in lines]


def locked() -> list[dict]:
    return tomllib.loads((ROOT / "poetry.lock").read_text())["package"]


def marker_of(package: dict) -> str:
    """Return a package's marker for all groups together."""
    markers = package.get("markers", "")
    if isinstance(markers, str):
        return markers
    each = [markers.get(group, "") for group in package["groups"]]
    return "" if "" in each else " or ".join(f"({marker})" for marker in each)


def extras() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def is_installed(package: dict, machine: dict[str, str]) -> bool:
    """Return whether a package of the lock belongs on a machine that gets all extras, as requirements.txt has them."""
    marker = marker_of(package)
    return not marker or any(Marker(marker).evaluate({**machine, "extra": extra}) for extra in extras())


def test_requirements_are_the_packages_versions_and_hashes_of_the_lock():
    packages = [package for package in locked() if {"main", "dev", "docs"} & set(package["groups"])]
    for machine in machines():
        expected = {
            canonicalize_name(package["name"]): (package["version"], {file["hash"] for file in package["files"]})
            for package in packages
            if is_installed(package, machine)
        }
        written = {
            canonicalize_name(requirement.name): (str(requirement.specifier).removeprefix("=="), set(hashes))
            for requirement, hashes in requirements()
            if requirement.marker is None or requirement.marker.evaluate(machine)
        }
        assert {name for name in expected.keys() | written.keys() if expected.get(name) != written.get(name)} == set()
        assert len(written) > 100


def test_what_the_extras_bring_is_there_for_the_tests_and_nothing_else_asks_for_it():
    written = {canonicalize_name(requirement.name) for requirement, _ in requirements()}
    packages = {canonicalize_name(package["name"]): package for package in locked()}
    assert {"tensorboard", "wandb", "mlflow", "lightning", "privacy", "data", "huggingface", "search"} == set(extras())
    for name in [canonicalize_name(Requirement(text).name) for texts in extras().values() for text in texts]:
        assert name in written
        assert packages[name]["optional"]


def test_every_requirement_is_pinned_and_has_a_hash():
    for requirement, hashes in requirements():
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier))
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes)


def test_the_lock_has_a_version_that_fits_for_every_dependency_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [Requirement(text) for text in project["project"]["dependencies"]]
    asked += [Requirement(text) for texts in extras().values() for text in texts]
    for group in project["tool"]["poetry"]["group"].values():
        for name, wanted in group["dependencies"].items():
            version = wanted["version"] if isinstance(wanted, dict) else wanted
            asked.append(Requirement(name + ("" if version == "*" else version)))
    versions = {canonicalize_name(package["name"]): Version(package["version"]) for package in locked()}
    assert len(asked) > 20
    for requirement in asked:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


REGISTRY = re.compile("index-" + r"url|https?://[\w.:/@-]*/simple\b|pypi\." + "org|python" + r"hosted\.org", re.I)


@pytest.mark.parametrize(
    "text",
    ["--index-" + "url x", "https://mirror.example/root/" + "simple/", "https://pypi." + "org/p/x", "PYPI." + "ORG"],
)
def test_the_pattern_finds_a_package_registrys_address(text):
    assert REGISTRY.search(text)


def test_no_committed_file_holds_a_package_registrys_address(committed):
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in committed
        if (match := REGISTRY.search(file.read_text(encoding="utf-8", errors="ignore")))
    ]
    assert found == []
    assert ROOT / "poetry.lock" in committed
    assert ROOT / "requirements.txt" in committed


# The wheel.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Return the wheel, built offline from a copy of what belongs to it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fedprox", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*pip, "--no-index", "--wheel-dir", str(out), str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (file,) = out.glob("fedprox-*.whl")
    return file


def test_the_wheel_has_every_module_and_every_configuration_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "fedprox").rglob("*.py")}
    settings = {f"fedprox/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert "fedprox/conf/config.yaml" in settings
    assert (modules | settings | {"fedprox/py.typed"}) - packed == set()
    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"fedprox"}


def test_the_wheel_declares_the_command_and_carries_the_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "[console_scripts]\nfedprox=fedprox.main:command" in archive.read(entry_points).decode()
    (licence,) = [name for name in archive.namelist() if name.endswith("LICENSE")]
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


USERS_MODULE = """
import fedprox
from fedprox.federation.planned_strategy import FedProx

print(fedprox.__file__)
class Mine(FedProx): ...
"""


def test_the_installed_command_runs_from_another_working_directory_with_the_users_modules_there(wheel, tmp_path):
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(USERS_MODULE)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", "--target", str(target), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    arguments = ["dataset=digits", "engine=local", "num_rounds=1", "strategy._target_=mine.Mine", "hydra.run.dir=run"]
    arguments += ["model=mlp"]  # which needs no loops compiled for this installation
    ended = subprocess.run(
        [target / "bin" / "fedprox", *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.splitlines()[0]).is_relative_to(target)  # not this checkout
    assert (elsewhere / "run" / "metrics.csv").read_text().count("\n") == 3  # header, initial model, round 1


# Licence, citation, addresses, CI and Makefile.


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert [reference["title"] for reference in citation["references"]] == [
        "Federated Optimization in Heterogeneous Networks"
    ]
    assert f"## {project['version']} " in (ROOT / "CHANGELOG.md").read_text()


def test_every_address_of_the_project_begins_with_the_repositorys():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert {urls["Homepage"], site["extra"]["repository"]} == {HOME}
    assert all(url.startswith(HOME) for url in urls.values())


def test_the_workflow_runs_the_ci_script_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert tuple(job["strategy"]["matrix"]["python"]) == PYTHONS
    assert job["steps"][-1] == {"run": ".ci/run"}


def test_the_hooks_before_a_commit_are_tools_of_the_locked_environment():
    (source,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = {shlex.split(hook["entry"])[0].removeprefix(".venv/bin/") for hook in source["hooks"]}
    assert tools == {"ruff", "mypy", "codespell", "nbstripout"}
    assert tools <= {package["name"] for package in locked()}


def test_ci_runs_the_documented_test_command():
    script = ROOT / ".ci" / "run"
    lines = [shlex.split(line, comments=True) for line in script.read_text().splitlines()]
    assert ["make", "test"] in lines
    assert ["set", "-eu"] in lines  # so that a failure of make is one of the script
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.fixture
def make(tmp_path):
    """Return a function that tells what make would do in a copy of the Makefile; installing uses no network."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VENV")}

    def call(*arguments: str) -> str:
        told = subprocess.run(
            ["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return told.stdout + told.stderr

    return call


# A stand-in for python: says how it is called, and makes what `python -m venv` and pip would.
FAKE_PYTHON = """#!/bin/sh
echo "python $*"
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def fake_python(tmp_path) -> Path:
    """Return a program in python's place that downloads nothing."""
    file = tmp_path / "python-stand-in"
    file.write_text(FAKE_PYTHON)
    file.chmod(0o755)
    return file


def test_install_sets_up_an_environment_once(make, fake_python, tmp_path):
    arguments = ("install", f"PYTHON={fake_python}", "VENV=venv")
    first = make(*arguments)
    assert "python -m venv venv" in first
    assert "--requirement requirements.txt" in first
    assert (tmp_path / "venv" / "installed.txt").read_bytes() == (tmp_path / "requirements.txt").read_bytes()
    second = make(*arguments)
    assert "--requirement" not in second
    assert "--editable ." in second


@pytest.mark.parametrize("state", ["half-made", "of other requirements"])
def test_install_does_not_reuse_an_environment_that_is(make, fake_python, tmp_path, state):
    arguments = ("install", f"PYTHON={fake_python}", "VENV=venv")
    make(*arguments)
    left_over = tmp_path / "venv" / "left-over"
    left_over.write_text("from an installation that was broken off")
    if state == "half-made":
        (tmp_path / "venv" / "installed.txt").unlink()
    else:
        with (tmp_path / "requirements.txt").open("a") as file:
            file.write("# changed\n")
    assert "--requirement requirements.txt" in make(*arguments)
    assert not left_over.exists()


def test_an_installation_that_fails_is_not_taken_for_a_whole_one(make, fake_python, tmp_path):
    fake_python.write_text(FAKE_PYTHON + 'case "$*" in *--requirement*) exit 1;; esac\n')
    for _ in range(2):  # the second time there is a folder already
        with pytest.raises(subprocess.CalledProcessError) as caught:
            make("install", f"PYTHON={fake_python}", "VENV=venv")
        assert "--requirement" in caught.value.stdout
        assert not (tmp_path / "venv" / "installed.txt").exists()


def test_without_a_python_that_fits_make_says_which_are_needed(make):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make("install", "PYTHON=", "VENV=venv")
    line = caught.value.stderr.splitlines()[0]
    assert line.startswith("error: no Python 3.11 or 3.12 found")
    assert "make PYTHON=" in line


def test_make_test_is_lint_types_and_tests_with_the_locked_environment(make):
    told = make("-n", "test", "VENV=venv")
    commands = [line for line in told.splitlines() if line.startswith("venv/bin/")]
    lint = ("ruff check .", "ruff format --check .", "mypy", "lint-imports --no-logo", "codespell")
    assert [command.removeprefix("venv/bin/") for command in commands[-7:]] == [
        *lint,
        "nbstripout --keep-id --verify notebooks/*.ipynb",
        "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0",
    ]
    assert "venv/bin/mkdocs build --quiet --strict" in told
