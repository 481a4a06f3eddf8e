import os
import subprocess
import sys
from pathlib import Path

import fedprox
from fedprox.solvers.kernels.compile import forget_if_older

PACKAGE = Path(fedprox.__file__).parent
COMPILES = """
import sys
from fedprox.solvers.kernels.logistic import exponential
from fedprox.solvers.kernels.compile import is_kept
import numpy as np
print(is_kept(exponential))
exponential(np.zeros(1, np.float32))
"""


def is_kept_in(folder: Path) -> bool:
    """Compile in a new process that has its cache in a folder, and return whether it found the function there."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", COMPILES]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.split() == ["True"]


def test_what_was_compiled_before_any_file_with_kernels_changed_is_compiled_again(tmp_path):
    assert not is_kept_in(tmp_path)
    assert is_kept_in(tmp_path)
    changed = max(file.stat().st_mtime for file in (PACKAGE / "evaluation").rglob("*.py"))
    for index in tmp_path.rglob("*.nbi"):  # as if that file, which is not the function's own, had changed since
        os.utime(index, (changed - 1, changed - 1))
    assert not is_kept_in(tmp_path)


def test_a_file_that_is_gone_already_is_no_error(tmp_path):
    forget_if_older(tmp_path / "missing", 1.0)
