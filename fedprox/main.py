"""The command line: Hydra composes the configuration, a run directory comes out."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

# What others switch on by default; to be set before the imports that read it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedprox import config as schema
from fedprox.errors import UserError

_PACKAGE = Path(__file__).parent
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())  # installed, checkout
_failures: list[int] = []  # exit statuses of the jobs that failed


@hydra.main(version_base=None, config_path=str(CONF), config_name="config")
def _job(config: DictConfig) -> float | None:
    """Run one job and return its final test accuracy; None if it failed: the other jobs of a sweep go on."""
    from fedprox import experiment  # here: it imports torch, which --help does not need

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its per-round lines repeat what metrics.csv says
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        last = experiment.run(schema.plain(config), run_dir)
    except (UserError, OmegaConfBaseException, OSError) as error:
        _fail(error)
        return None
    except Exception:
        traceback.print_exc()
        _failures.append(1)
        return None
    logging.getLogger("fedprox").info("results: %s", os.path.relpath(run_dir))
    return last.test.accuracy if last.test else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m fedprox.main`.

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Returns:
        The exit status: 0; 2 after a mistake in the settings or the user's files, told in one line; 1 after
        an error in the code.
    """
    given = sys.argv[1:] if argv is None else argv
    sys.argv[1:] = sorted(given, key=_is_override)  # Hydra takes overrides on one side of its options only
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own handling prints many lines and exits with 1
    _failures.clear()
    schema.register()
    try:
        _job()
    except KeyboardInterrupt:
        print("interrupted; what was measured is in the run directory", file=sys.stderr)
        return 130
    except SystemExit as end:  # --help, an option that Hydra does not know, or a sweep with a wrong value
        return int(end.code or 0)
    except Exception as error:  # from composing the configuration or making the run directory; jobs keep theirs
        _fail(error)
    return max(_failures, default=0)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and (word.startswith("~") or "=" in word)


def _fail(error: Exception) -> None:
    print(f"error: {schema.explained(error)}", file=sys.stderr)
    _failures.append(2)


if __name__ == "__main__":
    sys.exit(main())
