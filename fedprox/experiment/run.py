"""A run, from its configuration to a complete run directory."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedprox.config.schema import Config
from fedprox.errors import UserError
from fedprox.experiment.arrival import as_line, devices_fingerprint, participation
from fedprox.experiment.beginning import Beginning, check_sources_stay, final_row, find_beginning
from fedprox.experiment.build import Experiment, client_columns, columns, early_stopping, loggers
from fedprox.experiment.data import attack_of, data_name
from fedprox.experiment.early_stopping import EarlyStopping
from fedprox.experiment.privacy import privacy_facts
from fedprox.experiment.trained import model_facts
from fedprox.federation.results import Round
from fedprox.runs.checkpoint import Checkpoints, forget_after
from fedprox.runs.contributions import write_contributions
from fedprox.runs.environment import environment
from fedprox.runs.loggers.group import Attached
from fedprox.runs.loggers.interface import RUN_ID
from fedprox.runs.model_card import write_card
from fedprox.runs.progress import with_progress
from fedprox.runs.writer import RunRecord
from fedprox.storage import files_of_a_run, locked
from fedprox.strategies.arrays import to_params

_log = logging.getLogger("fedprox")
Progress = Callable[[Iterator[Round], int, str, int], Iterator[Round]]
_TITLES = {"FedAvgWithStragglerDrop": "FedAvg", "Scaffold": "SCAFFOLD"}
_OURS = ("FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedNova", "FedDyn", "SCAFFOLD")


def run(
    config: Config,
    run_dir: Path,
    *,
    resume: bool = False,
    origin: Mapping[str, Any] | None = None,
    on_begin: Callable[[], None] = lambda: None,
    flower_grid: Grid | None = None,
    progress: Progress = with_progress,
) -> Mapping[str, Any] | None:
    """Run one experiment and return the last row of its metrics.csv.

    All that can be refused is checked first. Only then are the files of an earlier run in the directory removed,
    unless that run is resumed.

    Args:
        config: The experiment's configuration.
        run_dir: An existing directory, which receives what `fedprox.runs.writer` describes.
        resume: Continue from the directory's last checkpoint, if it has one, of a run with this configuration.
        origin: More entries of run.json: how the configuration came about.
        on_begin: Called after all checks, before the first file is written.
        flower_grid: Flower's own grid in a ServerApp, for engine=deployment; None in a simulation.
        progress: Yields the rounds that it gets, and shows how far the run is.

    Raises:
        UserError: If a setting or a data file is wrong; then nothing is computed, and the directory is unchanged.
        RunStopped: If a fault ends the run; what was measured is kept.
    """
    begin = time.perf_counter()
    if resume and (row := final_row(config, run_dir)):
        _log.info("%s is finished already", run_dir)
        return row
    if not resume:
        check_sources_stay(config, run_dir)
    experiment = Experiment.of(config, flower_grid)
    with locked(run_dir):
        facts = {**_facts(experiment), **(origin or {})}
        beginning = find_beginning(config, run_dir, facts, resume=resume)
        if beginning.start:
            experiment.check_start(beginning.start, beginning.source)
        old = [] if beginning.tables else files_of_a_run(run_dir)
        own_loggers = loggers(config.logger)
        with (
            _explaining_how_to_continue(run_dir),
            Attached(own_loggers, run_dir, beginning.facts, beginning.first_round, beginning.rows) as attached,
        ):
            if beginning.tables:
                forget_after(run_dir, beginning.first_round - 1)
            _remove(old, run_dir, config.logger)
            on_begin()
            with RunRecord(
                run_dir,
                beginning.facts,
                columns(config),
                client_columns=client_columns(config),
                per_class=config.evaluation.per_class,
                class_names=experiment.facts.examples.class_names,
                state=beginning.tables,
            ) as record:
                if beginning.adopted:
                    record.adopt(beginning.adopted)
                _record_rounds(experiment, beginning, record, attached, begin, progress)
    return record.final


def _remove(old: Sequence[Path], run_dir: Path, names: Iterable[str]) -> None:
    """Remove the files of an earlier run, and its ids in logging tools that this run does not use."""
    tools = [run_dir / f"{name}{RUN_ID}" for name in names]
    unknown = [file for file in run_dir.glob(f"*{RUN_ID}") if file not in tools] if old else []
    for file in (*old, *unknown):
        file.unlink()
    (run_dir / "curves.png").unlink(missing_ok=True)  # of a run with fewer rounds


@contextmanager
def _explaining_how_to_continue(run_dir: Path) -> Iterator[None]:
    """Turn a full disk, a directory that has vanished and the like into a UserError."""
    try:
        yield
    except OSError as error:
        if not str(error.filename).startswith(str(run_dir)):
            raise
        raise UserError(
            f"{error.filename} cannot be written: {error.strerror}; fix that, and continue from the last checkpoint "
            f"with resume={run_dir}"
        ) from error


def _record_rounds(
    experiment: Experiment,
    beginning: Beginning,
    record: RunRecord,
    loggers: Attached,
    begin: float,
    progress: Progress,
) -> None:
    """Run the remaining rounds, and finish the record."""
    config, start, rounds_begin = experiment.config, beginning.start, time.perf_counter()
    arrays, round_num, earlier_s = experiment.arrays, 0, 0.0
    if start:
        arrays, round_num, earlier_s = start.arrays, start.round_num, start.time_s
    stopping = early_stopping(config)
    for earlier in beginning.rows:
        stopping.observe(earlier)
    resumed_from = start if beginning.tables else None
    with Checkpoints(record, **config.checkpoint.model_dump(), start=resumed_from) as checkpoints:
        rounds = iter(()) if stopping.is_over else experiment.rounds(start)
        for outcome in progress(rounds, config.num_rounds, algorithm(config), beginning.first_round):
            if new := record.lacks(outcome):
                checkpoints.widen(new)
            row = record.add(outcome)
            loggers.log(row)
            experiment.settings.failures.check(outcome)
            arrays, round_num = outcome.arrays, outcome.round_num
            is_over = stopping.observe(row)
            checkpoints.after(outcome)
            if is_over:
                break
    now = time.perf_counter()
    timings = {
        "setup_s": rounds_begin - begin,
        "rounds_s": now - rounds_begin + earlier_s,
        "total_s": now - begin + earlier_s,
    }
    is_cut = experiment.private is not None and not stopping.is_over and round_num < config.num_rounds
    status = "budget" if is_cut else "finished"
    more = {"stopped_early": _reason(stopping, round_num)} if stopping.is_over else {}
    if shares := participation(experiment.strategy.plan, record.path):
        _log.info("%s", as_line(shares))
    if config.contribution.name != "none":
        write_contributions(record.path)
    model = model_facts(config, experiment.facts, beginning.facts["git_commit"])
    write_card(record.path, beginning.facts, record.state, model)
    record.finish(to_params(arrays), timings, experiment.grid.peak_memory_bytes(), {**more, **shares}, status, model)


def _reason(stopping: EarlyStopping, round_num: int) -> dict[str, Any]:
    """Return why a run ended before its last round."""
    missed = {} if stopping.missed is None else {"missed": stopping.missed}
    return {"round": round_num, "metric": stopping.metric, **missed}


def algorithm(config: Config) -> str:
    """Return a run's name in tables and figures, such as "FedAvg", "FedProx (mu = 1)" or "FedAdam".

    "FedAvg" is the strategy that drops stragglers; any other has its package's name, as in "FedAvg (flwr)", and so has
    every strategy of the name of one of ours.
    """
    package, _, name = config.strategy.target.rpartition(".")
    more = []
    if package.startswith("fedprox."):
        name = _TITLES.get(name, name)
    elif name in _OURS:
        more = [package.partition(".")[0]]
    if config.mu or config.adaptive_mu.enabled or name in ("FedProx", "FedDane"):
        more.append(f"mu = {config.mu:g}")
    more += [*privacy(config), *personal(config), *compression(config), *lateness(config)]
    return f"{name} ({', '.join(more)})" if more else name


def privacy(config: Config) -> list[str]:
    """Return what protects the clients, such as ["epsilon = 2"] or ["noise 1"]."""
    own = config.privacy
    if not own.is_on:
        return []
    return [f"noise {own.noise_multiplier:g}" if own.epsilon is None else f"epsilon = {own.epsilon:g}"]


def compression(config: Config) -> list[str]:
    """Return what happens to updates on the way to the server, such as ["top 1%", "8 bits", "feedback"]."""
    update = config.update
    return [
        *([f"top {100 * update.top_k.fraction:g}%"] if update.top_k else []),
        *([f"{update.quantise.bits} bits"] if update.quantise else []),
        *(["partial"] if update.names else []),
        *(["feedback"] if update.error_feedback else []),
        *(["secure sum"] if config.secure_aggregation.name != "none" else []),
    ]


def personal(config: Config) -> list[str]:
    """Return the method of personalisation, such as ["Ditto 1"]; empty for none."""
    settings = config.personalisation
    titles = {
        "local": "local training",
        "fine_tuning": f"fine-tuned {settings.epochs}",
        "fedper": "FedPer",
        "fedrep": "FedRep",
        "lg": "LG-FedAvg",
        "fedbn": "FedBN",
        "apfl": f"APFL {settings.alpha or 0:g}",
        "ditto": f"Ditto {settings.weight or 0:g}",
    }
    return [titles[settings.name]] if settings.name in titles else []


def lateness(config: Config) -> list[str]:
    """Return what the server does about late clients, such as ["K = 5 of 10", "a = 0.5"]; nothing if it waits."""
    arrival = config.arrival
    if arrival.name == "deadline":
        return [f"{arrival.seconds:g} s a round"]
    if arrival.name == "buffered":
        return [f"K = {arrival.buffer} of {arrival.concurrency}", f"a = {arrival.discount:g}"]
    return []


def attacked(config: Config) -> str:
    """Return what is appended to a data set's name, such as ", sign flip by 20%"."""
    attack = attack_of(config)
    return f", {attack.title} by {100 * attack.fraction:g}%" if attack else ""


def _facts(experiment: Experiment) -> dict[str, Any]:
    """Return the entries of run.json that are known before the first round."""
    config, known = experiment.config, experiment.facts
    return {
        "algorithm": algorithm(config),
        "name": (Path(config.client.script).name if config.client.script else data_name(config.dataset))
        + attacked(config),
        "data": str(known),
        **({"classes": list(names)} if (names := known.examples.class_names) else {}),
        "fingerprint": {**known.fingerprint(), **devices_fingerprint(config, experiment.strategy.plan)},
        "seed": config.seed,
        "repetition": config.repeat_num,
        "settings": {name: value for name, value in config.plain().items() if name != "resume"},
        **({"privacy": privacy_facts(config, experiment.private)} if experiment.private else {}),
        **experiment.grid.facts(),
        **environment(),
    }
