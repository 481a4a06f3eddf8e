"""The command line: Hydra composes the configuration, a run directory comes out."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# What others switch on by default; to be set before the imports that read it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedprox import config as schema
from fedprox.errors import UserError

_PACKAGE = Path(__file__).parent
_CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())  # installed, checkout


@hydra.main(version_base=None, config_path=str(_CONF), config_name="config")
def _job(config: DictConfig) -> float | None:
    """Run one job and return its final test accuracy; None after a mistake of the user's, which is told."""
    from fedprox import experiment  # imports torch: not for --help, nor for a configuration that does not compose

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its per-round lines repeat what metrics.csv says
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        last = experiment.run(plain, Path(HydraConfig.get().runtime.output_dir))  # type: ignore[arg-type]
    except (UserError, OSError) as error:  # the other jobs of a sweep go on
        _tell(error)
        return None
    return last.test.accuracy


_errors: list[str] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m fedprox.main`.

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Returns:
        The exit status: 0, or 2 after a mistake in the settings or the user's files, told in one line.
    """
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own handling prints many lines and exits with 1
    _errors.clear()
    schema.register()
    try:
        _job()
    except InstantiationException:  # not the user's mistake, or that would have been told
        raise
    except (HydraException, OmegaConfBaseException, OSError) as error:
        _tell(error)
    except KeyboardInterrupt:
        print("interrupted; what was measured is in the run directory", file=sys.stderr)
        return 130
    return 2 if _errors else 0


def _tell(error: BaseException) -> None:
    _errors.append(_one_line(error))
    print(f"error: {_errors[-1]}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    """Return an error's message in one line, without OmegaConf's notes on types."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("full_key:", "object_type="))]
    return "; ".join(told) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
