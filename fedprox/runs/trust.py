"""Allow-list of the settings that a run takes over from another one's record, which may be a stranger's.

A record is data. What it may decide are the settings of the schema that change numbers. Where a run computes, connects,
reads and writes is decided by the command alone, and so is what it calls besides this project's own functions.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedprox.config.schema import GROUPS, SETTINGS
from fedprox.errors import printable
from fedprox.runs.reader import flattened

# Settings that say where a run computes and who is told.
PLACEMENT = ("engine", "client_resources", "server_device", "data_dir", "resume", "logger")
# Settings of any group that name files or folders.
PATHS = ("data_dir", "path", "cache_dir", "glove")
MAX_SETTINGS = 1000  # far more than any run has
_NAMED = re.compile(r"_target_: *([\w.]+)")
_NAME = re.compile(r"[A-Za-z]\w*")
_NO_PATH = re.compile(r"[\w.+ -]*")

Settings = Mapping[str, Any]


def recorded_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings of a record as dotted name -> value; lists are values, mappings are taken apart.

    Those of PLACEMENT are left out.

    Raises:
        ValueError: If they are not made as this program's settings are.
    """
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        raise ValueError(f"settings has {unknown[0]!r:.80}, which is not a setting")
    for group in GROUPS:
        if group in settings and not isinstance(settings[group], Mapping):
            raise ValueError(f"settings.{group} must be an object")
    found = flattened({name: value for name, value in settings.items() if name not in PLACEMENT})
    if len(found) > MAX_SETTINGS:
        raise ValueError(f"settings has more than {MAX_SETTINGS} entries")
    return found


def is_place(name: str, value: Any) -> bool:
    """Return whether a setting names a file, a folder or an address, as far as its name and value show."""
    group, _, key = name.partition(".")
    if key.endswith("_target_"):
        return False
    if name == "model.init":
        return value not in ("default", "zeros")
    texts = list(_texts(value))
    return (group in GROUPS and key in PATHS) or not all(map(_NO_PATH.fullmatch, texts))


def is_refused(name: str, value: Any, conf: Path) -> bool:
    """Return whether a record may not decide a setting: it calls what is not ours, or refers to something else.

    Args:
        name: The setting's dotted name.
        value: Its value.
        conf: The folder of the configuration's files; what those of a group name may be called for that group.
    """
    *above, key = name.split(".")
    if not all(map(_NAME.fullmatch, above)):
        return True
    if key == "_target_":
        return len(above) != 1 or not isinstance(value, str) or value not in _ours(conf, above[0])
    keys = list(_keys(value))
    is_plain = bool(_NAME.fullmatch(key)) and all(map(_NAME.fullmatch, keys)) and key != "_target_"
    return not is_plain or any("${" in text for text in _texts(value))


def shown(value: Any) -> str:
    """Return a value of a record for the terminal: short, and without characters that it would obey."""
    return printable((value if isinstance(value, str) else repr(value))[:300])


def _texts(value: Any) -> Iterator[str]:
    """Yield every string of a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _keys(value: Any) -> Iterator[str]:
    """Yield every key of mappings within a value."""
    if isinstance(value, Mapping):
        yield from value
    if isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _keys(each)


@cache
def _ours(conf: Path, group: str) -> Collection[str]:
    """Return what the files of a group name."""
    files = (conf / group).glob("*.yaml")
    return frozenset(name for file in files for name in _NAMED.findall(file.read_text(encoding="utf-8")))
