"""The run directory: what a run leaves behind, written as it goes.

metrics.csv         one row per round, round 0 (the initial model) included
clients.csv         one row per client of each cohort
classes.csv         with evaluation.per_class, one row per class of each evaluated round
run.json            settings, seed, versions, git commit, hardware, timings, memory, result, status
model.safetensors   the last global model

`fedprox.experiment` adds curves.png, and Hydra its .hydra/ and main.log.
"""

import csv
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from functools import cache
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import torch
from safetensors.torch import save_file

from fedprox.metrics import Evaluation
from fedprox.outcomes import Round

METRICS = ("round", "test_loss", "test_accuracy", "train_loss_cohort", "num_clients_counted", "time_s", "drift")
FEDERATION = (  # more columns with evaluation=clients
    "train_loss",
    "train_accuracy",
    "gradient_variance",
    "gradient_variance_unweighted",
    "dissimilarity_b",
    "gamma_mean",
    "gamma_max",
)
SPREAD = ("client_accuracy_std", "client_accuracy_worst", "client_accuracy_best")  # with evaluation.per_client
CLASSES = ("round", "class", "num_examples", "accuracy")
CLIENTS = (
    "round",
    "client",
    "num_examples",
    "is_straggler",
    "num_epochs",
    "num_steps",
    "counted",
    "train_loss",
    "drift",
)
PACKAGES = ("flwr", "torch", "torchvision", "ray", "numpy", "hydra-core")


class RunRecord:
    """Writes one run directory; every row is on disk as soon as it is added."""

    def __init__(
        self, path: Path, facts: Mapping[str, Any], columns: Sequence[str] = METRICS, *, per_class: bool = False
    ) -> None:
        """Begin a run: status "running" and what is known beforehand.

        Args:
            path: The run directory, which exists.
            facts: Entries of run.json, such as settings and seed.
            columns: Of metrics.csv: METRICS, also FEDERATION, SPREAD, "mu".
            per_class: Whether there is a classes.csv.
        """
        self._columns = tuple(columns)
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._facts = dict(facts)
        tables = {"metrics.csv": self._columns, "clients.csv": CLIENTS}
        if per_class:
            tables["classes.csv"] = CLASSES
        self._files = [(path / name).open("w", newline="") for name in tables]
        self._metrics, self._clients, *self._classes = writers = [csv.writer(file) for file in self._files]
        for writer, header in zip(writers, tables.values(), strict=True):
            writer.writerow(header)
        self._flush()
        self._save("running")

    def add(self, outcome: Round) -> None:
        """Append a round to metrics.csv and classes.csv, if it was evaluated, and its cohort to clients.csv."""
        if outcome.test is not None:
            values = _values(outcome, outcome.test)
            row = {column: values[column] for column in self._columns}
            self._rows.append(row)
            self._metrics.writerow(row.values())
            for writer in self._classes:
                writer.writerows((outcome.round_num, *astuple(each)) for each in outcome.test.classes)
        for client in outcome.clients:
            self._clients.writerow(
                (
                    outcome.round_num,
                    client.task.client,
                    client.num_examples,
                    client.task.is_straggler,
                    client.task.num_epochs,
                    client.num_steps,
                    client.counted,
                    client.train_loss,
                    client.drift,
                )
            )
        self._flush()

    def _flush(self) -> None:
        for file in self._files:
            file.flush()

    def finish(self, params: Mapping[str, torch.Tensor], timings: Mapping[str, float], peak_memory_bytes: int) -> None:
        """Complete the run: its last global model, what it took, and status "finished".

        Args:
            params: The state dict, written as safetensors, which holds tensors only and cannot run code.
            timings: Seconds for setup_s, rounds_s and total_s.
            peak_memory_bytes: Of processes other than this one; this one's is added.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in params.items()}
        save_file(tensors, self.path / "model.safetensors")
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._facts |= {"timings": dict(timings), "peak_memory_bytes": own + peak_memory_bytes}
        self._save("finished")

    def __enter__(self) -> Self:
        """Return the record, whose status stays "running" until `finish`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep what was measured, whatever happened."""
        for file in self._files:
            file.close()
        if kind is not None:
            self._save("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _save(self, status: str) -> None:
        """Rewrite run.json, whole or not at all."""
        best = max(self._rows, key=lambda row: float(row["test_accuracy"]), default=None)
        result = {"final": _valid(self._rows[-1]), "best": _valid(best)} if best else None
        facts = {"status": status, **self._facts, "result": result}
        temporary = self.path / "run.json.part"
        temporary.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
        temporary.replace(self.path / "run.json")


def _values(outcome: Round, test: Evaluation) -> dict[str, Any]:
    """Return a round's values by column; None where there is nothing to tell."""
    gammas = outcome.gammas
    return {
        **(asdict(test.federation) if test.federation else {}),
        "round": outcome.round_num,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "train_loss_cohort": outcome.train_loss_cohort,
        "num_clients_counted": outcome.num_clients_counted,
        "time_s": round(outcome.time_s, 6),
        "gamma_mean": fmean(gammas) if gammas else None,
        "gamma_max": max(gammas) if gammas else None,
        "drift": outcome.drift,
        "mu": outcome.mu,
        **dict(zip(SPREAD, astuple(test.spread) if test.spread else [None] * len(SPREAD), strict=True)),
    }


def _valid(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for JSON, which has no nan and no infinity: null for them."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}


def environment() -> dict[str, Any]:
    """Return what a result may depend on besides the settings: command, versions, commit, hardware."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": _git_commit(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),  # of torch, and of engine=local where nothing else is set
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())],
        },
    }


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


@cache  # the code that this process runs was read once, too
def _git_commit() -> str | None:
    """Return the commit of this code, with "-dirty" after it where files were changed; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def _cpu_name() -> str:
    """Return the processor's name, from /proc where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
