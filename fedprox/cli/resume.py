"""The commands for `resume=` and `branch_from=`: an earlier run's settings, with the changes that are asked for.

A command is made from the settings in run.json, which are data: see `fedprox.runs.trust`. Only the choice of files in
conf/ comes from the recorded overrides, so that a branch with another choice gets all settings of that file.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fedprox.cli.words import as_override, quoted
from fedprox.config.compose import CONF, compose, composed
from fedprox.config.schema import GROUPS, TARGETS
from fedprox.errors import UserError
from fedprox.held import OF_DATA, PREFIX, is_held
from fedprox.runs.reader import RESUME_MAY_CHANGE, broken, differences, read_record
from fedprox.runs.trust import PATHS, is_place, is_refused, recorded_settings, shown
from fedprox.storage import CHECKPOINTS, check_own_files

OPTIONS = ("resume", "branch_from")
_BRANCH = ("branch_from", "branch_round")
_CHOICE = re.compile(r"""\+{0,2}(\w+)=(['"]?)(\w[\w.]*)\2""")
_SIMPLE = re.compile(r"[\w./-]*[A-Za-z_/][\w./-]*")
_DERIVED_PATHS = ("data_dir", "path", "glove")  # conf/ derives them from data_dir

Leaves = Mapping[str, Any]


def whole_command(words: Sequence[str]) -> list[str]:
    """Return a command line in which `resume=` or `branch_from=` is completed; any other is returned unchanged.

    Args:
        words: The arguments, without the program's name.

    Raises:
        UserError: If there is no such run, or it cannot be resumed with these settings, or the command does not name
            what a record may not decide.
    """
    asked = next(((option, text) for option in OPTIONS if (text := _text(option, words))), None)
    if asked is None:
        return list(words)
    option, run_dir = asked[0], _directory(*asked)
    record = _origin(option, run_dir)
    _check_alone(option, words)
    given = [_name(word) for word in words]
    settings = _taken_over(option, run_dir, record["settings"])
    _check_held(option, run_dir, settings, given)
    name, choices = record["config_name"], _choices(record["overrides"])
    vouched_for = [word for word in words if str(settings.get(_name(word), "")) == word.partition("=")[2] != ""]
    overrides, made = _recomposed(name, [*choices.values(), *vouched_for], settings)
    kept = [override for group, override in choices.items() if group not in given]
    kept += [override for setting, override in overrides.items() if not _is_given(setting, given)]
    depended_on = {setting: value for setting, value in settings.items() if not _is_given(setting, given)}
    _check_named(option, run_dir, depended_on, made, given)
    command = ["--config-name", name, *kept, *words]
    if option == "branch_from":
        return command
    _check_past(record, compose(_settings_alone([*kept, *words]), name).plain(), run_dir)
    return [*command, f"hydra.run.dir={quoted(str(run_dir))}"]


def _text(option: str, words: Sequence[str]) -> str | None:
    """Return the value of an option; None if it is not given. A reference is refused: its value may change any time."""
    given = [word.partition("=")[2] for word in words if not word.startswith("-") and _name(word) == option]
    if not given or given[-1] in ("", "null"):
        return None
    if "${" in given[-1]:
        raise UserError(f"{option} must be the path of a run directory, got {given[-1]}; write it without ${{...}}")
    value = OverridesParser.create().parse_override(f"{option}={given[-1]}").value()
    return value if isinstance(value, str) else given[-1]


def _directory(option: str, text: str) -> Path:
    run_dir = Path(text)
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{option}={text} is not a run directory: run.json is missing; name a directory that has it")
    return run_dir


def _origin(option: str, run_dir: Path) -> Mapping[str, Any]:
    if option == "resume":
        check_own_files(run_dir)
    record = read_record(run_dir / "run.json")
    names = [path.stem for path in CONF.glob("*.yaml")]
    overrides = record.get("overrides")
    is_plain = isinstance(overrides, list) and all(
        isinstance(word, str) and not word.startswith("-") and not _is_hydras(word) for word in overrides
    )
    if not is_plain or record.get("config_name") not in names:
        raise UserError(
            f"{option}={run_dir} was not made by this command, or by a version without checkpoints; repeat the command "
            "that made it"
        )
    return record


def _taken_over(option: str, run_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded settings that the new command takes over."""
    try:
        leaves = recorded_settings(settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise broken(run_dir / "run.json", error) from error
    if option == "branch_from":  # the command sets these two
        return {name: value for name, value in leaves.items() if name not in _BRANCH}
    return leaves


def _check_alone(option: str, words: Sequence[str]) -> None:
    for word in words:
        if word.startswith(("--config-name", "-cn")):
            raise UserError(f"{option}= uses the configuration of the earlier run; leave {word} out")
        if option == "resume" and word in ("--multirun", "-m"):
            raise UserError(
                "resume= continues one run, got --multirun; to continue a sweep, repeat its command with the same "
                "hydra.sweep.dir"
            )


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Return the choices of files in conf/ among a run's overrides: group -> override."""
    found = filter(None, map(_CHOICE.fullmatch, overrides))
    chosen = {each[1]: each[3] for each in found if (CONF / each[1] / f"{each[3]}.yaml").is_file()}
    chosen.pop("logger", None)  # the command decides about loggers
    return {group: f"{group}={choice}" for group, choice in chosen.items()}


def _recomposed(config_name: str, choices: Iterable[str], settings: Leaves) -> tuple[dict[str, str], dict[str, Any]]:
    """Return setting -> override for what differs between a record and the files of conf/, and the settings composed.

    A setting that refers to another one follows it, unless it was given itself. What a record may not decide stays as
    it is in conf/.
    """
    begun = composed(_settings_alone(choices), config_name)
    followers = [name for name, value in recorded_settings(_plain(begun, resolve=False)).items() if "${" in str(value)]
    found = recorded_settings(_plain(begun))
    overrides: dict[str, str] = {}
    for ignored in (followers, []):
        more = {name: text for name, text in _overrides(settings, found).items() if name not in ignored}
        if more:
            overrides |= more
            found = recorded_settings(_plain(composed(_settings_alone([*choices, *overrides.values()]), config_name)))
    return overrides, found


def _overrides(settings: Leaves, composed: Leaves) -> dict[str, str]:
    """Return setting -> override for each setting in which a composed configuration differs from a record."""
    found = {}
    for name, value in settings.items():
        is_data = name == "branch_from" or not is_place(name, value)  # read only if the run has no checkpoint
        if is_data and not is_refused(name, value, CONF) and not _is_composed(name, value, composed):
            found[name] = f"{'' if name in composed else '++'}{name}={as_override(value)}"
    groups = {name.partition(".")[0] for name in settings} & set(GROUPS)
    left_out = [name for name in composed if name not in settings and name.partition(".")[0] in groups]
    return found | {name: f"~{name}" for name in left_out}


def _is_composed(name: str, value: Any, composed: Leaves) -> bool:
    """Return whether a setting is composed with this value; null is the default of one that no file has."""
    is_default = value is None and name not in composed and name.partition(".")[0] not in TARGETS
    return is_default or _equal(value, composed.get(name, ...))


def _check_held(option: str, run_dir: Path, settings: Leaves, given: Sequence[str]) -> None:
    """Raise UserError if a run depends on objects of a Python process and the command does not name them."""
    held = {name: target for name, target in settings.items() if is_held(target) and not _is_given(name, given)}
    if not held:
        return
    groups = ["data" if target in OF_DATA else name.partition(".")[0] for name, target in held.items()]
    call = ", ".join(f"{argument}=..." for argument in dict.fromkeys([option, *groups]))
    names = ", ".join(shown(target.removeprefix(PREFIX)) for target in held.values())
    raise UserError(
        f"{option}={run_dir} has {names}, which existed only in the Python process that made that run; continue it "
        f"from Python: fedprox.run({call})"
    )


def _check_named(option: str, run_dir: Path, settings: Leaves, composed: Leaves, given: Sequence[str]) -> None:
    """Raise UserError if a run depends on settings that a record may not decide and the command does not give.

    `settings` are the record's, without those that the command gives; `composed` lack what a record may not decide.
    """
    begins = option == "resume" and not any((run_dir / CHECKPOINTS).glob("*.safetensors"))
    asked = []
    for name, value in settings.items():
        present = composed.get(name, ...)
        if _is_composed(name, value, composed) and not (name == "branch_from" and value is not None and begins):
            continue
        key = name.rpartition(".")[2]
        if key == "cache_dir" or (key in _DERIVED_PATHS and "data_dir" in given and present not in (..., "???")):
            continue
        is_named = key == "_target_" or not is_refused(name, value, CONF)
        text = _as_given(value) if is_named else "<value>"
        asked.append(_for_a_shell(f"{'' if name in composed else '++'}{name}={text}"))
    if asked:
        raise UserError(
            f"{option}={run_dir} may not decide what is called, read or written; if you trust its settings, add "
            f"{' '.join(asked)}"
        )


def _as_given(value: Any) -> str:
    return value if isinstance(value, str) and _SIMPLE.fullmatch(value) else as_override(value)


def _for_a_shell(word: str) -> str:
    """Return an argument as it is typed in a shell, without control characters."""
    if _SIMPLE.fullmatch(word.partition("=")[2]) or word.endswith("=<value>"):
        return word
    return shown(shlex.quote(word) if set(word) & set('"$`\\!') else f'"{word}"')


def _is_given(name: str, given: Sequence[str]) -> bool:
    """Return whether a command gives a setting, a group that it is in, or a part of it."""
    return any(f"{name}.".startswith(f"{each}.") or each.startswith(f"{name}.") for each in given)


def without_resume(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without `resume`, for run.json."""
    return [override for override in overrides if _name(override) != "resume"]


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _is_hydras(word: str) -> bool:
    return re.match(r"[^\w]*hydra\b", word) is not None


def _settings_alone(words: Iterable[str]) -> list[str]:
    return [word for word in words if not word.startswith("-") and not _is_hydras(word)]


def _plain(config: DictConfig, resolve: bool = True) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=resolve)  # type: ignore[return-value]


def _equal(value: Any, other: Any) -> bool:
    return other is not ... and json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def _check_past(record: Mapping[str, Any], present: Mapping[str, Any], run_dir: Path) -> None:
    """Raise UserError if a setting would make a resumed run differ from the uninterrupted one."""
    schedules = {present[name]["name"] for name in ("schedule", "server_schedule")}
    longer = ("num_rounds",) * (schedules == {"constant"})  # other schedules depend on it
    # Paths may change: data are identified by their fingerprint.
    changed = differences(
        record["settings"], present, (*RESUME_MAY_CHANGE, *longer, *PATHS, "early_stopping", "pruning_bar")
    )
    if changed:
        raise UserError(
            f"resume={run_dir} would change the past: {', '.join(changed)}; leave that out, or branch from a round of "
            f"this run with branch_from={run_dir} branch_round=<round>"
        )
