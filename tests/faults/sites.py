"""Faults of a federation of two nodes on this machine, with real processes: `python tests/faults/sites.py --out DIR`.

Every case runs the digits experiment for three rounds, does something to a process in a round, and compares what comes
out in the end with a simulation, byte for byte but for the times. It takes some ten minutes.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, "-m", "fedprox.main"]
DEPLOYMENT = [sys.executable, "-m", "fedprox.deployment"]
DIGITS = ["experiment=digits", "num_clients=2", "clients_per_round=2", "num_rounds=3"]
PATIENCE_S = 300.0


class Trial:
    """A folder in which commands run.

    Attributes:
        folder: The folder; the federation is in its `deployment`, runs in `runs`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(self, *command: str) -> subprocess.Popen:
        """Start a command, whose output is shown and kept in `output`."""
        # A shell may have let this program ignore Ctrl-C, which its children would do, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def ended(self, process: subprocess.Popen) -> tuple[int, str]:
        """Return a command's exit status and last line."""
        out = process.communicate(timeout=PATIENCE_S)[0]
        return process.returncode, out.strip().splitlines()[-1] if out.strip() else ""

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command; return its exit status and last line."""
        return self.ended(self.start(*command))

    def pid(self, name: str) -> int:
        """Return the process of a daemon."""
        return json.loads((self.folder / "deployment" / "processes.json").read_text())[name]

    def record(self, run: str) -> dict:
        """Return a run's run.json."""
        return json.loads((self.folder / "runs" / run / "run.json").read_text())

    def num_rows(self, run: str) -> int:
        """Return how many rounds a run's table has, round 0 included."""
        with suppress(FileNotFoundError):
            return len((self.folder / "runs" / run / "metrics.csv").read_text().splitlines()) - 1
        return 0

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        until = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > until:
                raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
            time.sleep(0.2)

    def in_round(self, run: str, round_num: int) -> None:
        """Wait until a run computes a round, for some seconds already."""
        self.wait(lambda: self.num_rows(run) >= round_num, f"{run} is in round {round_num}")
        time.sleep(3.0)

    def nodes_online(self) -> int:
        """Return how many nodes the SuperLink knows to be online."""
        status = subprocess.run(
            [*DEPLOYMENT, "status"], cwd=self.folder, env=self.environment, text=True, capture_output=True
        )
        line = next((line for line in status.stdout.splitlines() if line.startswith("SuperNodes: ")), "SuperNodes: 0")
        return int(line.split()[1])

    def difference(self, run: str, other: str) -> list[str]:
        """Return in which files two runs differ, but for times."""
        one, two = self.folder / "runs" / run, self.folder / "runs" / other
        files = [
            name
            for name in ("model.safetensors", "clients.csv")
            if (one / name).read_bytes() != (two / name).read_bytes()
        ]
        return files + (["metrics.csv"] if _rows(one) != _rows(two) else [])


def _rows(run_dir: Path) -> list[dict]:
    with (run_dir / "metrics.csv").open() as opened:
        return [{name: value for name, value in row.items() if name != "time_s"} for row in csv.DictReader(opened)]


def _submit(trial: Trial, run: str, *more: str) -> subprocess.Popen:
    return trial.start(*MAIN, *DIGITS, "engine=deployment", f"hydra.run.dir=runs/{run}", *more)


