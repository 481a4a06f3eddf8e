"""Compiled functions: compiled at their first call, and cached on disk for the next process.

Numba compiles a function again if its own file has changed. But the code of the functions that it calls is compiled
into it, and these may be in other files: so what was compiled before any of our files has changed is removed.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
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
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # not beside the module, in the user's cache folder or in NUMBA_CACHE_DIR
        return cast(Function, njit(**options)(function))
    for file in _kept(made):
        forget_if_older(file, _last_change())
    return cast(Function, made)


def forget_if_older(file: Path, time_s: float) -> None:
    """Remove a file that was written before a time, in seconds since 1970; other processes may do so, too."""
    with suppress(OSError):
        if file.stat().st_mtime < time_s:
            file.unlink(missing_ok=True)


@cache
def _last_change() -> float:
    """Return when a file with compiled functions, or one that they call, was last changed."""
    package = Path(__file__).parents[2]
    return max(
        file.stat().st_mtime for folder in ("solvers", "evaluation") for file in (package / folder).rglob("*.py")
    )


def is_kept(function: Callable[..., Any]) -> bool:
    """Return whether a compiled function is cached on disk, so that its first call takes no seconds of compiling."""
    return getattr(function, "stats", None) is None or bool(_kept(function))  # no stats with NUMBA_DISABLE_JIT=1


def _kept(function: Any) -> list[Path]:
    """Return the files that list what is cached of a function."""
    stats = getattr(function, "stats", None)
    if stats is None or not stats.cache_path:
        return []
    return list(Path(stats.cache_path).glob(f"*.{function.__name__}-*.nbi"))
