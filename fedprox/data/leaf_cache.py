"""Arrays made from large JSON files, kept on disk so that the next run needs no JSON."""

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

VERSION = 1  # of what the arrays mean; a cache of another version is made anew
SMALLEST_BYTES = 5_000_000  # less JSON than this is read faster than a cache is worth
SLOW_BYTES = 300_000_000  # more JSON than this takes two seconds and is told
FOLDER, FILE = ".fedprox-cache", "leaf.npz"

Arrays = dict[str, NDArray[Any]]
_log = logging.getLogger("fedprox")


def cached(folder: Path, files: list[Path], make: Callable[[], Arrays]) -> Arrays:
    """Return make()'s arrays, from the cache where the files are those it was made from.

    The cache is one file, <folder>/.fedprox-cache/leaf.npz, or where nothing can be written there
    $XDG_CACHE_HOME (~/.cache)/fedprox/leaf/<hash of the folder's absolute path>/leaf.npz. It says from
    what names, sizes and times of change it was made. Where it cannot be read it is made again; where it
    cannot be written there is none.

    Args:
        folder: Where the data set lies.
        files: All files that `make` reads, below `folder`.
        make: Reads them; its arrays hold numbers only.
    """
    try:
        status = [(str(file.relative_to(folder)), file.stat()) for file in files]
    except OSError:
        return make()  # which says of a file that it cannot be read
    size_bytes = sum(stat.st_size for _, stat in status)
    if size_bytes < SMALLEST_BYTES:
        return make()
    key = _key([(name, stat.st_size, stat.st_mtime_ns) for name, stat in status])
    places = _places(folder)
    for place in places:
        if (arrays := _load(place / FILE, key)) is not None:
            return arrays
    if size_bytes > SLOW_BYTES:
        _log.info("reading %d LEAF files, %.1f GB ...", len(files), size_bytes / 1e9)
    arrays = make()
    if not any(_save(place, key, arrays) for place in places):
        _log.info("no cache can be written in %s; the next run reads all files again", " or ".join(map(str, places)))
    return arrays


def _key(files: list[tuple[str, int, int]]) -> str:
    """Return what a cache must have been made from: the format and each file's name, size and time of change."""
    return hashlib.sha256(json.dumps([VERSION, sorted(files)]).encode()).hexdigest()


def _places(folder: Path) -> list[Path]:
    """Return the folders that may hold the cache, in the order in which they are tried."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:16]
    # Where no home is known, ~ stays ~.
    return [folder / FOLDER, *([caches / "fedprox" / "leaf" / name] if caches.is_absolute() else [])]


def _load(file: Path, key: str) -> Arrays | None:
    """Return a cache's arrays, or None where there is none, or a broken one, or one of other files."""
    try:
        with np.load(file, allow_pickle=False) as source:
            if source["key"].tobytes().decode() != key:
                return None
            return {name: source[name] for name in source.files if name != "key"}
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file raises; it is only a copy
        _log.info("%s cannot be used (%s) and is made again", file, type(error).__name__)
        return None


def _save(place: Path, key: str, arrays: Arrays) -> bool:
    """Write the cache, at once or not at all; return whether it could be written."""
    unfinished = place / f"{uuid.uuid4().hex}.part"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as target:
            np.savez(target, key=np.frombuffer(key.encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, place / FILE)
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
