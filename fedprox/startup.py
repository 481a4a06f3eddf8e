"""Garbage collection kept away from what stays until the end anyway."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Look for no garbage while large libraries are imported, nor ever again in what they leave.

    They make hundreds of thousands of objects that stay until the end; looking through them time and again
    takes a seventh of a short run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Look only through what is made meanwhile; afterwards through everything again, so that nothing is kept for good.

    Flower's Bulyan and QFedAvg ask for a collection once per reply, which takes a tenth of a second or more where it
    looks through all that a run has loaded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
