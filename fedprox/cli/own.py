"""A run asked for from Python: its settings as a command, and the objects that the command cannot name."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedprox.cli.resume import OPTIONS, whole_command
from fedprox.cli.words import words_of
from fedprox.config.compose import CONF
from fedprox.config.schema import SEVERAL, TARGETS
from fedprox.data.federated import FederatedData, LabelledData
from fedprox.data.own import OwnArrays, own_arrays
from fedprox.errors import UserError
from fedprox.held import CLIENTS, DATA, PREFIX, held_name, import_name, is_factory

USUAL_CLIENTS = 10  # clients_per_round in conf/, and num_clients of arrays
_FUNCTIONS = ("loss", "metrics")  # groups whose functions are not called to make an object, but are it

Held = dict[str, Callable[..., Any]]


class Command(NamedTuple):
    """A run as a command.

    Attributes:
        config_name: Of the command's --config-name.
        words: Its overrides.
        held: Objects that only this process has, by their names in `fedprox.held`.
    """

    config_name: str
    words: list[str]
    held: Held


def command_of(
    settings: Mapping[str, Any], data: Any = None, directory: Any = None, config_name: str = "config"
) -> Command:
    """Return the command for settings given from Python.

    Args:
        settings: By their names on the command line. A group such as `model` may be the name of a choice, a mapping of
            its settings, or a class, a function or an object of one's own.
        data: See `fedprox.run`; None for what `dataset` says.
        directory: The run directory; None for the command's own choice.
        config_name: A file of conf/.

    Raises:
        UserError: If a setting has another form, or an earlier run cannot be resumed with these.
    """
    held: Held = {}
    for name in settings:
        _check_name(name)
    named = {_group(name) for name, value in settings.items() if _chooses(name, value)}
    words = [word for name, value in settings.items() for word in _words(name, value, held)]
    continues = [option for option in OPTIONS if settings.get(option) is not None]
    if data is not None:
        if "dataset" in named:
            raise UserError("data and dataset were both given, and each names the data; leave one of them out")
        words = [*_data_words(data, named, held, is_new=not continues), *words]
    replaced = [word.strip("~").removesuffix("=custom") for word in words if word[0] == "~" or word.endswith("=custom")]
    words = [_forced(word, replaced) for word in words]
    if "engine" not in named:
        words.append("engine=local")
    if directory is not None:
        if "resume" in continues:
            raise UserError(f"directory={directory} means nothing with resume=, which continues in place; leave it out")
        words += words_of("hydra.run.dir", str(directory))
    if not continues:
        return Command(config_name, words, held)
    chosen = [] if config_name == "config" else ["--config-name", config_name]
    _, name, *rest = whole_command([*chosen, *words])
    return Command(name, rest, held)


def _chooses(name: str, value: Any) -> bool:
    """Return whether an argument gives a setting or a group's choice, and not only some keys of a group."""
    is_keys = isinstance(value, Mapping) and "_target_" not in value
    return name.endswith("._target_") or ("." not in name and not is_keys)


def _group(name: str) -> str:
    """Return the setting or group that a name begins with, such as "model" of "+model.width"."""
    return name.lstrip("+~").partition(".")[0]


def _check_name(name: Any) -> None:
    """Raise UserError unless a setting's name is one from Python."""
    if not isinstance(name, str):
        raise UserError(f"settings must have texts as names, got {name!r}; give them as {{'mu': 0.1}}")
    if re.match(r"\W*hydra\b", name):
        raise UserError(f"{name} is for the command; from Python give directory=<folder>, and leave {name} out")


def _words(name: str, value: Any, held: Held) -> Iterator[str]:
    """Yield the arguments of one setting."""
    if name == "repeat_num":
        name = "+repeat_num"  # no file of conf/ has it
    if name in SEVERAL and isinstance(value, Mapping):
        for key, each in value.items():
            thing = each if isinstance(each, Mapping) else {"_target_": each}
            yield from _arguments(f"{name}.{key}", thing, held)
    elif name not in TARGETS:
        yield from words_of(name, value)
    elif isinstance(value, Mapping) and "_target_" in value:
        yield from _replaced(name, value, held)
    elif value is None or isinstance(value, str | Mapping):
        yield from words_of(name, value)
    else:
        yield from _replaced(name, {"_target_": value}, held)


