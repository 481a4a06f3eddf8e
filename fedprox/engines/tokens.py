"""The token that a Ray started by this program requires from every process that connects.

Ray listens on all addresses of the machine, and a process that connects may run commands. A cluster that is joined by
its address has its own rules; the token for it comes from the user's environment.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled


@contextmanager
def token_required() -> Iterator[None]:
    """Let a Ray that starts in this context require a random token, which only its processes and this one know.

    Ray's processes inherit it with the environment; processes that start after this context do not.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    earlier = {name: os.environ.get(name) for name in token}
    os.environ.update(token)
    try:
        reload_token()
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def reload_token() -> None:
    """Let Ray read the token from the environment again instead of using a cached one."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
