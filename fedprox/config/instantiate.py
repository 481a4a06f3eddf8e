"""Objects of the configuration's groups, made by the function or class that `_target_` names."""

import importlib
import inspect
import os
import pkgutil
import re
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from fedprox.config.schema import Target
from fedprox.errors import UserError, one_line, with_location

_DOCS = "see docs/extending.md"
# How a call reports arguments that do not fit; a target with *args and **kwargs may refuse them only inside.
_REFUSES_ARGUMENTS = re.compile(r"\(\) (takes|got|missing) .*argument")


def build(group: str, target: Target, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a group's target with the group's other keys and these arguments.

    Keyword arguments are an offer: those that the target does not accept, or that the group sets itself, are left out.

    Raises:
        UserError: If the target does not accept the arguments, raises, or returns an object of another kind.
    """
    name, given, called = f"{group}._target_={target.target}", target.arguments, pkgutil.resolve_name(target.target)
    offered = _accepted(called, {key: value for key, value in kwargs.items() if key not in given})
    try:
        inspect.signature(called).bind(*args, **given, **offered)
    except TypeError as error:
        if missing := re.search(r"missing a required (?:keyword-only )?argument: '(\w+)'", str(error)):
            raise UserError(f"{name} needs {missing[1]}; add +{group}.{missing[1]}=<value>") from None
        raise _refuses(name, kwargs, str(error)) from None
    try:
        with _process_restored():
            made = _call(called, args, _made(given), offered)
    except (UserError, MemoryError):
        raise
    except (SystemExit, GeneratorExit) as end:
        raise UserError(f"{name} ended with {with_location(end)}, which would end the program; let it return") from end
    except OSError as error:
        failed = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
        raise UserError(f"{name} cannot read or write: {failed}; fix that or name another file") from error
    except Exception as error:
        if isinstance(error, TypeError) and _REFUSES_ARGUMENTS.search(str(error)):
            place = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{one_line(error)} ({Path(place.filename).name}, line {place.lineno})"
            raise _refuses(name, kwargs, why) from error
        raise UserError(f"{name} failed with {with_location(error)}; fix it, and try it alone in Python") from error
    if not isinstance(made, kind):
        expected = " or ".join(each.__name__ for each in (get_args(kind) or [kind]) if each is not NoneType)
        raise UserError(f"{name} must return {expected}, got {type(made).__name__}; {_DOCS}")
    return made


def function_of(group: str, target: Target) -> Callable[..., Any]:
    """Return the function that a group names, with the group's other keys as arguments; a class is made first.

    Raises:
        UserError: If the class cannot be made, or what it makes cannot be called.
    """
    called = pkgutil.resolve_name(target.target)
    if inspect.isclass(called):
        made: Callable[..., Any] = build(group, target, Callable)
        return made
    return partial(called, **target.arguments) if target.arguments else called


@contextmanager
def _process_restored() -> Iterator[None]:
    """Undo what a target changes for the whole process, on which the run depends."""
    import torch  # here: a configuration that is only checked does not need it

    dtype, device, is_enabled, folder = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        "",
    )
    with suppress(OSError):  # the working directory may have been removed
        folder = os.getcwd()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(is_enabled)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)  # None is fastest
        with suppress(OSError):
            os.chdir(folder)


def _accepted(called: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that a function or class accepts; one with **kwargs accepts all."""
    parameters = inspect.signature(called).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(offered)
    return {each.name: offered[each.name] for each in parameters if each.name in offered}


def _made(node: Any) -> Any:
    """Return a setting's value, in which every mapping with a `_target_` is replaced by the object that it makes."""
    if isinstance(node, list):
        return [_made(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    values = {key: _made(value) for key, value in node.items()}
    if "_target_" not in values:
        return values
    called = pkgutil.resolve_name(values.pop("_target_"))
    return partial(called, **values) if values.pop("_partial_", False) else called(**values)


def _call(
    called: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any], offered: Mapping[str, Any]
) -> Any:
    """Call a target, again without an offered argument that it passes on in its **kwargs and that is refused there."""
    try:
        return called(*args, **given, **offered)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not refused or refused[1] not in offered:
            raise
    return _call(called, args, given, {key: value for key, value in offered.items() if key != refused[1]})


def _refuses(name: str, kwargs: Mapping[str, Any], why: str) -> UserError:
    expected = f"({', '.join(kwargs)})" if kwargs else "the arguments of its group"
    return UserError(f"{name} must accept {expected}: {why}; {_DOCS}")


def check_target(group: str, target: Target) -> None:
    """Raise UserError unless a group's target accepts the group's other keys.

    The target's signature is the schema of its group: keys must be parameters, and values of plain types
    (int, float, bool, str, or one of them or None) must fit the annotations.
    """
    path = target.target
    try:
        called: Callable[..., Any] = pkgutil.resolve_name(path)
        parameters = inspect.signature(called).parameters
        hints = typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (SystemExit, GeneratorExit) as end:
        raise UserError(f"{group}._target_={path} cannot be loaded: {with_location(end)}") from end
    except Exception as error:  # an import may raise anything
        raise UserError(f"{group}._target_={path} cannot be loaded: {_why_not_loaded(group, path, error)}") from error
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in target.arguments.items():
        if name.startswith("_") or (name not in parameters and not takes_any):  # Hydra's _args_, _partial_, ...
            raise UserError(f"{group}.{name} is unknown: {path} takes {', '.join(parameters) or 'nothing'}")
        if name in hints and not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", str(hints[name]))
            raise UserError(f"{group}.{name} must be of type {expected}, got {value!r}")


def _why_not_loaded(group: str, path: str, error: Exception) -> str:
    """Return why an import failed; one that fails within a package appears as a missing attribute of the package."""
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
    """Return whether a value read from YAML fits an annotation; every value fits one that is not plain."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, list)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True