def _restart(trial: Trial, node: str) -> None:
    """Start a node again from its kit, once the SuperLink knows that it is gone."""
    trial.wait(lambda: trial.nodes_online() < 2, f"{node} is known to be offline")
    programs = Path(sys.executable).parent
    environment = {**trial.environment, "PATH": f"{programs}:{os.environ['PATH']}", "SUPERNODE_PORT": "29471"}
    kit = trial.folder / "deployment" / "sites" / node
    process = subprocess.Popen(
        [kit / "start.sh"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    file = trial.folder / "deployment" / "processes.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), node: process.pid}))
    trial.wait(lambda: trial.nodes_online() == 2, f"{node} is back")


def node_killed(trial: Trial) -> None:
    """kill -9 of a node with on_client_error=stop: one line that names it; back again, resume."""
    process = _submit(trial, "killed", "on_client_error=stop")
    trial.in_round("killed", 2)
    os.kill(trial.pid("node-1"), signal.SIGKILL)
    begin = time.monotonic()
    print("  ", *trial.ended(process), f"after {time.monotonic() - begin:.0f} s;", trial.record("killed")["status"])
    _restart(trial, "node-1")
    print("  ", *trial.run(*MAIN, "resume=runs/killed"), "differs in:", trial.difference("killed", "local"))


def node_dropped(trial: Trial) -> None:
    """kill -9 of a node with on_client_error=drop: the run goes on without it."""
    process = _submit(trial, "dropped")
    trial.in_round("dropped", 2)
    os.kill(trial.pid("node-1"), signal.SIGKILL)
    print("  ", *trial.ended(process), trial.record("dropped")["status"])
    for row in _rows(trial.folder / "runs" / "dropped"):
        print("   ", row["round"], row["test_accuracy"])
    print(
        "  ",
        [
            line
            for line in (trial.folder / "runs" / "dropped" / "main.log").read_text().splitlines()
            if "WARNING" in line
        ][-3:],
    )
    _restart(trial, "node-1")


def node_late(trial: Trial) -> None:
    """A node that is stopped (SIGSTOP) with round_timeout=40: late, then back."""
    process = _submit(trial, "late", "round_timeout=40")
    trial.in_round("late", 2)
    os.kill(trial.pid("node-1"), signal.SIGSTOP)
    trial.wait(lambda: trial.num_rows("late") >= 3, "round 2 has ended")
    os.kill(trial.pid("node-1"), signal.SIGCONT)
    print("  ", *trial.ended(process), trial.record("late")["status"])
    print(
        "  ",
        [line for line in (trial.folder / "runs" / "late" / "main.log").read_text().splitlines() if "WARNING" in line][
            -3:
        ],
    )


def interrupted(trial: Trial) -> None:
    """Ctrl-C on the command: 130, interrupted, a checkpoint; resume."""
    process = _submit(trial, "interrupted")
    trial.in_round("interrupted", 2)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    print(
        "  ",
        *trial.ended(process),
        f"after {time.monotonic() - begin:.0f} s;",
        trial.record("interrupted")["status"],
        _checkpoints(trial, "interrupted"),
    )
    print("  ", *trial.run(*MAIN, "resume=runs/interrupted"), "differs in:", trial.difference("interrupted", "local"))


def superlink_killed(trial: Trial) -> None:
    """kill -9 of the SuperLink: the command and the run end; up again, resume."""
    process = _submit(trial, "superlink")
    trial.in_round("superlink", 2)
    os.kill(trial.pid("superlink"), signal.SIGKILL)
    begin = time.monotonic()
    print("  ", *trial.ended(process), f"after {time.monotonic() - begin:.0f} s")
    trial.wait(lambda: trial.record("superlink")["status"] != "running", "run.json is written")
    print("  ", trial.record("superlink")["status"], _checkpoints(trial, "superlink"))
    print("  ", *trial.run(*DEPLOYMENT, "down"))
    print("  ", *trial.run(*DEPLOYMENT, "up", "--nodes", "2"))
    print("  ", *trial.run(*MAIN, "resume=runs/superlink"), "differs in:", trial.difference("superlink", "local"))


def _checkpoints(trial: Trial, run: str) -> list[str]:
    return sorted(file.name for file in (trial.folder / "runs" / run / "checkpoint").iterdir())


CASES = (interrupted, node_killed, node_dropped, node_late, superlink_killed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[case.__name__ for case in CASES])
    given = parser.parse_args()
    trial = Trial(given.out.absolute())
    print(*trial.run(*MAIN, *DIGITS, "engine=local", "hydra.run.dir=runs/local"))
    print(*trial.run(*DEPLOYMENT, "up", "--nodes", "2"), flush=True)
    try:
        for case in CASES:
            if case.__name__ in given.only:
                print(f"{case.__name__}: {case.__doc__}", flush=True)
                try:
                    case(trial)
                except (TimeoutError, subprocess.TimeoutExpired, OSError, KeyError) as error:
                    print("   FAILED", repr(error), flush=True)
    finally:
        print(*trial.run(*DEPLOYMENT, "down"))
    left = subprocess.run(["ps", "-axo", "pid=,stat=,command="], capture_output=True, text=True).stdout.splitlines()
    print("left:", [line for line in left if ("flower-super" in line or "flwr-" in line) and " Z" not in line])


if __name__ == "__main__":
    main()
