"""From the checked configuration to a finished run directory; configuration goes no further down than here."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedprox import assembly, data_assembly, records
from fedprox.arrays import to_params, to_record
from fedprox.building import build
from fedprox.config_checks import check
from fedprox.data.federated import FederatedData
from fedprox.measuring import several_at_once
from fedprox.outcomes import Round
from fedprox.plan import ExperimentProtocol
from fedprox.progress import watched
from fedprox.rounds import run_rounds
from fedprox.strategy import Planned


def run(config: Mapping[str, Any], run_dir: Path) -> Round:
    """Run one experiment and return its last round.

    Args:
        config: The resolved configuration as plain containers.
        run_dir: An existing directory, which receives what `fedprox.records` describes.

    Raises:
        UserError: If a setting or a data file is wrong; nothing is computed then.
    """
    start = time.perf_counter()
    protocol = check_settings(config)
    data = data_assembly.divided_data(config)
    model = assembly.initial_model(config, data)
    arrays = to_record(model.state_dict())
    strategy = Planned(
        build(config, "strategy", Strategy),
        assembly.plan(config, data, protocol),
        assembly.local_statistics(config, arrays),
    )
    grid = assembly.engine(config, data, model)
    evaluation = config["evaluation"]
    on_clients = evaluation["name"] == "clients"
    rounds = run_rounds(
        arrays=arrays,
        strategy=strategy,
        grid=grid,
        evaluate=assembly.evaluation(config, data, model),
        mu=assembly.mu(config),
        num_rounds=config["num_rounds"],
        evaluate_every=evaluation["every"],
        measure_gamma=on_clients,
        learning_rate_factor=assembly.schedule(config),
    )
    columns = records.METRICS + records.FEDERATION * on_clients
    columns += records.SPREAD * evaluation.get("per_client", False) + ("mu",) * config["adaptive_mu"]["enabled"]
    per_class = evaluation.get("per_class", False)
    setup_s = time.perf_counter() - start
    with records.RunRecord(run_dir, _facts(config, data), columns, per_class=per_class) as record:
        rounds_start = time.perf_counter()
        for outcome in watched(several_at_once(rounds), config["num_rounds"], algorithm(config)):
            record.add(outcome)
        now = time.perf_counter()
        timings = {"setup_s": setup_s, "rounds_s": now - rounds_start, "total_s": now - start}
        record.finish(to_params(outcome.arrays), timings, grid.peak_memory_bytes())
    _draw_curves(run_dir)
    return outcome


def check_settings(config: Mapping[str, Any]) -> ExperimentProtocol:
    """Return the protocol, after every check that needs no data.

    Raises:
        UserError: If a setting is wrong.
    """
    check(config)
    protocol: ExperimentProtocol = build(config, "protocol", ExperimentProtocol)
    protocol.check(config["num_epochs"], config["stragglers_fraction"], config["sampling"])
    return protocol


def _draw_curves(run_dir: Path) -> None:
    """Write curves.png from what the run directory says."""
    from fedprox.report.curves import save_curves  # here: matplotlib is of no use to a run that fails

    save_curves(run_dir)


def algorithm(config: Mapping[str, Any]) -> str:
    """Return what a run is called in tables and figures, such as "FedAvg" or "FedProx (mu = 1)"."""
    name = config["strategy"]["_target_"].rsplit(".", 1)[-1]
    if name == "FedAvgWithStragglerDrop":
        return f"FedAvg (mu = {config['mu']:g})" if config["mu"] else "FedAvg"
    return f"{name} (mu = {config['mu']:g})"


def _facts(config: Mapping[str, Any], data: FederatedData) -> dict[str, Any]:
    """Return what run.json says before the first round."""
    return {
        "algorithm": algorithm(config),
        "name": data_assembly.data_name(config),
        "data": data_assembly.summary(data),
        "seed": config["seed"],
        "repetition": config.get("repeat_num", 0),
        "settings": dict(config),
        **records.environment(),
    }
