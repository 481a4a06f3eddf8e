"""The command line: Hydra composes the configuration, a run directory comes out."""

import argparse
import atexit
import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

# What others switch on by default; to be set before the imports that read it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedprox.cli.jobs import earlier_run
from fedprox.cli.resume import whole_command, without_resume
from fedprox.cli.sweep import is_job, note_job, remove_new_run_dir, table_at_the_end
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.config.compose import CONF, as_given, checked, explained
from fedprox.config.documentation import help_text
from fedprox.errors import USERS, RunStopped, UserError, on_record
from fedprox.process import exit_status, looking_for_no_garbage, terminated_like_interrupted
from fedprox.runs.log import begin_log
from fedprox.runs.reader import read_record


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m fedprox.main`.

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Returns:
        The exit status: 0; 2 after a mistake in the settings or the user's files, told in one line; 1 after
        a fault that ended a run, told likewise, or an error in the code.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own handling prints many lines and exits with 1
    try:
        given = whole_command(sys.argv[1:] if argv is None else argv)
    except Exception as error:  # from composing the configuration of an earlier run
        _tell(error)
        return 2
    sys.argv[1:] = sorted(given, key=_is_override)  # Hydra takes overrides on one side of its options only
    with tempfile.TemporaryDirectory(prefix="fedprox-") as folder:
        failures = Path(folder)

        @hydra.main(version_base=None, config_path=str(CONF), config_name="config")
        def job(config: DictConfig) -> float | None:
            return _ended(config, failures)

        try:
            _check_options()
            with table_at_the_end(), terminated_like_interrupted():
                job()
        except KeyboardInterrupt as interrupt:
            print("interrupted; what was measured is in the run directory, and resume=<it> goes on", file=sys.stderr)
            return exit_status(interrupt)
        except SystemExit as end:  # --help, --version, or a sweep with a wrong value
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:  # from composing the configuration or making the run directory; jobs keep theirs
            _tell(error)
            return 2
        return max((int(path.name) for path in failures.iterdir()), default=0)


def _check_options() -> None:
    """Answer --help and --version, and raise UserError for an unknown option, which Hydra reports in many lines."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help for all options and settings")

    parser = argparse.ArgumentParser(add_help=False)
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=version_line())  # in the place of Hydra's
    parser.add_argument("overrides", nargs="*")
    for flag in ("--help -h", "--hydra-help", "--resolve", "--run -r", "--multirun -m", "--shell-completion -sc"):
        parser.add_argument(*flag.split(), action="store_true")
    for option in ("--package -p", "--config-path -cp", "--config-name -cn", "--config-dir -cd"):
        parser.add_argument(*option.split())
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    infos = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", choices=infos)
    if parser.parse_args(sys.argv[1:]).help:
        print(help_text(HOME))
        raise SystemExit(0)


def _ended(config: DictConfig, failures: Path) -> float | None:
    """Run one job and return its final test accuracy; None if it failed: the other jobs of a sweep go on.

    Args:
        config: As Hydra composed it.
        failures: A folder that gets a file named by the exit status if the job fails; it may run in a process of
            its own, and Hydra tells nobody what became of it.
    """
    why = ""
    if multiprocessing.parent_process():  # of joblib's; its standard output may have lost its reader, too
        logging.raiseExceptions = False
    try:
        return _run(config)
    except USERS as error:
        why, status = on_record(error), 1
        if isinstance(error, (UserError, OSError, MemoryError)):
            status = 2
        if isinstance(error, SystemExit):
            print(f"error: {why} ended the run", file=sys.stderr)
        elif status == 2 or isinstance(error, RunStopped):
            _tell(error)
        else:
            traceback.print_exc()
        (failures / str(status)).touch()
        remove_new_run_dir()
    finally:
        note_job(failures, why)
    return None


def _run(config: DictConfig) -> float | None:
    """Run one job, or what is left of it, and return its final test accuracy."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides = without_resume(as_given(hydra_config.overrides.task))
    origin = {"config_name": hydra_config.job.config_name, "overrides": overrides}
    settings = checked(config)
    earlier = earlier_run(run_dir, settings.plain()) if is_job() else None
    if earlier and earlier["status"] == "finished":
        logging.getLogger("fedprox").info("%s is finished already", os.path.relpath(run_dir))
        return float(earlier["result"]["final"]["test_accuracy"])
    with looking_for_no_garbage("fedprox.experiment.run"):
        from fedprox.experiment import run as experiment  # here: it imports torch, which --help does not need

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its per-round lines repeat what metrics.csv says
    last = experiment.run(
        *(settings, run_dir),
        resume=bool(settings.resume or earlier),
        origin=origin,
        on_begin=lambda: begin_log(run_dir, config, HydraConfig.instance().cfg),
    )
    _draw_curves(run_dir)
    logging.getLogger("fedprox").info("%sresults: %s", _result(run_dir), os.path.relpath(run_dir))
    return float(last["test_accuracy"]) if last else None


def _draw_curves(run_dir: Path) -> None:
    """Draw curves.png unless it is there; it may fail, because everything else is written."""
    if (run_dir / "curves.png").exists():
        return
    try:
        from fedprox.report.curves import save_curves  # here: matplotlib is of no use to a run that fails

        save_curves(run_dir)
    except USERS as error:  # matplotlib goes by settings and fonts of the user's, and by LaTeX where they say so
        logging.getLogger("fedprox").warning("curves.png could not be drawn, all else is there: %s", on_record(error))


def _result(run_dir: Path) -> str:
    """Return what a run came to, such as "accuracy 0.8123 after round 100, best 0.8234 in round 87; "."""
    result = read_record(run_dir / "run.json")["result"]
    if not result or not all(isinstance(result[row]["test_accuracy"], float) for row in ("final", "best")):
        return ""
    final, best = result["final"], result["best"]
    ended = f"accuracy {final['test_accuracy']:.4f} after round {final['round']}"
    return f"{ended}, best {best['test_accuracy']:.4f} in round {best['round']}; "


def _tell(error: BaseException) -> None:
    print(f"error: {explained(error)}", file=sys.stderr)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and (word.startswith("~") or "=" in word)


def command() -> NoReturn:
    """Run the program as a process of its own, which ends here: `fedprox`, or `python -m fedprox.main`."""
    with suppress(OSError):  # of a working directory that is gone
        if not sys.flags.safe_path and sys.path[0] != os.getcwd():
            sys.path.insert(0, os.getcwd())  # as `python -m` does: the user's modules are there
    status = ends_quietly(main)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but to end, which would leave Ray's processes behind
    gc.freeze()  # or else the interpreter looks through all that is left, just to end: a tenth of a second
    if status in (
        128 + signal.SIGINT,
        128 + signal.SIGTERM,
    ):  # threads may still compute, and the interpreter can crash if it ends meanwhile
        atexit._run_exitfuncs()
        logging.shutdown()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
