"""Cache of arrays that take long to make: one file on disk, reused by the next run."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.storage import checksum

FOLDER = ".fedprox-cache"

Arrays = dict[str, NDArray[Any]]
_log = logging.getLogger("fedprox")


def cached(places: list[Path], file: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Return make()'s arrays, from the first cache that was made from `key`.

    A cache that cannot be read is made again; if none can be written, there is none. Nothing is pickled, and a checksum
    covers all of it.

    Args:
        places: Folders that may hold the cache, in the order in which they are tried.
        file: Its name there, ending in .npz.
        key: Stands for what the arrays are made from; another key means another cache.
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
    """Return where a cache of the files in `folder` may be.

    That is <folder>/.fedprox-cache, or else $XDG_CACHE_HOME (~/.cache)/fedprox/<kind>/<hash of the folder's absolute
    path>. Nothing is written to a read-only folder, not even by root.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:16]
    beside = [folder / FOLDER] if folder.stat().st_mode & 0o222 or (folder / FOLDER).exists() else []
    # If no home is known, ~ stays ~.
    return [*beside, *([caches / "fedprox" / kind / name] if caches.is_absolute() else [])]


def _load(file: Path, key: str) -> Arrays | None:
    """Return a cache's arrays, or None if it is missing, broken or made from another key."""
    try:
        with np.load(file, allow_pickle=False) as source:
            made_from, _, written = source["key"].tobytes().decode().partition("\n")
            if made_from != key:
                return None
            arrays = {name: source[name] for name in source.files if name != "key"}
        if checksum(key, arrays) != written:  # the archive's own checksums miss some damage
            raise ValueError
        return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file raises; it is only a copy
        _log.info("%s cannot be used (%s) and is made again", file, type(error).__name__)
        return None


def _save(place: Path, file: str, key: str, arrays: Arrays) -> bool:
    """Write the whole cache or nothing; return whether it was written."""
    content = np.frombuffer(f"{key}\n{checksum(key, arrays)}".encode(), dtype=np.uint8)
    try:
        place.mkdir(parents=True, exist_ok=True)
        # A folder of its own, because several processes may write the same cache; it disappears after an error, too.
        with TemporaryDirectory(dir=place) as unfinished:
            np.savez(Path(unfinished) / file, key=content, **arrays)  # type: ignore[arg-type]
            (Path(unfinished) / file).replace(place / file)
        return True
    except OSError:
        return False
