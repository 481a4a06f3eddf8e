"""The project's version and address, as `--version` and `--help` print them."""

from importlib.metadata import PackageNotFoundError, version

HOME = "https://github.com/fedprox/fedprox"


def installed_version() -> str:
    """Return the version, such as "0.1.0"; "unknown" in a checkout that is not installed."""
    try:
        return version("fedprox")
    except PackageNotFoundError:
        return "unknown"


def version_line() -> str:
    """Return the program's name and version, such as "fedprox 0.1.0"."""
    known = installed_version()
    return f"fedprox {'(not installed)' if known == 'unknown' else known}"
