"""The project's version and address, as `--version` and `--help` print them."""

from importlib.metadata import PackageNotFoundError, version

HOME = "https://github.com/fedprox/fedprox"


def version_line() -> str:
    """Return the program's name and version, such as "fedprox 0.1.0"."""
    try:
        return f"fedprox {version('fedprox')}"
    except PackageNotFoundError:  # run from a checkout
        return "fedprox (not installed)"
