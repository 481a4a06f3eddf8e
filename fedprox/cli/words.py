"""Settings as Python values, turned into the arguments of a command."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from fedprox.errors import UserError


def as_override(value: Any) -> str:
    """Return a plain value in Hydra's grammar, with every string quoted so that Hydra does not interpret it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_override(each)}' for key, each in value.items())}}}"
    return repr(value)


def quoted(text: str) -> str:
    """Return a text in Hydra's quotes."""
    return QuotedString(text, Quote.single).with_quotes()


def words_of(name: str, value: Any) -> Iterator[str]:
    """Yield the arguments of a setting: one, or one for each value within a mapping.

    Args:
        name: As on the command line: "mu", "partition.alpha", or "+model.width" for one that no file in conf/ has.
        value: None, a bool, a number, a text, a path, or a list or a mapping of these; numbers may be NumPy's.

    Raises:
        UserError: If it is anything else.

    Examples:
        >>> list(words_of("partition", {"alpha": 0.1, "sizes": "equal"}))
        ['partition.alpha=0.1', 'partition.sizes=equal']
        >>> list(words_of("data_dir", "one,other"))  # which Hydra would take for a sweep
        ["data_dir='one,other'"]
    """
    if not isinstance(value, Mapping):
        yield f"{name}={_text(name, value)}"
        return
    pluses, bare = name[: len(name) - len(name.lstrip("+"))], name.lstrip("+")
    for key, each in value.items():
        inner = str(key)
        more = inner[: len(inner) - len(inner.lstrip("+"))]
        yield from words_of(f"{pluses or more}{bare}.{inner.lstrip('+')}", each)


def _text(name: str, value: Any) -> str:
    """Return a value as it is typed on the command line: strings without quotes wherever Hydra takes them so."""
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return value if _is_read_as_given(value) else quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_text(name, each) for each in value)}]"
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        return as_override(value)
    raise UserError(
        f"{name.lstrip('+')} must be a number, a text, true, false or null, or a list or a mapping of these, got a "
        f"{type(value).__name__}; see fedprox.run for the settings that take objects"
    )


def _is_read_as_given(text: str) -> bool:
    try:
        return bool(text) and OverridesParser.create().parse_override(f"name={text}").value() == text
    except HydraException:
        return False
