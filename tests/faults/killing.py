"""Runs that are killed at random moments and resumed must equal the uninterrupted run, byte for byte.

    python tests/faults/killing.py --runs 100 --engine local --at-once 2 --out /tmp/killing_local
    python tests/faults/killing.py --runs 100 --engine ray --out /tmp/killing_ray

Each run is a process of its own (`python -m fedprox.main`: digits, with evaluations, a strategy that has state, and
checkpoints at one of several intervals). It is hit by SIGKILL, SIGTERM, SIGINT or what Ctrl-C sends to a whole
terminal, and with engine=ray also by the SIGKILL of one actor, after which it must continue. None of its child
processes may outlive it except two agents of Ray's, which end a minute after their raylet. The moments are drawn
from --seed over the process's whole life, most of them within the rounds, some within the last writes. The directory
is then checked: no damaged checkpoint, no row lost from before the last checkpoint, no truncated row. Then the run is
resumed (`resume=`, or the same command if there is no run.json yet); in half of the runs it is killed again, once or
twice. In the end its tables without time_s, its model, and its result in run.json must be those of the uninterrupted
run.

--out gets shots.csv, a row per process that was hit, summary.json, and the directories of runs that failed. The exit
status is 1 if any did.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # where this is started by its path

from tests.faults.compared import differences, faults_left, rounds_in  # noqa: E402
from tests.faults.reported import report  # noqa: E402
from tests.faults.shots import ACTOR, AGENTS_GRACE_S, KINDS, Life, Shot, drawn, lived, outlived  # noqa: E402

NUM_ROUNDS = 150
BASE = ("dataset=digits", f"num_rounds={NUM_ROUNDS}", "num_epochs=20", "stragglers_fraction=0.5")
FLOWERS = "strategy._target_=flwr.serverapp.strategy."
VARIANTS = {
    "fedprox": ("checkpoint.every=3", "evaluation.every=3"),
    "fedavg": ("strategy=fedavg", "evaluation.per_class=true"),
    "FedAdam": (f"{FLOWERS}FedAdam", "checkpoint.every=1"),
    "FedAvgM": (f"{FLOWERS}FedAvgM", "+strategy.server_momentum=0.9", "evaluation.every=2"),
    "adaptive mu": ("evaluation=clients", "adaptive_mu.enabled=true", "checkpoint.every=3"),
    "no checkpoints": ("checkpoint.every=null",),
}


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        arguments: Its command.
        run_dir: What it left.
        life_s: What its process took.
        tail_s: What it took from its last round to the end of its process.
    """

    arguments: tuple[str, ...]
    run_dir: Path
    life_s: float
    tail_s: float


@dataclass
class Run:
    """A run that was killed and resumed.

    Attributes:
        number: Its own.
        variant: One of VARIANTS.
        shots: What it was hit by and what became of it.
        wrong: What should not be; nothing if all went well.
    """

    number: int
    variant: str
    shots: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Range:
    """Where runs are shot at: an engine, a folder, and the references."""

    def __init__(self, engine: str, out: Path, variants: Sequence[str], seed: int, temporary: Path) -> None:
        """Make a folder for the runs.

        Args:
            engine: "local" or "ray".
            out: The folder.
            variants: Of VARIANTS.
            seed: Of all that is drawn.
            temporary: Where Ray puts its sessions; the path must be short.
        """
        self._engine, self._out, self._seed = engine, out, seed
        self._variants = list(variants)
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "FEDPROX_DATA_DIR"},
            **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            **{"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary)},
        }
        self._engine_words = [f"engine={engine}", *(["client_resources.num_cpus=1"] if engine == "ray" else [])]
        self._references: dict[str, Reference] = {}
        self.agents: set[tuple[int, int]] = set()
        self.most_shots = 3

    def make_references(self, side_by_side: ThreadPoolExecutor) -> None:
        """Do the uninterrupted runs."""
        self._references = dict(zip(self._variants, side_by_side.map(self._reference, self._variants), strict=True))

    def _reference(self, variant: str) -> Reference:
        run_dir = self._out / f"reference_{variant.replace(' ', '_')}"
        arguments = (*BASE, *VARIANTS[variant], *self._engine_words)
        start = time.time()
        ended = lived([*arguments, f"hydra.run.dir={run_dir}"], run_dir, self._environment, None)
        if ended.status:
            raise RuntimeError(f"the uninterrupted run ended with status {ended.status}: {ended.said}")
        end = time.time()
        return Reference(arguments, run_dir, end - start, end - (run_dir / "clients.csv").stat().st_mtime)

    def shoot(self, number: int) -> Run:
        """Do one run: kill it, resume it, perhaps kill it again, and compare."""
        rng = np.random.default_rng([self._seed, number])
        run = Run(number, self._variants[number % len(self._variants)])
        reference = self._references[run.variant]
        run_dir = self._out / f"run_{number:04d}"
        kinds = (*KINDS, *([ACTOR, ACTOR] if self._engine == "ray" else []))
        for _ in range(min(int(rng.choice([1, 1, 2, 3])), self.most_shots)):
            done = rounds_in(run_dir / "clients.csv")
            shot = drawn(rng, kinds, done, NUM_ROUNDS, reference.life_s, reference.tail_s)
            self._one_life(run, run_dir, reference, shot)
        self._one_life(run, run_dir, reference, None)
        run.wrong += differences(run_dir, reference.run_dir) if not run.wrong else []
        if not run.wrong:
            shutil.rmtree(run_dir)
            run_dir.with_name(run_dir.name + ".err").unlink()
        return run

    def _one_life(self, run: Run, run_dir: Path, reference: Reference, shot: Shot | None) -> None:
        is_there = (run_dir / "run.json").exists()
        named = [word for word in reference.arguments if word.startswith(("strategy._target_=", "client_resources."))]
        again = [*reference.arguments, f"hydra.run.dir={run_dir}"]
        arguments = [f"resume={run_dir}", *named] if is_there else again  # a record decides neither
        life = lived(arguments, run_dir, self._environment, shot)
        self.agents |= life.agents
        if shot:
            said = life.said.strip().splitlines()
            found = {
                name: getattr(life, name)
                for name in ("status", "was_hit", "began", "after_s", "round_num", "left_over")
            }
            run.shots.append({**asdict(shot), "hit_round": found.pop("round_num"), **found, "said": said[-1:]})
        run.wrong += _unexpected(life, shot)
        if life.status:
            run.wrong += faults_left(run_dir, reference.run_dir, in_order=life.status in (130, 143))


