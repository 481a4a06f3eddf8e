"""From the configuration to a finished run directory."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedprox.config.schema import Config
from fedprox.errors import UserError
from fedprox.experiment.branch import adopted_rows, branch_point, lineage
from fedprox.experiment.build import Experiment, columns, loggers
from fedprox.experiment.data import data_name, summary
from fedprox.experiment.early_stopping import EarlyStopping
from fedprox.experiment.same_data import check_same_data, fingerprints
from fedprox.runs.checkpoint import Checkpoint, Checkpoints, forget_after, latest
from fedprox.runs.environment import environment
from fedprox.runs.loggers.group import Attached
from fedprox.runs.loggers.interface import RUN_ID
from fedprox.runs.progress import with_progress
from fedprox.runs.reader import Row, as_texts, read_metrics, read_record
from fedprox.runs.trust import PLACEMENT, shown
from fedprox.runs.writer import RunRecord
from fedprox.storage import check_no_links, files_of_a_run, locked
from fedprox.strategies.arrays import to_params

_log = logging.getLogger("fedprox")


def run(
    config: Config,
    run_dir: Path,
    *,
    resume: bool = False,
    origin: Mapping[str, Any] | None = None,
    on_begin: Callable[[], None] = lambda: None,
) -> Mapping[str, Any] | None:
    """Run one experiment and return the last row of its metrics.csv.

    Args:
        config: What to run.
        run_dir: An existing directory, which receives what `fedprox.runs.writer` describes.
        resume: Go on from the directory's last checkpoint, if it has one; it is of a run with this configuration.
        origin: More entries of run.json: how the configuration came about.
        on_begin: Called when nothing refuses the run any more, before the first file is written.

    What can fail comes first. Then all that an earlier run has left in the directory goes, unless it is resumed.

    Raises:
        UserError: If a setting or a data file is wrong; nothing is computed then, and the directory is as it was.
        RunStopped: If a fault ends the run; what was measured is there.
    """
    begin = time.perf_counter()
    if resume and (row := _final_row(config, run_dir)):
        _log.info("%s is finished already", run_dir)
        return row
    _check_sources_stay(config, run_dir, resume)
    experiment = Experiment.of(config)
    with locked(run_dir):
        facts = {**_facts(experiment), **(origin or {})}
        earlier = read_record(run_dir / "run.json") if resume and (run_dir / "run.json").exists() else None
        if earlier:
            check_no_links(run_dir)
            check_same_data(facts, earlier, f"resume={run_dir}")
        start = latest(run_dir) if earlier else None
        if resume and start is None:
            _log.info("%s has no checkpoint; the run begins with round 0", run_dir)
        if start and earlier:
            facts = _continued(facts, earlier, run_dir, start)
        state, adopted = start.record if start else None, {}
        source, earlier_rows = run_dir, list[Row]()
        if state:
            earlier_rows = read_metrics(run_dir / "metrics.csv", state["tables"]["metrics.csv"]["num_bytes"])
        elif config.branch_from and config.branch_round:
            source, left_at = Path(config.branch_from), config.branch_round
            start, adopted = branch_point(source, left_at, config, facts), adopted_rows(source, left_at)
            earlier_rows = read_metrics(source / "metrics.csv")[: len(adopted["metrics.csv"])]
            facts = {**facts, "branched_from": lineage(source, left_at, config)}
        if start:
            experiment.check_start(start, source)
        old = [] if state else files_of_a_run(run_dir)
        first_round = start.round_num + 1 if start else 0
        with (
            _telling_how_to_go_on(run_dir),
            Attached(loggers(config.logger), run_dir, facts, first_round, earlier_rows) as told,
        ):
            if state and start:
                forget_after(run_dir, start.round_num)
            _remove(old, run_dir, config.logger)
            on_begin()
            per_class, names = config.evaluation.per_class, experiment.data.examples.class_names
            with RunRecord(
                run_dir, facts, columns(config), per_class=per_class, class_names=names, state=state
            ) as record:
                if adopted:
                    record.adopt(adopted)
                _record_rounds(experiment, start, earlier_rows, record, told, begin)
    return record.final


def _check_sources_stay(config: Config, run_dir: Path, resume: bool) -> None:
    """Raise UserError if a new run would remove what it begins with."""
    if resume:
        return
    source, init = config.branch_from, Path(config.model.init)
    if source and any(_is_same(Path(source), folder) for folder in (run_dir, *run_dir.resolve().parents)):
        raise UserError(
            f"hydra.run.dir must be another directory than that of branch_from={source}, and not within it, got "
            f"{run_dir}; the run there would be lost"
        )
    if init.exists() and _is_same(init.resolve().parent, run_dir):
        raise UserError(
            f"model.init must not be in the directory of the new run, which removes the old model, got {init}; copy "
            "it, or name another hydra.run.dir"
        )


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _remove(old: Sequence[Path], run_dir: Path, names: Iterable[str]) -> None:
    """Remove what an earlier run has left, and by what names tools knew it that are not told of the new one."""
    tools = [run_dir / f"{name}{RUN_ID}" for name in names]
    unknown = [file for file in run_dir.glob(f"*{RUN_ID}") if file not in tools] if old else []
    for file in (*old, *unknown):
        file.unlink()
    (run_dir / "curves.png").unlink(missing_ok=True)  # of a run with fewer rounds


@contextmanager
def _telling_how_to_go_on(run_dir: Path) -> Iterator[None]:
    """Turn a disk that is full, a directory that has vanished and the like into a UserError."""
    try:
        yield
    except OSError as error:
        if not str(error.filename).startswith(str(run_dir)):
            raise
        raise UserError(
            f"{error.filename} cannot be written: {error.strerror}; once it can, resume={run_dir} goes on from the "
            "last checkpoint"
        ) from error


def _record_rounds(
    experiment: Experiment,
    start: Checkpoint | None,
    earlier_rows: Sequence[Row],
    record: RunRecord,
    loggers: Attached,
    begin: float,
) -> None:
    """Run the rounds that are left, and finish the record."""
    config, rounds_begin = experiment.config, time.perf_counter()
    arrays, earlier_s = (start.arrays, start.time_s) if start else (experiment.arrays, 0.0)
    round_num = start.round_num if start else 0
    first_round = round_num + 1 if start else 0
    stopping = EarlyStopping(**config.early_stopping.model_dump())
    for earlier in earlier_rows:
        stopping.observe(earlier)
    with Checkpoints(record, every=config.checkpoint.every, keep=config.checkpoint.keep) as checkpoints:
        rounds = iter(()) if stopping.is_over else experiment.rounds(start)
        for outcome in with_progress(rounds, config.num_rounds, algorithm(config), first_round):
            if new := record.lacks(outcome):
                checkpoints.forget()
                record.widen(new)
            row = record.add(outcome)
            loggers.log(row)
            experiment.settings.failures.check(outcome)
            arrays, round_num = outcome.arrays, outcome.round_num
            is_over = stopping.observe(row)
            checkpoints.after(outcome)
            if is_over:
                break
    now = time.perf_counter()
    timings = {"setup_s": rounds_begin - begin, "rounds_s": now - rounds_begin, "total_s": now - begin}
    timings |= {name: timings[name] + earlier_s for name in ("rounds_s", "total_s")}
    early = {"stopped_early": {"round": round_num, "metric": stopping.metric}} if stopping.is_over else {}
    record.finish(to_params(arrays), timings, experiment.grid.peak_memory_bytes(), early)


def algorithm(config: Config) -> str:
    """Return what a run is called in tables and figures, such as "FedAvg", "FedProx (mu = 1)" or "FedAdam".

    "FedAvg" alone is the one that drops stragglers; any other says whose it is, as in "FedAvg (flwr)".
    """
    package, _, name = config.strategy.target.rpartition(".")
    more = []
    if name == "FedAvgWithStragglerDrop":
        name = "FedAvg"
    elif name == "FedAvg":
        more = [package.partition(".")[0]]
    if config.mu or config.adaptive_mu.enabled or name in ("FedProx", "FedDane"):
        more.append(f"mu = {config.mu:g}")
    return f"{name} ({', '.join(more)})" if more else name


def _facts(experiment: Experiment) -> dict[str, Any]:
    """Return what run.json says before the first round."""
    config = experiment.config
    return {
        "algorithm": algorithm(config),
        "name": data_name(config.dataset),
        "data": summary(experiment.data),
        **({"classes": list(names)} if (names := experiment.data.examples.class_names) else {}),
        "fingerprint": fingerprints(experiment.data),
        "seed": config.seed,
        "repetition": config.repeat_num,
        "settings": {name: value for name, value in config.plain().items() if name != "resume"},
        **environment(),
    }


def _final_row(config: Config, run_dir: Path) -> Mapping[str, Any] | None:
    """Return the last row of a run that has finished, with as many rounds as are wanted now; else None."""
    if not (run_dir / "run.json").exists():
        return None
    record = read_record(run_dir / "run.json")
    lengths = (config.num_rounds, config.early_stopping.model_dump())
    is_as_long = tuple(map(record["settings"].get, ("num_rounds", "early_stopping"))) == lengths
    is_finished = record["status"] == "finished" and is_as_long
    return (record.get("result") or {}).get("final") if is_finished else None


def _continued(
    facts: Mapping[str, Any], earlier: Mapping[str, Any], run_dir: Path, start: Checkpoint
) -> dict[str, Any]:
    """Return the facts of a resumed run: those of its first process, and when which other one took over."""
    present = {name: facts[name] for name in ("command", "versions", "git_commit", "hardware")}
    if any(earlier.get(name) != present[name] for name in ("versions", "git_commit")):
        _log.warning("%s was begun by another version of the program; its numbers may differ from now on", run_dir)
    for name, (was, now) in _moved(earlier["settings"], facts["settings"]).items():
        _log.info("resumed with %s=%s (was %s), which a record does not decide", name, now, shown(was))
    resumed = [*earlier.get("resumed", []), {"after_round": start.round_num, **present}]
    kept = {name: earlier[name] for name in (*present, "branched_from") if name in earlier}
    return {**facts, **kept, "resumed": resumed}


def _moved(earlier: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return where a run computes and whom it tells otherwise than before: setting -> what it was and is."""
    was, now = (as_texts({name: each[name] for name in PLACEMENT if name in each}) for each in (earlier, present))
    names = [name for name in was if was[name] != now.get(name)]
    return {name: (was[name], now.get(name, "null")) for name in names}
