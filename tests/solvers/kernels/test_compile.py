import os
import subprocess
import sys
from pathlib import Path

import fedprox
from fedprox.solvers.kernels.compile import forget_if_older

PACKAGE = Path(fedprox.__file__).parent
COMPILES = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from fedprox.solvers.kernels.logistic import exponential
from fedprox.solvers.kernels.compile import is_kept
import numpy as np
print(is_kept(exponential))
exponential(np.zeros(1, np.float32))
"""
SOLVES = """
from fedprox.solvers.logistic import LogisticSolver
from fedprox.solvers.problem import SgdSettings
LogisticSolver(SgdSettings(0.1, 10))
"""


def compiled_in(folder: Path, code: str = COMPILES) -> tuple[str, bool]:
    """Compile in a new process that has its cache in a folder.

    Returns:
        Whether it found the function there, as it printed it, and whether its log announced that it compiles.
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.strip(), "compiling the solver" in ended.stderr


def test_what_was_compiled_is_announced_and_kept_until_any_file_with_kernels_is_changed(tmp_path):
    assert compiled_in(tmp_path, COMPILES + SOLVES) == ("False", True)
    assert compiled_in(tmp_path, COMPILES + SOLVES) == ("True", False)
    changed = max(file.stat().st_mtime for file in (PACKAGE / "evaluation").rglob("*.py"))
    for index in tmp_path.rglob("*.nbi"):  # as if that file, which is not the function's own, had changed since
        os.utime(index, (changed - 1, changed - 1))
    assert compiled_in(tmp_path)[0] == "False"


def test_a_file_that_is_gone_already_is_no_error(tmp_path):
    forget_if_older(tmp_path / "missing", 1.0)
