"""Compiled functions: made at their first call, and kept on disk for the next process."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, *, fastmath: Collection[str] = ("contract",)) -> Function:
    """Return a function compiled at its first call, and kept on disk where a folder for that can be written.

    Args:
        function: Of numbers and arrays.
        fastmath: What LLVM may do beyond IEEE 754: "contract" fuses products and sums, "reassoc" reorders sums.
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:  # neither beside the module, nor in the user's cache folder, nor in NUMBA_CACHE_DIR
        return cast(Function, njit(**options)(function))


def is_kept(function: Callable[..., Any]) -> bool:
    """Return whether a compiled function is on disk, so that its first call will not take seconds."""
    stats = getattr(function, "stats", None)  # plain Python has none
    if stats is None or not stats.cache_path:
        return stats is None
    return any(Path(stats.cache_path).glob(f"*.{function.__name__}-*.nbi"))
