"""What makes the first seconds of a command shorter."""

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
