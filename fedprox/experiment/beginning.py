"""Where a run begins: at round 0, after its own last checkpoint, or after a round of another run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprox.config.schema import DEFAULTS, Config
from fedprox.errors import UserError
from fedprox.runs.checkpoint import Checkpoint, latest, of_round
from fedprox.runs.reader import (
    RESUME_MAY_CHANGE,
    Row,
    as_texts,
    broken,
    differences,
    flattened,
    read_metrics,
    read_record,
    read_rows,
)
from fedprox.runs.trust import PATHS, PLACEMENT, shown
from fedprox.storage import TABLES, check_own_files

_log = logging.getLogger("fedprox")
_MU = ("mu", "adaptive_mu")
_KEPT = ("personalisation", "momentum_buffer")  # that decide what clients keep
_DATA = ("dataset", "partition", "feature_skew", "client", "num_clients", "hold_out", "seed")  # that decide the data


@dataclass(frozen=True)
class Beginning:
    """Where a run begins, and what it takes over from earlier rounds.

    Attributes:
        facts: Entries of run.json.
        start: The state to continue from; None for round 0.
        source: Directory of the run that reached this state.
        rows: Rows of metrics.csv up to there.
        adopted: For a branch, rows of the other run by table, which its own tables begin with.
    """

    facts: Mapping[str, Any]
    start: Checkpoint | None = None
    source: Path = Path()
    rows: Sequence[Row] = ()
    adopted: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)

    @property
    def first_round(self) -> int:
        """The first round to be recorded."""
        return self.start.round_num + 1 if self.start else 0

    @property
    def tables(self) -> Mapping[str, Any] | None:
        """How far the tables in the run's own directory are; None unless the run is resumed."""
        return (self.start.record if self.start else None) or None


def find_beginning(config: Config, run_dir: Path, facts: Mapping[str, Any], *, resume: bool) -> Beginning:
    """Return where a run begins; a run that is to be resumed but has no checkpoint begins like a new one.

    Args:
        config: Of the run.
        run_dir: Its directory.
        facts: What this process would write into run.json.
        resume: Whether to continue from the directory's last checkpoint.

    Raises:
        UserError: If the earlier run or the branch's other run is damaged, or was made on other data.
    """
    if resume and (found := _resumed(run_dir, facts)):
        return found
    if config.branch_from and config.branch_round:
        return _branched(Path(config.branch_from), config.branch_round, config, facts)
    return Beginning(facts)


def _resumed(run_dir: Path, facts: Mapping[str, Any]) -> Beginning | None:
    if (run_dir / "run.json").exists():
        earlier = read_record(run_dir / "run.json")
        check_own_files(run_dir)
        check_same_data(facts, earlier, f"resume={run_dir}")
        if start := latest(run_dir):
            rows = read_metrics(run_dir / "metrics.csv", start.record["tables"]["metrics.csv"]["num_bytes"])
            return Beginning(_continued(facts, earlier, run_dir, start), start, run_dir, rows)
    _log.info("%s has no checkpoint; the run begins with round 0", run_dir)
    return None


def _continued(
    facts: Mapping[str, Any], earlier: Mapping[str, Any], run_dir: Path, start: Checkpoint
) -> dict[str, Any]:
    """Return the facts of a resumed run: those of its first process, and a list of the processes that resumed it."""
    present = {name: facts[name] for name in ("command", "versions", "git_commit", "hardware")}
    if any(earlier.get(name) != present[name] for name in ("versions", "git_commit")):
        _log.warning("%s was started by another version of the program; its numbers may differ from now on", run_dir)
    was, now = (_placement(settings) for settings in (earlier["settings"], facts["settings"]))
    for name in was:
        if was[name] != now.get(name):
            value = now.get(name, "null")
            _log.info("resumed with %s=%s (was %s), which a record does not decide", name, value, shown(was[name]))
    resumed = [*earlier.get("resumed", []), {"after_round": start.round_num, **present}]
    kept = {name: earlier[name] for name in (*present, "branched_from") if name in earlier}
    return {**facts, **kept, "resumed": resumed}


