"""One life of a run: a process that is started, watched, and hit by a signal at a drawn moment."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.processes import descendants
from tests.faults.compared import rounds_in

TIMEOUT_S = 300
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGINT to all")  # the last is what Ctrl-C on a terminal does
ACTOR = "SIGKILL of an actor"


@dataclass(frozen=True)
class Shot:
    """When a process is hit, and how.

    Attributes:
        kind: One of KINDS, or ACTOR.
        phase: "any": a time after the start; "rounds": after a round's rows; "end": after the last round's.
        round_num: That round.
        delay_s: From then on.
    """

    kind: str
    phase: str
    round_num: int
    delay_s: float


@dataclass(frozen=True)
class Life:
    """How a process ended.

    Attributes:
        status: Its exit status; negative for a signal.
        was_hit: Whether it lived until the shot.
        began: Whether it was past its imports then, during which a signal ends Python in its own way.
        after_s: Seconds from its start to the shot.
        round_num: The last round that clients.csv had then, -1 for none.
        left_over: Which processes of its own outlived it by more than GRACE_S.
        agents: Ray's agents, which notice a minute later that their raylet has died: numbers and births.
        said: What it wrote to stderr.
    """

    status: int
    was_hit: bool
    began: bool
    after_s: float
    round_num: int
    left_over: list[str]
    agents: frozenset[tuple[int, int]]
    said: str


GRACE_S, AGENTS_GRACE_S = 30, 120
AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent", b"dashboard/agent.py", b"runtime_env/agent/main.py")


def drawn(
    rng: np.random.Generator, kinds: tuple[str, ...], rounds_done: int, num_rounds: int, life_s: float, tail_s: float
) -> Shot:
    """Return a random shot: a quarter at any time of the life, most in the rounds, some in the last writes.

    Args:
        rng: What draws it.
        kinds: To choose from.
        rounds_done: By the processes before, so that the shot comes in a later round.
        num_rounds: Of the run.
        life_s: What an uninterrupted one takes.
        tail_s: What it takes from the last round's rows to its end.
    """
    kind = str(rng.choice(kinds))
    phase = str(rng.choice(["any", "any", "rounds", "rounds", "rounds", "rounds", "end"]))
    later = max(rounds_done, 0) + 1
    if phase == "end" or (later >= num_rounds and kind == ACTOR):
        return Shot(kind, "end", num_rounds, float(rng.uniform(0, tail_s)))
    if later >= num_rounds or (phase == "any" and kind != ACTOR):
        return Shot(kind, "any", -1, float(rng.uniform(0, life_s)))
    return Shot(kind, "rounds", int(rng.integers(later, num_rounds)), float(rng.exponential(0.02)))


def lived(arguments: list[str], run_dir: Path, environment: Mapping[str, str], shot: Shot | None) -> Life:
    """Run `python -m fedprox.main` until it ends, or until a shot ends it.

    Args:
        arguments: Of the command.
        run_dir: What the process writes, watched for its progress.
        environment: Its variables.
        shot: None for a process that may live.
    """
    command = [sys.executable, "-m", "fedprox.main", *arguments]
    errors = run_dir.with_name(run_dir.name + ".err")
    with errors.open("w") as err:
        process = subprocess.Popen(command, env=environment, stdout=err, stderr=err, start_new_session=True)
    start = time.monotonic()
    was_hit = shot is not None and _waited(process, shot, run_dir / "clients.csv", start)
    after_s, round_num = time.monotonic() - start, rounds_in(run_dir / "clients.csv")
    own = started(process.pid)
    began = errors.stat().st_size > 0 or _heeds_sigterm(process.pid)
    if was_hit and shot:
        was_hit = _hit(process, shot.kind)
    try:
        status = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        own |= started(process.pid)
        process.kill()
        process.wait()
        status = 124
    agents = frozenset(each for each in own if is_agent(each[0]))
    left_over, said = outlived(own - agents, GRACE_S), errors.read_text(errors="replace")
    return Life(status, was_hit, began, round(after_s, 3), round_num, left_over, agents, said)


def _heeds_sigterm(pid: int) -> bool:
    """Return whether a process handles SIGTERM, as ours does once it is in its main function."""
    try:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _waited(process: subprocess.Popen, shot: Shot, table: Path, start: float) -> bool:
    """Wait for the moment; return whether the process has lived until then."""
    begin, size = start, -1
    if shot.phase != "any":
        while process.poll() is None:
            new_size = table.stat().st_size if table.exists() else -1
            if new_size != size and rounds_in(table) >= shot.round_num:
                break
            size = new_size
            time.sleep(0.002)
        begin = time.monotonic()
    while process.poll() is None and (left_s := begin + shot.delay_s - time.monotonic()) > 0:
        time.sleep(min(0.002, left_s))
    return process.poll() is None


def _hit(process: subprocess.Popen, kind: str) -> bool:
    """Send the signal; return whether a process received it."""
    if kind == ACTOR:
        actors = [pid for pid in descendants(process.pid) if is_actor(pid)]
        if actors:
            os.kill(actors[0], signal.SIGKILL)
        return bool(actors)
    if kind == "SIGINT to all":
        os.killpg(process.pid, signal.SIGINT)  # its own session, which holds none but what it started
    else:
        process.send_signal(getattr(signal, kind))
    return True


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_actor(pid: int) -> bool:
    """Return whether a process is one of the engine's actors, or a worker of Ray's without a title.

    Ray names its workers after the actors that they run, but in some sessions none of them gets a name.
    """
    program, *arguments = _command(pid).split(b"\0")
    return b"ray::_Worker" in program or any(word.endswith(b"/default_worker.py") for word in arguments[:1])


def is_agent(pid: int) -> bool:
    """Return whether a process is one of Ray's agents."""
    return any(name in _command(pid) for name in AGENTS)


def _born(pid: int) -> int | None:
    """Return when a process was started, which tells it from a later one with its number; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def started(root: int) -> set[tuple[int, int]]:
    """Return the processes that a process has started, by number and birth."""
    return {(pid, born) for pid in descendants(root) if (born := _born(pid)) is not None}


def outlived(own: Iterable[tuple[int, int]], grace_s: float) -> list[str]:
    """Wait until processes have ended, end those that do not, and return which those were."""
    until = time.monotonic() + grace_s
    while (left := [pid for pid, born in own if _born(pid) == born]) and time.monotonic() < until:
        time.sleep(0.05)
    names = [_command(pid)[:100].replace(b"\0", b" ").decode(errors="replace") for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return names
