"""What the record of somebody else's run may call: settings name functions, and a name could be that of any program."""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_NAMED = re.compile(r"_target_: *([\w.]+)")
_FLOWERS = re.compile(r"flwr\.serverapp\.strategy\.[A-Z]\w*")


def strangers(settings: Mapping[str, Any], conf: Path, known: Collection[str] = ()) -> list[str]:
    """Return the functions and classes that settings name and that are neither ours nor Flower's strategies.

    Args:
        settings: Nested, as plain containers.
        conf: The folder of the configuration's files; what they name is ours.
        known: More that may be called, because the user has named it.
    """
    allowed = {*_ours(conf), *known}
    return sorted({name for name in targets(settings) if name not in allowed and not _FLOWERS.fullmatch(name)})


def targets(settings: Any) -> Iterator[str]:
    """Yield every `_target_` of nested settings."""
    if isinstance(settings, Mapping):
        if "_target_" in settings:
            yield str(settings["_target_"])
        settings = settings.values()
    elif not isinstance(settings, (list, tuple)):
        return
    for value in settings:
        yield from targets(value)


@cache
def _ours(conf: Path) -> frozenset[str]:
    return frozenset(name for file in conf.rglob("*.yaml") for name in _NAMED.findall(file.read_text(encoding="utf-8")))
