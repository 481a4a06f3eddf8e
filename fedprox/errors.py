"""Mistakes that the user can mend, and how they are told: in one line."""


class UserError(ValueError):
    """A mistake in the settings or in the user's files, told in one line that says what to do.

    `fedprox.main` and `fedprox.report` print it without a traceback and exit with status 2.
    """


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, Hydra's and OmegaConf's many-line ones included."""
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "name another place with hydra.run.dir=<folder>, in a sweep hydra.sweep.dir=<folder>"
        return " ".join(f"{error.filename}: {error.strerror}; {remedy}".splitlines())
    told = _told(error)
    if isinstance(error, MemoryError):
        told = [
            f"there is not enough memory ({'; '.join(told) or 'no more is said'}); ask for less, such as fewer clients"
        ]
    if override := getattr(error, "override", None):  # Hydra's grammar errors know it but do not say it
        told.insert(0, f"{override} is not understood")
    if key := getattr(error, "full_key", None):  # OmegaConf's
        told.insert(0, f"{key}:")
    if told and told[0].startswith("Error merging override") and error.__cause__:
        told += _told(error.__cause__)[:1]  # the cause says what is wrong with the value
    text = " ".join("; ".join(told).splitlines()) or type(error).__name__  # what is quoted may have breaks of its own
    return text.replace(":; ", ": ").replace(".; ", "; ")


def _told(error: BaseException) -> list[str]:
    """Return a message's lines that tell the user something."""
    lines = [line.strip() for line in str(error).partition("Config search path:")[0].splitlines()]
    return [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https://"))]
