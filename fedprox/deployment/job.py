"""The job: what a federation needs to run an experiment, as a folder that `flwr run` runs by itself.

`<run directory>/job/` holds `pyproject.toml`, with our ServerApp and ClientApp as Flower's two components and the run
config (the run directory, whether to resume it, where the configuration came from, and what to ask instead of
training); `config.yaml`, all settings with every reference resolved; and the user's own modules, which the settings
name. Server and sites have fedprox installed.
"""

import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox.config.files import read_config, write_yaml
from fedprox.config.schema import Config
from fedprox.errors import UserError
from fedprox.federation import script_files

FOLDER, CONFIG = "job", "config.yaml"
_SCRIPT = "script"  # the folder of the clients' script and its modules
PATHS = ("data_dir", "path", "test_path", "cache_dir", "glove", "init")  # settings that name files or folders
_FLOWER_LEAVES_OUT = re.compile(r"(build|eggs|lib|lib64|parts|env|venv)/|(.*/)?(test_[^/]*|[^/]*_test)\.py")
_PYPROJECT = """\
# Written by fedprox: `flwr run <this folder> <connection>` runs it.
[project]
name = "fedprox-job"
version = "1.0.0"
description = "An experiment of fedprox"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedprox"
fab-include = {files}

[tool.flwr.app.components]
serverapp = "fedprox.deployment.server_app:app"
clientapp = "fedprox.deployment.client_app:app"

[tool.flwr.app.config]
run-dir = {run_dir}
resume = {resume}
origin = {origin}
asks = {asks}
"""


@dataclass(frozen=True)
class Job:
    """An experiment for a federation.

    Attributes:
        config: Its configuration.
        run_dir: The run directory on the SuperLink's machine; "" lets the server choose.
        resume: Whether to continue from that directory's last checkpoint.
        origin: How the configuration came about, for run.json.
        asks: What to ask the sites instead of training: "facts" about their data, written to facts.json; "" to train.
    """

    config: Config
    run_dir: str
    resume: bool
    origin: Mapping[str, Any]
    asks: str = ""


def write(job: Job, folder: Path, working_dir: Path) -> None:
    """Write a job, in place of the one that the folder held before.

    Args:
        job: The job.
        folder: The folder, which is the job's own.
        working_dir: Paths in the settings are relative to it, and modules of the user's lie in it.

    Raises:
        UserError: If Flower would leave out a module.
        OSError: If the folder cannot be written.
    """
    if folder.exists():
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a job of an earlier run; move it away")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    config, modules = absolute(job.config, working_dir), dict(users_modules(working_dir))
    if config.client.script is not None:
        script = working_dir / config.client.script
        modules |= {f"{_SCRIPT}/{file.relative_to(script.parent)}": file for file in script_files.files(script)}
        config = _with_script(config, f"{_SCRIPT}/{script.name}")
    write_yaml(config.plain(), folder / CONFIG)
    files = [CONFIG]
    for name, file in sorted(modules.items()):
        if _FLOWER_LEAVES_OUT.fullmatch(name) or _FLOWER_LEAVES_OUT.match(name):
            raise UserError(f"Flower leaves {name} out of a job because of its name; rename {file}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
        files.append(name)
    text = _PYPROJECT.format(
        files=json.dumps(files),  # JSON's lists, strings and booleans are TOML's, too
        run_dir=json.dumps(job.run_dir),
        resume=json.dumps(job.resume),
        origin=json.dumps(json.dumps(dict(job.origin))),
        asks=json.dumps(job.asks),
    )
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def read() -> Config:
    """Return the configuration of the job that Flower runs in this process: it has put the job's folder on sys.path.

    Raises:
        UserError: If there is no job.
    """
    for folder in map(Path, sys.path):
        if (folder / CONFIG).is_file() and (folder / "pyproject.toml").is_file():
            config = read_config(folder / CONFIG)
            script = config.client.script
            return config if script is None else _with_script(config, str(folder / script))
    raise UserError(f"this Flower app has no {CONFIG}; submit it by fedprox, with engine=deployment")


def _with_script(config: Config, script: str) -> Config:
    settings = config.plain()
    return Config.of({**settings, "client": {**settings["client"], "script": script}})


def absolute(config: Config, working_dir: Path) -> Config:
    """Return a configuration whose paths hold in every working directory."""
    return Config.of(_absolute(config.plain(), working_dir))


def _absolute(settings: Any, working_dir: Path) -> Any:
    if not isinstance(settings, dict):
        return settings
    made = {name: _absolute(value, working_dir) for name, value in settings.items()}
    for name in PATHS:
        value = made.get(name)
        if isinstance(value, str) and not (name == "init" and value in ("default", "zeros")):
            made[name] = str(working_dir / value)
    return made


def users_modules(working_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield each imported module that lies in a folder, as the path that its name stands for, and its file.

    Left out are the main program, this package and what is installed.
    """
    folder, package = working_dir.resolve(), Path(__file__).resolve().parents[1]
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    others = [package, package.parent / "conf", *installed]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in ("__main__", "__mp_main__") or not file:
            continue
        path = Path(file).resolve()
        if not path.is_relative_to(folder) or any(map(path.is_relative_to, others)):
            continue
        if path.suffix != ".py" or not path.is_file():  # torch has modules whose file is only a name
            continue
        stem = name.replace(".", "/")
        yield (f"{stem}/__init__.py" if path.name == "__init__.py" else f"{stem}.py"), path
