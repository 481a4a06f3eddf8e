"""The runs of a figure: missing ones are done, finished ones are kept."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from fedprox.config.compose import compose
from fedprox.config.schema import Config
from fedprox.reproduce.specs import Job
from fedprox.runs.reader import COMPLETE, duration, status_of

Run = Callable[[Config, Path], object]


def run_missing(
    jobs: Iterable[Job],
    out: Path,
    place: Mapping[str, Sequence[str]] | None = None,
    run: Run | None = None,
) -> int:
    """Run each job that has no finished run with its settings, and return how many there were.

    The settings of all jobs are checked before the first one runs.

    Args:
        jobs: May name a run twice; it is done once.
        out: The parent of the folder runs/.
        place: Data set -> more overrides, for the location of its files and for the engine.
        run: Runs one configuration into an existing folder; None for `fedprox.experiment.run.run`.

    Raises:
        UserError: If a setting or a data file is invalid.
    """
    from fedprox.experiment import run as experiment  # imports torch, which --help does not need
    from fedprox.experiment.build import check_settings

    logging.getLogger("flwr").setLevel(logging.ERROR)  # its lines per round repeat metrics.csv
    configs = settings_of({folder_of(job, out): job for job in jobs}, place or {})
    for config in configs.values():
        check_settings(config)
    states = {folder: status_of(folder, config.plain()) for folder, config in configs.items()}
    missing = {folder: config for folder, config in configs.items() if states[folder] not in COMPLETE}
    print(f"{len(configs)} runs, {len(configs) - len(missing)} of them already done", flush=True)
    start = time.perf_counter()
    for number, (folder, config) in enumerate(missing.items()):
        left_s = (time.perf_counter() - start) / number * (len(missing) - number) if number else None
        left = "" if left_s is None else f", about {duration(left_s)} left"
        print(f"run {number + 1} of {len(missing)}{left}: {folder.name}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (run or partial(experiment.run, resume=states[folder] is not None))(config, folder)
    return len(missing)


def folder_of(job: Job, out: Path) -> Path:
    """Return a job's run directory."""
    return out / "runs" / job.name


def settings_of(jobs: Mapping[Path, Job], place: Mapping[str, Sequence[str]]) -> dict[Path, Config]:
    """Return the resolved configuration of each job by folder."""
    composed = cache(compose)  # repetitions share it, as composing takes a tenth of a second
    configs = {}
    for folder, job in jobs.items():
        # Some of the paper's runs diverge and are drawn nevertheless.
        overrides = ("on_divergence=continue", f"seed={job.seed}", *job.overrides, *place.get(job.dataset, ()))
        repetition = {"repeat_num": job.repetition} if job.repetition else {}
        configs[folder] = composed(overrides).model_copy(update=repetition)
    return configs
