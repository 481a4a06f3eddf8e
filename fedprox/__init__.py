"""FedProx (Li et al., MLSys 2020) on Flower: federated optimisation in heterogeneous networks.

The names below are loaded when they are first used: importing the package takes no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedprox.api import Comparison, Run, compare, load_model, load_run, run
    from fedprox.errors import RunStopped, UserError

    __version__: str

__all__ = ["Comparison", "Run", "RunStopped", "UserError", "__version__", "compare", "load_model", "load_run", "run"]


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name == "__version__":
        from fedprox.cli.version import installed_version

        return installed_version()
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("fedprox.errors" if name in ("RunStopped", "UserError") else "fedprox.api"), name)
    raise AttributeError(f"module 'fedprox' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted({*globals(), *__all__})
