"""The token that Ray demands of everybody who connects, where this program has started it.

Ray listens on all of the machine's addresses, and whoever connects may run commands. A cluster that is joined by its
address has its own rules, and the user's environment says what it is told.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled


@contextmanager
def token_demanded() -> Iterator[None]:
    """Let a Ray that is started meanwhile demand a random token, which its processes and this one know.

    They inherit it with the environment; what this process starts later does not.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    earlier = {name: os.environ.get(name) for name in token}
    os.environ.update(token)
    try:
        token_of_the_environment()
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def token_of_the_environment() -> None:
    """Let Ray, which keeps what it has read, go by what the environment says now."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
