"""Allow-list of the settings that a run takes over from another run's record, which may come from a stranger.

A record is data. It may decide those settings of the schema that change numbers. Where a run computes, connects, reads
and writes is decided by the command alone, and so is every function that it calls and that is not this project's own.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedprox.config.schema import GROUPS, SETTINGS, present_form
from fedprox.errors import printable
from fedprox.runs.reader import PLACEMENT_SETTINGS, flattened

# Settings that a record never decides; how often it writes checkpoints is harmless.
PLACEMENT = tuple(name for name in PLACEMENT_SETTINGS if name != "checkpoint")
# Settings of any group that name files or folders
PATHS = ("data_dir", "path", "test_path", "cache_dir", "glove", "script", "output")
MAX_SETTINGS = 1000  # far more than any run has
_NAMED = re.compile(r"_target_: *([\w.]+)")
_NAME = re.compile(r"[A-Za-z]\w*")
_NO_PATH = re.compile(r"[\w.+ -]*")

Settings = Mapping[str, Any]


def recorded_settings(settings: Settings) -> dict[str, Any]:
    """Return a record's settings as dotted name -> value without those of PLACEMENT; lists are values.

    Raises:
        ValueError: If they do not have the form of this program's settings.
    """
    settings = present_form(settings)
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
    """Return whether a setting's name or value could stand for a file, a folder or an address."""
    group, _, key = name.partition(".")
    if key.endswith("_target_"):
        return False
    if name == "model.init":
        return value not in ("default", "zeros")
    texts = list(_texts(value))
    return (group in GROUPS and key in PATHS) or not all(map(_NO_PATH.fullmatch, texts))


def is_refused(name: str, value: Any, conf: Path) -> bool:
    """Return whether a record may not decide a setting, because it calls foreign code or contains a reference.

    Args:
        name: The setting's dotted name.
        value: Its value.
        conf: The folder of the configuration files; a group may call only the targets that its files name.
    """
    *above, key = name.split(".")
    if not all(map(_NAME.fullmatch, above)):
        return True
    if key == "_target_":
        return len(above) != 1 or not isinstance(value, str) or value not in _ours(conf, above[0])
    is_plain = all(map(_NAME.fullmatch, (key, *_texts(value, keys_only=True))))  # Hydra's keywords begin with _
    return not is_plain or any("${" in text for text in _texts(value))


def shown(value: Any) -> str:
    """Return a value of a record for the terminal: shortened, without control characters."""
    return printable((value if isinstance(value, str) else repr(value))[:300])


def _texts(value: Any, keys_only: bool = False) -> Iterator[str]:
    """Yield every key and, unless `keys_only`, every other string within a value."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each, keys_only)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each, keys_only)
    elif isinstance(value, str) and not keys_only:
        yield value


@cache
def _ours(conf: Path, group: str) -> Collection[str]:
    """Return the targets that the configuration files of a group name."""
    files = (conf / group).glob("*.yaml")
    return frozenset(name for file in files for name in _NAMED.findall(file.read_text(encoding="utf-8")))
