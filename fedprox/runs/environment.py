"""Facts that a result may depend on besides the settings: versions, commit, hardware."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("flwr", "torch", "torchvision", "ray", "numpy", "hydra-core")


def environment() -> dict[str, Any]:
    """Return command, versions, commit and hardware."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": _git_commit(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),  # of torch, and of engine=local unless it sets its own
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())],
        },
    }


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the installed PACKAGES; engine=local does not need Ray."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@cache  # the code of this process was read only once, too
def _git_commit() -> str | None:
    """Return the commit of this code, with "-dirty" if files have changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def _cpu_name() -> str:
    """Return the processor's name, from /proc if it exists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
