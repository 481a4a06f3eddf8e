"""A new run that begins at a round of an earlier one: `branch_from` and `branch_round`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprox.config.schema import Config
from fedprox.errors import UserError
from fedprox.experiment.same_data import check_same_data
from fedprox.runs.checkpoint import Checkpoint, of_round
from fedprox.runs.reader import RESUME_MAY_CHANGE, broken, differences, flattened, read_record, read_rows
from fedprox.runs.trust import PATHS
from fedprox.storage import TABLES

_MU = ("mu", "adaptive_mu")
DATA_SETTINGS = ("dataset", "partition", "feature_skew", "num_clients", "hold_out", "seed")  # that decide the data


def branch_point(run_dir: Path, round_num: int, config: Config, facts: Mapping[str, Any]) -> Checkpoint:
    """Return the state after a round of an earlier run, for a run with other settings.

    The strategy's state goes along if the strategy is the same, and that of adaptive mu if its settings are.

    Args:
        run_dir: The earlier run.
        round_num: After which of its rounds.
        config: Of the branch.
        facts: Of the branch, with the fingerprint of its data: they are the earlier run's, unless the settings of data
            or partition are others.

    Raises:
        UserError: If there is no such run, or it has not come to that round, or was made on other data, or has no
            checkpoint of that round.
    """
    record, present = read_record(run_dir / "run.json"), config.plain()
    settings = record["settings"]
    if all(_without_paths(settings.get(name)) == _without_paths(present.get(name)) for name in DATA_SETTINGS):
        check_same_data(facts, record, f"branch_from={run_dir}")
    rounds = [int(row["round"]) for row in _rows(run_dir / "clients.csv")]
    if round_num > max(rounds, default=0):
        raise UserError(
            f"branch_round must be at most {max(rounds, default=0)}, the rounds that {run_dir} has done, "
            f"got {round_num}"
        )
    point = of_round(round_num, run_dir)
    carried = dict(point.carried)
    if flattened(settings).get("strategy._target_") != config.strategy.target:
        carried["strategy"] = {**carried["strategy"], "layers": []}
    if any(settings.get(name) != present[name] for name in _MU):
        carried["mu"] = None
    return Checkpoint(round_num, point.arrays, carried, point.time_s, {}, None)


def _without_paths(node: Any) -> Any:
    return {name: value for name, value in node.items() if name not in PATHS} if isinstance(node, Mapping) else node


def adopted_rows(run_dir: Path, round_num: int) -> dict[str, list[dict[str, str]]]:
    """Return the rows with which a branch begins, by table: those of the earlier run up to where it is left."""
    tables = {name: _rows(run_dir / name) for name in TABLES}
    return {name: [row for row in rows if int(row["round"]) <= round_num] for name, rows in tables.items()}


def _rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a table by column; none if there is no file."""
    if not file.exists():
        return []
    header, rows = read_rows(file)
    found = [dict(zip(header, row, strict=True)) for row in rows]
    if not all(row.get("round", "").isdigit() for row in found):
        raise broken(file, "its rows must begin with the number of a round")
    return found


def lineage(run_dir: Path, round_num: int, config: Config) -> dict[str, Any]:
    """Return what run.json says of where a run comes from."""
    earlier = read_record(run_dir / "run.json")
    changed = differences(earlier["settings"], config.plain(), (*RESUME_MAY_CHANGE, "branch_from", "branch_round"))
    step = {"run": str(run_dir.resolve()), "round": round_num, "changed": changed}
    return {**step, "before": earlier.get("branched_from")}  # that run may be a branch too
