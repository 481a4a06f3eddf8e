"""Objects from the groups of the configuration, by the function or class that `_target_` names."""

import importlib
import inspect
import pkgutil
import re
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fedprox.config.schema import Target
from fedprox.errors import UserError, one_line, reason

_README = "the README shows what is expected"


def build(group: str, target: Target, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what a group of the configuration names, nested ones first, with its other keys and these arguments.

    Keyword arguments are an offer: those that the target does not take, or that the group sets itself, are left out.

    Raises:
        UserError: If it cannot be called like that, raises, or gives something that is not of the kind expected.
    """
    name, given = f"{group}._target_={target.target}", target.arguments
    try:
        taken = _taken(target.target, {key: value for key, value in kwargs.items() if key not in given})
        inspect.signature(pkgutil.resolve_name(target.target)).bind(*args, **given, **taken)
        made = _instantiated({"_target_": target.target, **given}, args, taken)
    except TypeError as error:
        if missing := re.search(r"missing a required (?:keyword-only )?argument: '(\w+)'", str(error)):
            raise UserError(f"{name} needs {missing[1]}; add +{group}.{missing[1]}=<value>") from None
        raise _not_callable(name, kwargs, str(error)) from None
    except (SystemExit, GeneratorExit) as end:
        raise UserError(f"{name} ended with {reason(end)}, which ends a run; let it return instead") from end
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (UserError, MemoryError)):
            raise cause from None
        if isinstance(cause, OSError):
            failed = f"{cause.filename}: {cause.strerror}" if cause.filename else one_line(cause)
            raise UserError(f"{name} cannot read or write: {failed}; mend that or name another place") from error
        if isinstance(cause, TypeError):  # of one that takes *args and **kwargs, it is found out only inside
            place = traceback.extract_tb(cause.__traceback__)[-1]
            told = f"{one_line(cause)} ({Path(place.filename).name}, line {place.lineno})"
            raise _not_callable(name, kwargs, told) from error
        raise UserError(f"{name} failed with {reason(cause or error)}; fix it, and try it alone in Python") from error
    if not isinstance(made, kind):
        expected = " or ".join(each.__name__ for each in (get_args(kind) or [kind]) if each is not NoneType)
        article = "an" if expected[0] in "AEIOU" else "a"
        raise UserError(f"{name} must make {article} {expected}, but made a {type(made).__name__}; {_README}")
    return made


def _taken(target: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return which keyword arguments a function or class takes; one with **kwargs takes all."""
    parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(offered)
    return {each.name: offered[each.name] for each in parameters if each.name in offered}


def _instantiated(node: Mapping[str, Any], args: tuple[Any, ...], taken: Mapping[str, Any]) -> Any:
    """Call a node's target; anew without an argument that only what its **kwargs are passed on to does not take."""
    try:
        return instantiate(node, *args, **taken, _convert_="all")
    except InstantiationException as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
        if not (isinstance(error.__cause__, TypeError) and refused and refused[1] in taken):
            raise
    return _instantiated(node, args, {key: value for key, value in taken.items() if key != refused[1]})


def _not_callable(name: str, kwargs: Mapping[str, Any], why: str) -> UserError:
    asked = f", with {' and '.join(kwargs)}" if kwargs else ""
    return UserError(f"{name} cannot be called as it must be{asked}: {why}; {_README}")


def check_target(group: str, target: Target) -> None:
    """Raise UserError unless what a group names can be called with the group's other keys.

    A callable's signature is the schema of its group: names must be parameters, and values of plain types
    (int, float, bool, str, or one of them or None) must fit the annotations.
    """
    path = target.target
    try:
        called: Callable[..., Any] = pkgutil.resolve_name(path)
        parameters = inspect.signature(called).parameters
        hints = typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (SystemExit, GeneratorExit) as end:
        raise UserError(f"{group}._target_={path} cannot be loaded: {reason(end)}") from end
    except Exception as error:  # an import may fail in any way
        raise UserError(f"{group}._target_={path} cannot be loaded: {_why_not_loaded(group, path, error)}") from error
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in target.arguments.items():
        if name.startswith("_") or (name not in parameters and not takes_any):  # Hydra's _args_, _partial_, ...
            raise UserError(f"{group}.{name} is unknown: {path} takes {', '.join(parameters) or 'nothing'}")
        if name in hints and not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", str(hints[name]))
            raise UserError(f"{group}.{name} must be of type {expected}, got {value!r}")


def _why_not_loaded(group: str, path: str, error: Exception) -> str:
    """Return why: an import that fails in a module of a package shows as a missing attribute of the package."""
    if isinstance(error, AttributeError):
        try:
            importlib.import_module(path.rpartition(".")[0])
        except Exception as cause:
            if not (isinstance(cause, ModuleNotFoundError) and f"{path}.".startswith(f"{cause.name}.")):
                error = cause
    if isinstance(error, ModuleNotFoundError) and error.name and not f"{path}.".startswith(f"{error.name}."):
        package = error.name.partition(".")[0]
        local = ", or use engine=local" if group == "engine" else ""
        return f"the package {package} is not installed; install it with pip install {package}{local}"
    return one_line(error)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value read from YAML fits an annotation; annotations that are not plain fit all."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True
