"""`python -m benchmarks W1 [W2 ...]`: measure workloads in fresh processes, print a table, write JSON."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring, summary
from benchmarks.workloads import WORKLOADS, Case, Workload, against, changed, of_engine, shown_of
from fedprox.cli.options import Parser
from fedprox.errors import UserError

EXPORTED = ("W1", "W3")  # one command, logistic regression
PEERS = {name: Path(__file__).parent / "peers" / f"{name}_mnist.py" for name in ("fedjax", "pfl", "torch")}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and return the exit status: 0; 2 after an error, which is reported in one line; 130 if interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given[:1] == ["export"]:
            _export(given[1:])
        else:
            _measure(_parser().parse_args(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks",
        description="Measure workloads in fresh processes, in turn; print medians and ranges beside the goals. "
        "`python -m benchmarks export W1 FILE.npz` writes the data and cohorts of a workload for other programs.",
        epilog="; ".join(f"{workload.name}: {workload.what}" for workload in WORKLOADS.values()),
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument(
        "--runs", type=_positive, default=5, metavar="N", help="runs of each case (default: %(default)s)"
    )
    parser.add_argument("--only-engine", choices=["local", "ray"], help="leave out the cases of the other engine")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        choices=["reference", *PEERS],
        help="also measure this, in turn with the first case of each workload; may be repeated",
    )
    parser.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="the interpreter of a peer's environment, such as fedjax=/envs/fedjax/bin/python "
        "(default: the variable PEER_PYTHON_FEDJAX or PEER_PYTHON_PFL)",
    )
    parser.add_argument(
        "--rounds", type=_positive, metavar="N", help="rounds of each of our runs; goals do not apply then"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of all our runs; goals do not apply then",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    parser.add_argument("--profile", action="store_true", help="instead, show where the time of W1's rounds goes")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text}")
    return int(text)


def _export(given: Sequence[str]) -> None:
    if len(given) < 2 or given[0] not in EXPORTED:
        raise UserError(
            f"export needs {' or '.join(EXPORTED)}, a file and optional settings, got {shlex.join(given)!r}"
        )
    from benchmarks import export  # imports torch

    export.write([*WORKLOADS[given[0]].cases[0].commands[0], *given[2:]], Path(given[1]))


def _measure(arguments: argparse.Namespace) -> None:
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(
            f"--json names {arguments.json}, but the folder {arguments.json.parent} does not exist; create it"
        )
    overrides = [*arguments.override, *([f"num_rounds={arguments.rounds}"] if arguments.rounds else [])]
    if arguments.profile:
        from benchmarks import profiling

        print(profiling.table(profiling.profile_w1(overrides)))
        return
    peers = _peer_pythons(arguments.against, arguments.peer_python)
    workloads = _chosen(arguments.workloads)
    if arguments.only_engine:
        workloads = [of_engine(workload, arguments.only_engine) for workload in workloads]
    if overrides:
        workloads = [changed(workload, overrides) for workload in workloads]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        for opponent in reversed(dict.fromkeys(arguments.against)):
            workloads = [_with(workload, opponent, peers, overrides, Path(folder)) for workload in workloads]
        _run(workloads, arguments.runs, arguments.json)


def _chosen(names: Sequence[str]) -> list[Workload]:
    if not names:
        raise UserError(f"name a workload: {', '.join(WORKLOADS)}; see --help")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise UserError(f"unknown workload {unknown[0]}; choose from {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in dict.fromkeys(names)]


def _peer_pythons(opponents: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """Return the interpreter of each peer that has one; each opponent among them must."""
    pythons = {name: os.environ.get(f"PEER_PYTHON_{name.upper()}", "") for name in PEERS}
    for text in given:
        name, _, file = text.partition("=")
        if name not in PEERS or not file:
            raise UserError(f"--peer-python must be NAME=FILE with NAME one of {', '.join(PEERS)}, got {text}")
        pythons[name] = file
    for name in set(opponents) & set(PEERS):
        if not os.access(pythons[name], os.X_OK):
            raise UserError(
                f"--against {name} needs the interpreter of its environment, got {pythons[name] or 'none'}; "
                f"set --peer-python {name}=FILE (benchmarks/peers/README.md shows how to make one)"
            )
    return {
        name: os.path.abspath(file) for name, file in pythons.items() if file
    }  # links stay: they select the environment


def _with(workload: Workload, opponent: str, peers: dict[str, str], overrides: Sequence[str], folder: Path) -> Workload:
    """Return a workload with an opponent, unchanged if it has no case of ours; `folder` receives a peer's data."""
    if not workload.cases or not workload.cases[0].commands:
        return workload
    if opponent == "reference":
        return against(workload, "solver=reference", overrides=("solver=reference",))
    if workload.name not in EXPORTED:
        raise UserError(f"--against {opponent} supports {' and '.join(EXPORTED)}, not {workload.name}")
    file = folder / f"{workload.name}.npz"
    if not file.exists():
        measuring.export(workload.name, file, overrides)
    return against(workload, opponent, program=(peers[opponent], str(PEERS[opponent]), str(file)))


def _run(workloads: Sequence[Workload], runs: int, json_file: Path | None) -> None:
    """Measure with a line per run; after an interruption or an error the measurements so far are still written."""
    results: summary.Results = {}
    facts: dict[str, Any] = {"command": sys.argv[1:], "start": time.strftime("%Y-%m-%d %H:%M:%S"), "ours": {}}
    facts["load_average_before"] = os.getloadavg()
    cores = os.cpu_count() or 1
    try:
        for case, numbers, record in measuring.measure_in_turn(workloads, runs):
            results.setdefault(case.name, []).append(numbers)
            facts["ours"] = facts["ours"] or {key: record[key] for key in record if key in _FACTS}
            print(f"{case.name}, run {len(results[case.name])} of {runs}: {_line(case, numbers)}", flush=True)
    finally:
        if rows := [row for workload in workloads for row in summary.rows_of(workload, results, cores)]:
            print(f"\nmedian (range) of {runs}, {cores} cores\n\n{summary.table(rows)}")
        if json_file:
            json_file.write_text(json.dumps(summary.as_json(workloads, results, facts, cores), indent=1) + "\n")


_FACTS = ("versions", "git_commit", "hardware")


def _line(case: Case, numbers: dict[str, float]) -> str:
    keys = dict.fromkeys((*shown_of(case), "whole_s", "cpu_s"))
    return ", ".join(f"{key} {numbers[key]:.4g}" for key in keys if key in numbers)


if __name__ == "__main__":
    sys.exit(main())
