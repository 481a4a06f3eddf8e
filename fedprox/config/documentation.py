"""Documentation of the settings: `--help` and docs/configuration.md.

Types, ranges and meanings of settings come from `fedprox.config.schema`, defaults and the choices of groups from the
files of conf/: the first comment of a file describes a choice, the comment behind a key describes the key.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from fedprox.config import schema
from fedprox.config.compose import CONF
from fedprox.config.schema import DEVICE_RULE, Config, Device, Rule, Target

SECTIONS = {
    "Presets": ("experiment",),
    "Federation": ("num_clients", "clients_per_round", "num_rounds", "sampling", "stragglers_fraction", "protocol"),
    "Local training": (
        *("num_epochs", "batch_size", "last_batch", "learning_rate", "schedule", "loss", "optimizer"),
        *("momentum", "momentum_buffer", "weight_decay", "max_grad_norm", "solver"),
        *("batch_statistics", "mixed_precision"),
    ),
    "Strategy and proximal term": ("strategy", "server_schedule", "mu", "adaptive_mu"),
    "Personal models": ("personalisation",),
    "Attacks, privacy and compression": ("attack", "privacy", "update"),
    "Secure aggregation": ("secure_aggregation",),
    "Late clients": ("devices", "arrival"),
    "Data": ("dataset", "partition", "hold_out", "feature_skew", "augmentation", "data_dir"),
    "Model": ("model",),
    "Clients by a script": ("client",),
    "Evaluation": ("evaluation", "metrics", "contribution", "early_stopping", "logger"),
    "Search": ("objective", "pruning_bar"),
    "Engine and devices": ("engine", "client_resources", "server_device"),
    "Failures": ("on_client_error", "on_divergence", "round_timeout", "on_timeout"),
    "Seed and repetitions": ("seed", "repeat_num"),
    "Checkpoints, resuming and branching": ("checkpoint", "resume", "branch_from", "branch_round"),
}
_EXPERIMENT = "Preset that sets several groups and settings; whatever else the command sets wins."

_HELP = """\
FedProx and FedAvg on Flower: a run, or a sweep of runs, of federated learning with unequal clients.

usage: fedprox [OPTION ...] [SETTING=VALUE ...]        (or python -m fedprox.main ...)

examples:
  fedprox experiment=digits engine=local mu=0.1
  fedprox --multirun experiment=digits engine=local mu=0,0.1,1 '+repeat_num=range(5)'
  fedprox resume=runs/digits num_rounds=100

options:
  --config-name fedavg   start from FedAvg that drops stragglers
  --multirun, -m         run every combination of the comma-separated values
  --config-dir FOLDER    also read presets of your own, such as FOLDER/experiment/mine.yaml
  --cfg job              print the configuration that the command composes, and run nothing
  --shell-completion     install=bash prints what a shell needs to complete settings; see the documentation
  --version, --help      print the version, or this text

A run writes to outputs/<date>/<time>, a sweep to multirun/<date>/<time>; hydra.run.dir=FOLDER and
hydra.sweep.dir=FOLDER choose another place. Documentation: {home}
"""

_PAGE = """\
# Configuration

<!-- Generated from fedprox/config/schema.py and conf/ by `make docs`: do not edit. -->

Every setting, with its default, the values that it accepts and its meaning. Set them on the command line:

