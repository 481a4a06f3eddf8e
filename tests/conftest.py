"""What several tests need."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def data_dir() -> Path:
    """Return the folder that holds MNIST/raw; without it the test is skipped, under CI it fails."""
    folder = Path(os.environ.get("FEDPROX_DATA_DIR", "data"))
    if (folder / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        return folder
    missing = f"MNIST is not in {folder / 'MNIST' / 'raw'}; set FEDPROX_DATA_DIR to the folder that holds MNIST/raw"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
