"""Arrays that took long to make, kept on disk in one file so that the next run need not make them."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.storage import checksum

FOLDER = ".fedprox-cache"

Arrays = dict[str, NDArray[Any]]
_log = logging.getLogger("fedprox")


def cached(places: list[Path], file: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Return make()'s arrays, from the first cache that says that it was made from `key`.

    A cache that cannot be read is made again; where none can be written there is none. Nothing is pickled,
    and a checksum is over all.

    Args:
        places: Folders that may hold the cache, in the order in which they are tried.
        file: Its name there, ending in .npz.
        key: What the arrays are made from; another key, another cache.
        make: Makes them; they hold numbers only, and none is called "key".
    """
    for place in places:
        if (arrays := _load(place / file, key)) is not None:
            return arrays
    arrays = make()
    if not any(_save(place, file, key, arrays) for place in places):
        _log.info("no cache can be written in %s; the next run reads all files again", " or ".join(map(str, places)))
    return arrays


def key_of(made_from: object) -> str:
    """Return the key of arrays made from this: versions, settings, names, sizes and times, as JSON can hold them."""
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def places(folder: Path, kind: str) -> list[Path]:
    """Return where a cache of what lies in `folder` may be.

    That is <folder>/.fedprox-cache, or else $XDG_CACHE_HOME (~/.cache)/fedprox/<kind>/<hash of the folder's
    absolute path>. A folder that nobody may write to is left alone, by root too.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:16]
    beside = [folder / FOLDER] if folder.stat().st_mode & 0o222 or (folder / FOLDER).exists() else []
    # Where no home is known, ~ stays ~.
    return [*beside, *([caches / "fedprox" / kind / name] if caches.is_absolute() else [])]


def _load(file: Path, key: str) -> Arrays | None:
    """Return a cache's arrays, or None where there is none, or a broken one, or one of other files."""
    try:
        with np.load(file, allow_pickle=False) as source:
            made_from, _, written = source["key"].tobytes().decode().partition("\n")
            if made_from != key:
                return None
            arrays = {name: source[name] for name in source.files if name != "key"}
        if checksum(key, arrays) != written:  # an archive's own checksums see not all damage
            raise ValueError
        return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file raises; it is only a copy
        _log.info("%s cannot be used (%s) and is made again", file, type(error).__name__)
        return None


def _save(place: Path, file: str, key: str, arrays: Arrays) -> bool:
    """Write the cache, at once or not at all; return whether it could be written."""
    unfinished = place / f"{uuid.uuid4().hex}.part"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as target:
            content = np.frombuffer(f"{key}\n{checksum(key, arrays)}".encode(), dtype=np.uint8)
            np.savez(target, key=content, **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, place / file)
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