def _placement(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of where a run computes and which loggers it has."""
    return as_texts({name: settings[name] for name in PLACEMENT if name in settings})


def _branched(source: Path, round_num: int, config: Config, facts: Mapping[str, Any]) -> Beginning:
    """Return the state of another run after a round, as far as the branch has the same settings.

    Its data must be the other run's, unless the settings of data or partition differ.
    """
    earlier, present = read_record(source / "run.json"), config.plain()
    settings = earlier["settings"]
    if all(_without_paths(settings.get(name)) == _without_paths(present.get(name)) for name in _DATA):
        its_own = {name: value for name, value in facts["fingerprint"].items() if name != "devices"}
        check_same_data({**facts, "fingerprint": its_own}, earlier, f"branch_from={source}")
    adopted = adopted_rows(source, round_num)
    rounds_done = max((int(row["round"]) for row in adopted["clients.csv"]), default=0)
    if round_num > rounds_done:
        raise UserError(
            f"branch_round must be at most {rounds_done}, the rounds that {source} has completed, got {round_num}"
        )
    point = of_round(round_num, source)
    carried = dict(point.carried)
    if flattened(settings).get("strategy._target_") != config.strategy.target:
        carried["strategy"] = {**carried["strategy"], "layers": []}
    was_private = settings.get("privacy", {}).get("name") == "client"
    if config.privacy.is_on and not was_private:
        raise UserError(
            f"branch_from={source} trained without privacy, so its model may give away any client, got privacy=client; "
            "branch off from a private run, or start a new one"
        )
    if was_private and not config.privacy.is_on:
        carried["strategy"] = {**carried["strategy"], "layers": []}
    was = {**DEFAULTS, **settings}
    if any(was[name] != present[name] for name in _KEPT):
        carried["strategy"] = {**carried["strategy"], "statistics": None}
    if settings.get("update") != present["update"]:
        carried["channel"] = {}
    if any(settings.get(name) != present[name] for name in _MU):
        carried["mu"] = None
    lineage = {
        "run": str(source.resolve()),
        "round": round_num,
        "changed": differences(settings, present, (*RESUME_MAY_CHANGE, "branch_from", "branch_round")),
        "before": earlier.get("branched_from"),  # the other run may be a branch, too
    }
    start = Checkpoint(round_num, point.arrays, carried, point.time_s, {}, None)
    rows = read_metrics(source / "metrics.csv")[: len(adopted["metrics.csv"])]
    return Beginning({**facts, "branched_from": lineage}, start, source, rows, adopted)


def _without_paths(node: Any) -> Any:
    return {name: value for name, value in node.items() if name not in PATHS} if isinstance(node, Mapping) else node


def adopted_rows(run_dir: Path, round_num: int) -> dict[str, list[dict[str, str]]]:
    """Return a run's rows up to a round, by table; a missing table has none."""
    tables = {name: _rows(run_dir / name) for name in TABLES}
    return {name: [row for row in rows if int(row["round"]) <= round_num] for name, rows in tables.items()}


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    header, rows = read_rows(file)
    found = [dict(zip(header, row, strict=True)) for row in rows]
    if not all(row.get("round", "").isdigit() for row in found):
        raise broken(file, "each row must begin with the number of a round")
    return found


def check_same_data(present: Mapping[str, Any], earlier: Mapping[str, Any], option: str) -> None:
    """Raise UserError if an earlier run had other data, or its record has no fingerprint of them.

    Args:
        present: Facts of the present run, with the entry "fingerprint".
        earlier: The run.json of the earlier run.
        option: The option that names the earlier run, for the message.
    """
    was, now = earlier.get("fingerprint"), present["fingerprint"]
    if not isinstance(was, Mapping):
        raise UserError(f"{option} has no fingerprint of its data, so they may differ; start a new run")
    changed = next((name for name in now if was.get(name) != now[name]), None)
    if changed:
        what = {
            "data": "other data: the examples are",
            "partition": "other data: the division of the examples among clients is",
            "script": "another script: its text is",
            "devices": "other devices: their speeds are",
        }
        source = {"script": "script", "devices": "table of devices"}.get(changed, "data")
        raise UserError(
            f"{option} had {what[changed]} not the same (fingerprint {was.get(changed, '')!s:.8} then); restore the "
            f"{source}, or start a new run"
        )


def final_row(config: Config, run_dir: Path) -> Mapping[str, Any] | None:
    """Return the last row of a run that has finished with as many rounds as the configuration asks for, else None."""
    if not (run_dir / "run.json").exists():
        return None
    record = read_record(run_dir / "run.json")
    names = ("num_rounds", "early_stopping", "pruning_bar")
    is_as_long = list(map(record["settings"].get, names)) == list(map(config.plain().get, names))
    is_finished = record["status"] == "finished" and is_as_long
    return (record.get("result") or {}).get("final") if is_finished else None


def check_sources_stay(config: Config, run_dir: Path) -> None:
    """Raise UserError if a new run would remove a file that it begins with."""
    source, init = config.branch_from, Path(config.model.init)
    if source and any(_is_same(Path(source), folder) for folder in (run_dir, *run_dir.resolve().parents)):
        raise UserError(
            f"hydra.run.dir must be outside the directory of branch_from={source}, whose run would be lost, got "
            f"{run_dir}; name another hydra.run.dir"
        )
    if init.exists() and _is_same(init.resolve().parent, run_dir):
        raise UserError(
            f"model.init must not be in the directory of the new run, which removes the old model, got {init}; copy "
            "it, or name another hydra.run.dir"
        )


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
