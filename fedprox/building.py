"""Objects from the groups of the configuration, by the function or class that `_target_` names."""

import inspect
import pkgutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fedprox.errors import UserError, one_line, reason

_README = "the README shows what is expected"


def build(config: Mapping[str, Any], group: str, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what a group's `_target_` names, nested ones first, with its other keys and these arguments.

    Raises:
        UserError: If it cannot be called like that, raises, or gives something that is not of the kind expected.
    """
    node = dict(config[group])
    name = f"{group}._target_={node['_target_']}"
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    try:
        inspect.signature(pkgutil.resolve_name(node["_target_"])).bind(*args, **given, **kwargs)
        made = instantiate(node, *args, **kwargs, _convert_="all")
    except TypeError as error:
        raise _not_callable(name, kwargs, str(error)) from None
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


def _not_callable(name: str, kwargs: Mapping[str, Any], why: str) -> UserError:
    asked = f", with {' and '.join(kwargs)}" if kwargs else ""
    return UserError(f"{name} cannot be called as it must be{asked}: {why}; {_README}")
