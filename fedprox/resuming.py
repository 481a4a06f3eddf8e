"""`resume=` and `branch_from=`: the command line of an earlier run, with what is to be different.

run.json keeps the overrides that a run was made with. So a run is resumed by the same command into the same directory,
which finds its checkpoint there; and a branch is made by the same command with other settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from fedprox.config import plain
from fedprox.errors import UserError
from fedprox.recorded import FREE, differences, read_record

OPTIONS = ("resume", "branch_from")


def whole_command(words: Sequence[str], conf: Path) -> list[str]:
    """Return a command line with `resume=` or `branch_from=` in full; any other as it is.

    Args:
        words: As given, without the program's name.
        conf: The folder of the configuration's files.

    Raises:
        UserError: If there is no such run, or it cannot be resumed with the settings given.
    """
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if not word.startswith("-")}
    option = next((option for option in OPTIONS if given.get(option) not in (None, "", "null")), None)
    if option is None:
        return list(words)
    run_dir = _directory(option, given[option])
    record = _origin(option, run_dir)
    _check_alone(option, words)
    overrides = _replaced(record["overrides"], words)
    command = ["--config-name", record["config_name"], *overrides]
    if option == "branch_from":
        return command
    _check_past(record, overrides, run_dir, conf)
    return [*command, f"hydra.run.dir='{run_dir}'"]


def _directory(option: str, text: str) -> Path:
    run_dir = Path(text.strip("'\""))
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{option}={text} is no run directory: there is no run.json; name one that has it")
    return run_dir


def _origin(option: str, run_dir: Path) -> Mapping[str, Any]:
    record = read_record(run_dir / "run.json")
    if not isinstance(record.get("overrides"), list) or not isinstance(record.get("config_name"), str):
        raise UserError(
            f"{option}={run_dir} was not made by this command, or by a version that kept no checkpoints; "
            "give the command that made it again"
        )
    return record


def _check_alone(option: str, words: Sequence[str]) -> None:
    for word in words:
        if word.startswith(("--config-name", "-cn")):
            raise UserError(f"{option}= takes the configuration of the earlier run; leave {word} out")
        if option == "resume" and word in ("--multirun", "-m"):
            raise UserError(
                "resume= continues one run, got --multirun; a sweep is continued by its own command with the same "
                "hydra.sweep.dir"
            )


def _replaced(earlier: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the earlier overrides without those that are given anew, then the words given."""
    names = {_name(word) for word in words}
    return [*(override for override in earlier if _name(override) not in names), *words]


def without_resume(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that make a run what it is, for run.json."""
    return [override for override in overrides if _name(override) != "resume"]


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _check_past(record: Mapping[str, Any], overrides: Sequence[str], run_dir: Path, conf: Path) -> None:
    """Raise UserError where a resumed run would not be what it would have been without the interruption."""
    settings = [word for word in overrides if not word.startswith(("-", "hydra"))]
    with initialize_config_dir(version_base=None, config_dir=str(conf)):
        present = plain(compose(record["config_name"], settings))
    longer = ("num_rounds",) * (present["schedule"]["name"] == "constant")  # any other depends on the last round
    changed = differences(record["settings"], present, (*FREE, *longer))
    if changed:
        raise UserError(
            f"resume={run_dir} would change the past: {', '.join(changed)}; leave that out, or begin a new run from "
            f"a round of this one with branch_from={run_dir} branch_round=<round>"
        )
