"""What --version prints."""

from importlib.metadata import PackageNotFoundError, version


def version_line() -> str:
    """Return the program's name and version, such as "fedprox 0.1.0"."""
    try:
        return f"fedprox {version('fedprox')}"
    except PackageNotFoundError:  # run from a checkout
        return "fedprox (not installed)"
