"""Compiled functions: compiled at their first call, and cached on disk for the next process."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, *, fastmath: Collection[str] = ("contract",)) -> Function:
    """Return a function that is compiled at its first call, and cached on disk if a cache folder is writable.

    Args:
        function: A function of numbers and arrays.
        fastmath: Departures from IEEE 754: "contract" fuses products and sums, "reassoc" reorders sums.
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:  # not beside the module, in the user's cache folder or in NUMBA_CACHE_DIR
        return cast(Function, njit(**options)(function))


def is_kept(function: Callable[..., Any]) -> bool:
    """Return whether a compiled function is cached on disk, so that its first call takes no seconds of compiling."""
    stats = getattr(function, "stats", None)  # None with NUMBA_DISABLE_JIT=1
    if stats is None or not stats.cache_path:
        return stats is None
    return any(Path(stats.cache_path).glob(f"*.{function.__name__}-*.nbi"))
