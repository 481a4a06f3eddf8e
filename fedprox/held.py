"""Objects of this Python process that a configuration names as if they were in this module.

`fedprox.run` puts here what no other process could import: arrays, lambdas, classes of a notebook. Their `_target_`,
such as fedprox.held.MyNet, says so in a run's record.
"""

import functools
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PREFIX = "fedprox.held."
DATA, CLIENTS = "data", "clients"  # names of data of one's own, and of their division among clients
OF_DATA = (f"{PREFIX}{DATA}", f"{PREFIX}{CLIENTS}")
_held: dict[str, Callable[..., Any]] = {}


def __getattr__(name: str) -> Any:
    """Return what is held by this name."""
    if name in _held:
        return _held[name]
    raise AttributeError(
        f"{name} existed only in the Python process that made the run; give it again from Python, in fedprox.run()"
    )


@contextmanager
def holding(objects: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Hold functions by name within the context, in place of others of that name."""
    earlier = dict(_held)
    _held.update(objects)
    try:
        yield
    finally:
        _held.clear()
        _held.update(earlier)


def is_held(target: Any) -> bool:
    """Return whether a `_target_` names an object of one Python process."""
    return isinstance(target, str) and target.startswith(PREFIX)


def is_factory(thing: Any) -> bool:
    """Return whether something is a class or a function, which makes objects, and not an object itself."""
    return inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, functools.partial)


def import_name(thing: Any) -> str | None:
    """Return the name by which another process can import a class or function, as module.name; None if it cannot."""
    module, name = (getattr(thing, attribute, None) for attribute in ("__module__", "__qualname__"))
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    try:
        found = pkgutil.resolve_name(f"{module}:{name}")
    except (ImportError, AttributeError, ValueError):  # made within a function, or in a notebook
        return None
    return f"{module}.{name}" if found is thing else None


def held_name(thing: Any) -> str:
    """Return a name for something that cannot be imported, such as "MyNet", "lambda" or "Sequential"."""
    name = getattr(thing, "__qualname__", type(thing).__qualname__).rpartition(".")[2]
    return re.sub(r"\W+", "_", name).strip("_") or "object"