def _replaced(group: str, thing: Mapping[str, Any], held: Held) -> Iterator[str]:
    """Yield the arguments that put something of one's own in place of a group's choice, with all its settings."""
    yield f"{group}=custom" if (CONF / group / "custom.yaml").is_file() else f"~{group}"
    yield from _arguments(group, thing, held)


def _arguments(name: str, thing: Mapping[str, Any], held: Held) -> Iterator[str]:
    """Yield the arguments for a `_target_`, which may be a class, a function or an object, and for its own."""
    for key, value in thing.items():
        if key == "_target_":
            yield f"++{name}._target_={_target(name.partition('.')[0], value, held)}"
        else:
            yield from words_of(f"++{name}.{key.lstrip('+')}", value)


def _forced(word: str, replaced: Sequence[str]) -> str:
    """Return an argument so that it may add a key to a group that was replaced, of which no file knows the keys."""
    return f"++{word}" if any(word.startswith(f"{group}.") for group in replaced) else word


def _target(group: str, thing: Any, held: Held) -> str:
    """Return the `_target_` of a class or function, or of an object, which is then held."""
    if isinstance(thing, str):
        return thing
    if is_factory(thing) and (name := import_name(thing)):
        return name
    is_called = is_factory(thing) or group in _FUNCTIONS
    return _hold(group, held_name(thing), thing if is_called else lambda: copy.deepcopy(thing), held)


def _hold(group: str, name: str, function: Callable[..., Any], held: Held) -> str:
    """Note a function to be held, and return its `_target_`."""
    name = f"{name}_{group}" if name in held else name
    held[name] = function
    return f"{PREFIX}{name}"


def prepared(data: Any) -> Any:
    """Return data of one's own in the form in which several commands share them.

    Raises:
        UserError: If they have another form than `fedprox.run` says.
    """
    is_known = data is None or isinstance(data, str | LabelledData | FederatedData | OwnArrays) or is_factory(data)
    return data if is_known else own_arrays(data)


def _data_words(data: Any, named: set[str], held: Held, *, is_new: bool) -> Iterator[str]:
    """Yield the arguments for data of one's own.

    Args:
        data: See `fedprox.run`.
        named: The settings and the choices of groups that the call gives.
        held: Receives what only this process has.
        is_new: Whether the run is new; an earlier one keeps its division into clients.
    """
    if isinstance(data, str):
        raise UserError(f"data must be arrays or objects, got {data!r}; to choose by name, give dataset={data!r}")
    if is_factory(data):
        yield from _replaced("dataset", {"_target_": data}, held)
        return
    known = prepared(data)
    function = known.labelled if isinstance(known, OwnArrays) else lambda: known
    yield from _replaced("dataset", {"_target_": _hold("dataset", DATA, function, held)}, held)
    implied, num_clients = _division(known, held), getattr(known, "num_clients", None)
    if num_clients is not None and "partition" in named:
        raise UserError("partition means nothing with data that have clients; leave it out, or leave the clients out")
    if num_clients is not None and num_clients < USUAL_CLIENTS and "arrival" not in named:
        implied["clients_per_round"] = None  # all
    for name, value in implied.items():
        if name not in named and (is_new or isinstance(value, Mapping)):
            yield from _words(name, value, held)


def _division(data: LabelledData | FederatedData | OwnArrays, held: Held) -> dict[str, Any]:
    """Return the settings that divide data among clients, unless the call says more."""
    if isinstance(data, FederatedData):
        return {"partition": "natural", "num_clients": None}
    if isinstance(data, OwnArrays) and data.num_clients is not None:
        function = _hold("partition", CLIENTS, data.partition(), held)
        return {"partition": {"_target_": function}, "num_clients": data.num_clients}
    has_classes = data.task == "classification" and data.labels.ndim == 1
    return {"partition": "dirichlet" if has_classes else "iid", "num_clients": USUAL_CLIENTS}
