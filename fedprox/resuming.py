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
from fedprox.trust import strangers

OPTIONS = ("resume", "branch_from")
_DEFAULTS_OF_MU = (1.0, 0.01, 0.001)  # of earlier versions


def whole_command(words: Sequence[str], conf: Path) -> list[str]:
    """Return a command line with `resume=` or `branch_from=` in full; any other as it is.

    Args:
        words: As given, without the program's name.
        conf: The folder of the configuration's files.

    Raises:
        UserError: If there is no such run, or it cannot be resumed with the settings given.
    """
    given = {_name(word): word.partition("=")[2] for word in words if not word.startswith("-")}
    option = next((option for option in OPTIONS if given.get(option) not in (None, "", "null")), None)
    if option is None:
        return list(words)
    run_dir = _directory(option, given[option])
    record = _origin(option, run_dir, conf)
    _check_alone(option, words)
    overrides = _replaced(record["overrides"], words)
    recorded = _composed(record["config_name"], record["overrides"], conf)
    _check_trusted(option, run_dir, (recorded, record["settings"]), words, conf)
    overrides = [*_mu_of_then(record, recorded.get("mu"), words), *overrides]
    command = ["--config-name", record["config_name"], *overrides]
    if option == "branch_from":
        return command
    _check_past(record, _composed(record["config_name"], overrides, conf), run_dir)
    return [*command, f"hydra.run.dir='{run_dir}'"]


def _directory(option: str, text: str) -> Path:
    run_dir = Path(text.strip("'\""))
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{option}={text} is no run directory: there is no run.json; name one that has it")
    return run_dir


def _origin(option: str, run_dir: Path, conf: Path) -> Mapping[str, Any]:
    record = read_record(run_dir / "run.json")
    names = [path.stem for path in conf.glob("*.yaml")]
    overrides = record.get("overrides")
    is_plain = isinstance(overrides, list) and all(
        isinstance(word, str) and not word.startswith(("-", "hydra")) for word in overrides
    )
    if not is_plain or record.get("config_name") not in names:
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


def _mu_of_then(record: Mapping[str, Any], default: float | None, words: Sequence[str]) -> list[str]:
    """Return an earlier run's mu as an override, if it was a default of its version and the default is another now.

    Earlier versions had the same mu for every strategy, and mu = 1 with experiment=flare_cifar10.
    """
    was = record["settings"].get("mu")
    given = "mu" in map(_name, record["overrides"])
    anew = {_name(word).partition(".")[0] for word in words} & {"mu", "strategy"}
    return [f"mu={was}"] if was in _DEFAULTS_OF_MU and was != default and not given and not anew else []


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _composed(config_name: str, overrides: Sequence[str], conf: Path) -> dict[str, Any]:
    settings = [word for word in overrides if not word.startswith(("-", "hydra"))]
    with initialize_config_dir(version_base=None, config_dir=str(conf)):
        return plain(compose(config_name, settings))


def _check_trusted(
    option: str, run_dir: Path, settings: Sequence[Mapping[str, Any]], words: Sequence[str], conf: Path
) -> None:
    """Raise UserError where an earlier run, which may be anybody's, would call what the user has not named."""
    named = [word.partition("=")[2] for word in words if "_target_=" in word]
    for each in settings:
        if unknown := strangers(each, conf, named):
            raise UserError(
                f"{option}={run_dir} calls {', '.join(unknown)}, which is neither fedprox's nor Flower's; if you trust "
                "it, give that setting again, such as dataset._target_=my_data.rings"
            )


def _check_past(record: Mapping[str, Any], present: Mapping[str, Any], run_dir: Path) -> None:
    """Raise UserError where a resumed run would not be what it would have been without the interruption."""
    longer = ("num_rounds",) * (present["schedule"]["name"] == "constant")  # any other depends on the last round
    changed = differences(record["settings"], present, (*FREE, *longer, "early_stopping"))
    if changed:
        raise UserError(
            f"resume={run_dir} would change the past: {', '.join(changed)}; leave that out, or begin a new run from "
            f"a round of this one with branch_from={run_dir} branch_round=<round>"
        )
