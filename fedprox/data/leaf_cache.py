"""Arrays made from large JSON files, kept on disk so that the next run needs no JSON."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from fedprox.data import array_cache
from fedprox.data.array_cache import Arrays

VERSION = 2  # of what the arrays mean; a cache of another version is made anew
SMALLEST_BYTES = 5_000_000  # less JSON than this is read faster than a cache is worth
SLOW_BYTES = 300_000_000  # more JSON than this takes two seconds and is told
FILE = "leaf.npz"

_log = logging.getLogger("fedprox")


def cached(folder: Path, files: list[Path], make: Callable[[], Arrays]) -> Arrays:
    """Return make()'s arrays, from the cache where the files are those it was made from.

    The cache is one file, leaf.npz, in the first of `array_cache.places` that can be written. It says from
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

    def make_and_tell() -> Arrays:
        if size_bytes > SLOW_BYTES:
            _log.info("reading %d LEAF files, %.1f GB ...", len(files), size_bytes / 1e9)
        return make()

    key = _key([(name, stat.st_size, stat.st_mtime_ns) for name, stat in status])
    return array_cache.cached(array_cache.places(folder, "leaf"), FILE, key, make_and_tell)


def _key(files: list[tuple[str, int, int]]) -> str:
    """Return what a cache must have been made from: the format and each file's name, size and time of change."""
    return hashlib.sha256(json.dumps([VERSION, sorted(files)]).encode()).hexdigest()