def _unexpected(life: Life, shot: Shot | None) -> list[str]:
    """Return what is wrong with how a process ended."""
    wrong = [f"it was outlived by {life.left_over}"] if life.left_over else []
    status_of = {"SIGTERM": (143, -15), "SIGINT": (130,), "SIGINT to all": (130,), "SIGKILL": (-9,)}
    if life.was_hit and life.began and shot and life.status not in (0, *status_of.get(shot.kind, ())):
        wrong.append(f"after {shot.kind} it ended with status {life.status}: {life.said.strip()[-500:]}")
    must_live = shot is None or not life.was_hit or shot.kind == ACTOR
    if life.status == 124 or (must_live and life.status):
        wrong.append(f"it ended with status {life.status}: {life.said.strip()[-500:]}")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and resume runs, and return 0 if all of them equal the uninterrupted ones."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what runs in the background
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first run's number, to repeat one of them")
    parser.add_argument("--most-shots", type=int, default=3, help="at one run")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until Ray's agents have ended")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    out = options.out.resolve()
    out.mkdir(parents=True)
    start = time.monotonic()
    temporary = Path(tempfile.mkdtemp(prefix="kill-"))
    try:
        shooting = Range(options.engine, out, options.variants, options.seed, temporary)
        shooting.most_shots = options.most_shots
        with ThreadPoolExecutor(options.at_once) as side_by_side:
            shooting.make_references(side_by_side)
            runs = []
            for run in side_by_side.map(shooting.shoot, range(options.first, options.first + options.runs)):
                print(_line(run), flush=True)
                runs.append(run)
        for_good = outlived(shooting.agents, 0 if options.no_wait else AGENTS_GRACE_S)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    summary = {
        **_summary(runs, options.engine, time.monotonic() - start),
        "processes left for good": [] if options.no_wait else for_good,
    }
    rows = [
        {"run": run.number, "variant": run.variant, **shot, "outcome": "; ".join(run.wrong) or "identical"}
        for run in runs
        for shot in run.shots
    ]
    report(rows, out / "shots.csv", summary)
    return 1 if summary["wrong"] or summary["processes left for good"] else 0


def _line(run: Run) -> str:
    shots = ", ".join(f"{shot['kind']} in round {shot['hit_round']} ({shot['status']})" for shot in run.shots)
    return f"{run.number:4d} {run.variant}: {shots}: {'; '.join(run.wrong) or 'identical'}"


def _summary(runs: Sequence[Run], engine: str, time_s: float) -> dict[str, Any]:
    hits = [shot for run in runs for shot in run.shots if shot["was_hit"]]
    return {
        "engine": engine,
        "runs": len(runs),
        "identical": sum(not run.wrong for run in runs),
        "wrong": {run.number: run.wrong for run in runs if run.wrong},
        "hit": dict(Counter(shot["kind"] for shot in hits)),
        "before the first round": sum(shot["hit_round"] < 1 for shot in hits),
        "within the rounds": sum(1 <= shot["hit_round"] < NUM_ROUNDS for shot in hits),
        "after the last round": sum(shot["hit_round"] == NUM_ROUNDS for shot in hits),
        "hit while Python began": sum(not shot["began"] for shot in hits),
        "ended before they could be hit": sum(not shot["was_hit"] for run in runs for shot in run.shots),
        "minutes": round(time_s / 60, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
