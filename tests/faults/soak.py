"""Growth of memory and open files in long work: 2,000 rounds on Ray, and 100 jobs of one sweep.

    python tests/faults/soak.py rounds --out /tmp/soak_rounds             # 2,000 rounds with engine=ray
    python tests/faults/soak.py jobs --out /tmp/soak_jobs                 # 100 jobs in one process, engine=local
    python tests/faults/soak.py rounds --count 200 --engine local --out /tmp/short

Every --period seconds it reads from /proc, for the main process and all processes that it has started: the memory (PSS,
in which a page that n processes share counts 1/n in each, and RSS) and the number of open file descriptors of the main
process and of the actors. --out gets samples.csv and summary.json, with the growth of each mean (of files, the minimum)
from the second to the last tenth of the work; the first tenth warms up. The exit status is 1 if memory grew by 5% or
more, or a process has more files open than after the first tenth.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # where this is started by its path

from benchmarks.processes import descendants  # noqa: E402
from tests.faults.compared import rounds_in  # noqa: E402
from tests.faults.reported import report  # noqa: E402
from tests.faults.shots import is_actor  # noqa: E402

BASE = ("dataset=digits", "num_epochs=5")
COUNTS = {"rounds": 2000, "jobs": 100}
ENGINES = {"rounds": "ray", "jobs": "local"}
LIMIT = 0.05


def memory_bytes(pid: int) -> tuple[int, int]:
    """Return a process's PSS and RSS; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return values.get("Pss:", 0), values.get("Rss:", 0)


def num_files(pid: int) -> int:
    """Return how many file descriptors a process has open; 0 if it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def sample(root: int) -> dict[str, float]:
    """Return what a process and those that it has started hold now."""
    others = list(descendants(root))
    actors = [pid for pid in others if is_actor(pid)]
    memory = {pid: memory_bytes(pid) for pid in (root, *others)}
    return {
        "pss_mb": sum(pss for pss, _ in memory.values()) / 1e6,
        "rss_mb": sum(rss for _, rss in memory.values()) / 1e6,
        "main_pss_mb": memory[root][0] / 1e6,
        "actors_pss_mb": sum(memory[pid][0] for pid in actors) / 1e6,
        "main_files": num_files(root),
        "actors_files": max(map(num_files, actors), default=0),
        "processes": len(memory),
    }


def watched(command: Sequence[str], done: Callable[[], int], period_s: float, out: Path) -> list[dict[str, float]]:
    """Run a command and return a sample per period, each with how much was done then.

    Raises:
        RuntimeError: If the command fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    samples: list[dict[str, float]] = []
    start = time.monotonic()
    with (out / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=out, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(period_s)
            samples.append({"time_s": round(time.monotonic() - start, 1), "done": done(), **sample(process.pid)})
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}; see {out / 'log.txt'}")
    return samples


def growth(samples: Sequence[dict[str, float]], count: int) -> dict[str, dict[str, float]]:
    """Return by quantity its mean in the second and in the last tenth of the work, and the growth between."""
    tenths = {
        "second": [each for each in samples if 0.1 * count <= each["done"] < 0.2 * count],
        "last": [each for each in samples if 0.9 * count <= each["done"] < count],
    }
    if not all(tenths.values()):
        raise RuntimeError("a tenth of the work has no sample; take a shorter --period or a larger --count")
    found = {}
    for name in samples[0].keys() - {"time_s", "done"}:
        typical = min if name.endswith("_files") else fmean  # a job opens files and closes them again
        second, last = (typical([each[name] for each in tenth]) for tenth in tenths.values())
        found[name] = {"second_tenth": second, "last_tenth": last, "growth": last / second - 1 if second else 0.0}
    return dict(sorted(found.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the work, and return 0 if nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=COUNTS)
    parser.add_argument("--count", type=int, help="rounds or jobs")
    parser.add_argument("--engine", choices=("local", "ray"))
    parser.add_argument("--period", type=float, default=1.0, help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    count, engine = options.count or COUNTS[options.work], options.engine or ENGINES[options.work]
    out = options.out.resolve()
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "fedprox.main", *BASE, f"engine={engine}", "client_resources.num_cpus=1"]
    if options.work == "rounds":
        command += [f"num_rounds={count}", f"hydra.run.dir={out / 'run'}"]
        samples = watched(command, lambda: rounds_in(out / "run" / "clients.csv"), options.period, out)
    else:
        command += ["--multirun", "num_rounds=20", f"+repeat_num=range({count})", f"hydra.sweep.dir={out / 'sweep'}"]
        samples = watched(command, lambda: len(list(out.glob("sweep/*/model.safetensors"))), options.period, out)
    summary = {"work": options.work, "count": count, "engine": engine, **_verdict(samples, count)}
    report(samples, out / "samples.csv", summary)
    return 0 if summary["is_flat"] else 1


def _verdict(samples: Sequence[dict[str, float]], count: int) -> dict[str, Any]:
    grown = growth(samples, count)
    files = ("main_files", "actors_files")
    is_flat = grown["pss_mb"]["growth"] < LIMIT and all(grown[name]["growth"] <= 0.01 for name in files)
    return {"samples": len(samples), "minutes": samples[-1]["time_s"] / 60, "is_flat": is_flat, "grown": grown}


if __name__ == "__main__":
    sys.exit(main())
