"""What is drawn once a run has finished, whoever started it; it imports no figures before then."""

import logging
from pathlib import Path

from fedprox.errors import USER_CODE_ERRORS, on_record


def draw_curves(run_dir: Path) -> None:
    """Draw curves.png unless it exists; a failure is only a warning, because everything else is written."""
    if (run_dir / "curves.png").exists():
        return
    try:
        from fedprox.report.curves import save_curves  # here: a run that fails does not need matplotlib

        save_curves(run_dir)
    except USER_CODE_ERRORS as error:  # matplotlib depends on the user's settings and fonts, and perhaps on LaTeX
        log = logging.getLogger("fedprox")
        log.warning("cannot draw curves.png; the other files are complete: %s", on_record(error))
