"""The command line: Hydra composes the configuration, a run directory comes out."""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fedprox.process import exit_status, import_without_gc, switch_off_telemetry, terminated_like_interrupted

switch_off_telemetry()  # before the imports that read it

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedprox.cli.jobs import earlier_run
from fedprox.cli.options import Parser
from fedprox.cli.resume import whole_command, without_resume
from fedprox.cli.sweep import forget_other_sweeper, is_job, note_job, remove_new_run_dir, table_at_the_end
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.config.compose import CONF, as_given, checked, explained
from fedprox.config.documentation import help_text
from fedprox.config.schema import Config
from fedprox.errors import USER_CODE_ERRORS, RunStopped, UserError, on_record
from fedprox.report.finished import draw_curves
from fedprox.runs.log import begin_log
from fedprox.runs.reader import COMPLETE, read_record


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m fedprox.main`.

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Returns:
        The exit status: 0; 2 after a mistake in the settings or the user's files, reported in one line; 1 after
        a fault that ended a run, reported in one line, or an error in the code.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints many lines and exits with 1
    try:
        given = whole_command(sys.argv[1:] if argv is None else argv)
    except Exception as error:  # from composing the configuration of an earlier run
        _report(error)
        return 2
    forget_other_sweeper(given)
    sys.argv[1:] = sorted(given, key=_is_override)  # Hydra accepts overrides only on one side of its options
    with tempfile.TemporaryDirectory(prefix="fedprox-") as folder:
        failures = Path(folder)

        @hydra.main(version_base=None, config_path=str(CONF), config_name="config")
        def job(config: DictConfig) -> float | None:
            return _run_and_report(config, failures)

        try:
            _check_options()
            with table_at_the_end(), terminated_like_interrupted():
                job()
        except KeyboardInterrupt as interrupt:
            kept = "what was measured is in the run directory; continue with resume=<run directory>"
            print(f"interrupted; {kept}", file=sys.stderr)
            return exit_status(interrupt)
        except SystemExit as end:  # --help, --version, or a sweep with a wrong value
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:  # from composing the configuration or making the run directory; jobs handle theirs
            _report(error)
            return 2
        return max((int(path.name) for path in failures.iterdir()), default=0)


def _check_options() -> None:
    """Answer --help and --version, and raise UserError for an unknown option, which Hydra reports in many lines."""
    parser = Parser(add_help=False)
    parser.add_argument("--version", action="version", version=version_line())  # instead of Hydra's
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


def _run_and_report(config: DictConfig, failures: Path) -> float | None:
    """Run one job and return its objective, or None if it failed, so that a sweep's other jobs run.

    Args:
        config: As Hydra composed it.
        failures: A folder, in which a failed job creates a file named by its exit status: the job may run in another
            process, and Hydra does not report how it ended.
    """
    why = ""
    if multiprocessing.parent_process():  # a process of joblib's, whose standard output may have lost its reader
        logging.raiseExceptions = False
    try:
        return _run(config)
    except USER_CODE_ERRORS as error:
        why, status = on_record(error), 1
        if isinstance(error, (UserError, OSError, MemoryError)):
            status = 2
        if isinstance(error, SystemExit):
            print(f"error: {why} ended the run", file=sys.stderr)
        elif status == 2 or isinstance(error, RunStopped):
            _report(error)
        else:
            traceback.print_exc()
        (failures / str(status)).touch()
        remove_new_run_dir()
    finally:
        note_job(failures, why)
    return None


def _run(config: DictConfig) -> float | None:
    """Run one job, or its remaining rounds, and return its objective."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides = without_resume(as_given(hydra_config.overrides.task))
    origin = {"config_name": hydra_config.job.config_name, "overrides": overrides}
    settings = checked(config)
    earlier = earlier_run(run_dir, settings.plain()) if is_job() else None
    if earlier and earlier["status"] in COMPLETE:
        logging.getLogger("fedprox").info("%s is finished already", os.path.relpath(run_dir))
        return _value(settings, run_dir, earlier.get("result"))
    if settings.is_deployment:
        return _submit(settings, run_dir, resume=bool(settings.resume or earlier), origin=origin)
    with import_without_gc("fedprox.experiment.run"):
        from fedprox.experiment import run as experiment  # here: it imports torch, which --help does not need

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its lines per round repeat metrics.csv
    last = experiment.run(
        *(settings, run_dir),
        resume=bool(settings.resume or earlier),
        origin=origin,
        on_begin=lambda: begin_log(run_dir, config, HydraConfig.instance().cfg),
    )
    draw_curves(run_dir)
    logging.getLogger("fedprox").info("%sresults: %s", _result(run_dir), os.path.relpath(run_dir))
    return _value(settings, run_dir, {"final": last})


def _value(settings: Config, run_dir: Path, result: Mapping[str, Any] | None) -> float | None:
    """Return what a sweeper optimises: the objective, by default a result's final test accuracy, or else its loss."""
    if settings.objective is not None:
        from fedprox.experiment.build import objective  # here: it imports torch, which --help does not need

        return objective(settings).value_of(run_dir)
    final = (result or {}).get("final") or {}
    values = (final.get(f"test_{name}") for name in ("accuracy", "loss"))  # regression has no accuracy
    return next((float(value) for value in values if value is not None), None)


def _submit(settings: Config, run_dir: Path, *, resume: bool, origin: Mapping[str, Any]) -> float | None:
    """Run one job on a federation, and return its objective if its run directory is on this machine."""
    with import_without_gc("fedprox.deployment.submit"):
        from fedprox.deployment.submit import submit

    logging.getLogger("flwr").setLevel(logging.ERROR)
    record = submit(settings, run_dir, resume=resume, origin=origin)
    if record is None:
        return None
    draw_curves(run_dir)
    logging.getLogger("fedprox").info("%sresults: %s", _result(run_dir), os.path.relpath(run_dir))
    return _value(settings, run_dir, record["result"])


def _result(run_dir: Path) -> str:
    """Return a run's result, such as "accuracy 0.8123 after round 100, best 0.8234 in round 87; "."""
    result = read_record(run_dir / "run.json")["result"]
    for name in ("accuracy", "loss"):  # regression has no accuracy
        if result and all(isinstance(result[row][f"test_{name}"], float) for row in ("final", "best")):
            final, best = result["final"], result["best"]
            summary = f"{name} {final[f'test_{name}']:.4f} after round {final['round']}"
            return f"{summary}, best {best[f'test_{name}']:.4f} in round {best['round']}; "
    return ""


def _report(error: BaseException) -> None:
    print(f"error: {explained(error)}", file=sys.stderr)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and (word.startswith("~") or "=" in word)


def command() -> NoReturn:
    """Run the program and exit: the entry point of `fedprox` and of `python -m fedprox.main`."""
    with suppress(OSError):  # the working directory may have been removed
        if not sys.flags.safe_path and sys.path[0] != os.getcwd():
            sys.path.insert(0, os.getcwd())  # as `python -m` does: the user's modules are there
    status = ends_quietly(main)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupting the exit would leave Ray's processes behind
    gc.freeze()  # saves a tenth of a second: the interpreter collects garbage at exit
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        # Threads may still compute, and the interpreter can crash if it exits meanwhile.
        atexit._run_exitfuncs()
        logging.shutdown()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