- `name=value` sets one, `group.name=value` one of a group: `mu=0.1 partition.alpha=0.3`.
- `group=choice` takes one of the [choices](#choices-of-the-groups) of a group: `dataset=digits`.
- `+group.name=value` adds an argument to a function or class that accepts it: `+model.width=64`.
- `--config-name fedavg` starts from FedAvg that drops stragglers: `strategy=fedavg mu=0`.
- `--multirun mu=0,0.1,1` runs one job per value, and one per combination if several settings have several values.

An unknown setting or a value out of range ends in one line and exit status 2, before any data is loaded.

```sh
python -m fedprox.main --help
python -m fedprox.main experiment=digits mu=0.1 --cfg job
```

The first command prints this page's tables, the second the composed configuration without running it.

**Presets of your own.** `--config-dir FOLDER` adds a folder with the layout of `conf/`: with
`FOLDER/experiment/mine.yaml`, which begins with the line `# @package _global_`, use
`fedprox --config-dir FOLDER experiment=mine`.

**Completion.** `eval "$(fedprox --shell-completion install=bash)"` lets bash complete groups, choices and settings
(`install=zsh` and `install=fish` for other shells).
"""


@dataclass(frozen=True)
class Setting:
    """A setting as it is documented.

    Attributes:
        name: Its dotted name.
        default: Its default as conf/ has it.
        values: The values that it accepts.
        meaning: Its meaning, in Markdown.
    """

    name: str
    default: str
    values: str
    meaning: str


@dataclass(frozen=True)
class Choice:
    """A file of conf/: one of the choices of a group.

    Attributes:
        name: The file's name without its ending.
        meaning: Its first comment.
        settings: What it sets, without what follows from other settings.
    """

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def help_text(home: str, width: int = 100) -> str:
    """Return what `--help` prints: usage, examples, and every setting with its default, values and meaning.

    Args:
        home: Address of the documentation.
        width: Of the lines, in characters.
    """
    lines = [_HELP.format(home=home)]
    for section, settings in _by_section():
        lines.append(f"{section}:")
        for each in settings:
            lines.append(f"  {each.name}={each.default}")
            text = f"{each.meaning} ({each.values})".replace("`", "")
            lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def markdown() -> str:
    """Return the text of docs/configuration.md."""
    parts = [_PAGE]
    for section, settings in _by_section():
        parts += [f"## {section}\n", _table(("setting", "default", "values", "meaning"), list(map(_row, settings)))]
    parts.append("## Choices of the groups\n")
    for group in groups():
        rows = [(f"`{choice.name}`", _escaped(choice.meaning), _sets(choice)) for choice in choices(group)]
        parts += [f"### {group}\n", _table(("choice", "meaning", "settings"), rows)]
    return "\n".join(parts)


def _by_section() -> Iterator[tuple[str, list[Setting]]]:
    settings = list(all_settings())
    for section, names in SECTIONS.items():
        yield section, [each for name in names for each in settings if each.name.partition(".")[0] == name]


def _row(setting: Setting) -> tuple[str, ...]:
    values = f"[a choice](#{setting.name})" if setting.name in groups() else _escaped(setting.values)
    return f"`{setting.name}`", f"`{setting.default}`", values, setting.meaning


def _sets(choice: Choice) -> str:
    return "<br>".join(
        f"`{each.name}={each.default}`" + (f": {_escaped(each.meaning)}" if each.meaning else "")
        for each in choice.settings
    )


def _escaped(text: str) -> str:
    """Return the text of a comment so that Markdown shows it as it is."""
    return text.replace("<", "&lt;").replace("*", r"\*")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)


@cache
def groups() -> tuple[str, ...]:
    """Return the names of the groups, which are the folders of conf/, apart from Hydra's own."""
    return tuple(sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"))


def choices(group: str) -> list[Choice]:
    """Return the choices of a group."""
    return [_choice(group, file) for file in sorted((CONF / group).glob("*.yaml"))]


def _choice(group: str, file: Path) -> Choice:
    first, *others = file.read_text(encoding="utf-8").splitlines()
    is_global = first == "# @package _global_"
    documented = {setting.name for setting in _of_class(Config)}
    sets = []
    for name, value, meaning in _written(file):
        full = name.removeprefix("defaults.") if is_global else f"{group}.{name}"
        is_reference = value.startswith("${") and not meaning and _default(value) == value
        if not name.endswith("_target_") and not is_reference and (is_global or full not in documented):
            sets.append(Setting(full, _default(value), "", meaning))
    return Choice(file.stem, (others[0] if is_global else first).removeprefix("# "), tuple(sets))


def all_settings() -> Iterator[Setting]:
    """Yield every setting of `Config`, and the group of presets, in the order of the schema."""
    yield Setting("experiment", "null", _any_of("experiment"), _EXPERIMENT)
    yield from _of_class(Config)


def _of_class(cls: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a class, each before those of its sub-settings."""
    hints = get_type_hints(cls, include_extras=True)
    for key in cls.model_fields:
        name, hint = f"{prefix}{key}", hints[key]
        if meaning := _meanings().get(cls.__name__, {}).get(key):
            values = _any_of(name) if name in groups() else _values(hint)
            yield Setting(name, _defaults().get(name, "null"), values, " ".join(meaning.split()))
        for option in get_args(hint) if get_origin(hint) is UnionType else [hint]:
            if inspect.isclass(option) and issubclass(option, BaseModel) and option is not Target:
                yield from _of_class(option, f"{name}.")


def _any_of(group: str) -> str:
    return ", ".join(file.stem for file in sorted((CONF / group).glob("*.yaml")))


def _values(hint: Any) -> str:
    """Return the values that a type accepts, in the words of the errors."""
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join("null" if option is NoneType else _values(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        *first, last = get_args(hint)
        return f"{', '.join(first)} or {last}"
    if hint == Device:
        return DEVICE_RULE
    if get_origin(hint) is Annotated and isinstance(rule := hint.__metadata__[-1], Rule):
        return rule.text
    if get_origin(hint) is list:
        return f"a list of {_values(get_args(hint)[0])}"
    return "true or false" if hint is bool else "text"


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """Return the strings below the attributes of the schema's classes."""
    return {
        node.name: {
            declared.target.id: str(text.value.value)
            for declared, text in pairwise(node.body)
            if isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
        for node in ast.parse(inspect.getsource(schema)).body
        if isinstance(node, ast.ClassDef)
    }


@cache
def _defaults() -> dict[str, str]:
    """Return the default of each setting; a group's is a choice, a setting's of a choice that of the default choice."""
    written = {name.removeprefix("defaults."): value for name, value, _ in _written(CONF / "config.yaml")}
    for group in groups():
        file = CONF / group / f"{written[group]}.yaml"
        if file.is_file():
            written |= {f"{group}.{name}": value for name, value, _ in _written(file)}
    return {name: _default(value) for name, value in written.items()} | {"repeat_num": "0"}


def _default(value: str) -> str:
    """Return a default without what it depends on: 1.0 for ${of_fedprox:1.0}."""
    found = re.fullmatch(r"\$\{(?:of_\w+:|oc\.env:\w+,)(.*)\}", value)
    return found[1] if found else value


_KEY = re.compile(r"(?P<indent> *)(?:- )?(?:override /)?(?P<key>[\w.]+):(?: (?P<value>.*?))??(?: # (?P<comment>.*))?")


def _written(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the dotted name, the value and the comment of each key of a file that has a plain value."""
    above: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if found := _KEY.fullmatch(line):
            indent = len(found["indent"])
            above = [(depth, key) for depth, key in above if depth < indent]
            if found["value"]:
                yield ".".join([*(key for _, key in above), found["key"]]), found["value"], found["comment"] or ""
            else:
                above.append((indent, found["key"]))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
