"""The run directory: the files of a run, written while it runs.

metrics.csv         one row per round, round 0 (the initial model) included
clients.csv         one row per client of each cohort; a client drawn several times has one row per draw
classes.csv         with evaluation.per_class, one row per class of each evaluated round
personal.csv        with personalisation=..., one row per client, after the last evaluated round
run.json            settings, seed, versions, git commit, hardware, timings, memory, result, status
model.safetensors   the last global model, with how to make and use it as metadata; see `fedprox.runs.model_file`
checkpoint/         what a resumed run continues from; see `fedprox.runs.checkpoint`

`fedprox.experiment.run` adds MODEL.md, which describes the model, and contribution.csv with contribution=shapley; the
command adds curves.png, and Hydra adds .hydra/ and main.log.
"""

import csv
import io
import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save

from fedprox.errors import RunStopped, on_record, printable
from fedprox.evaluation.metrics import Evaluation, PersonalAccuracy, spread
from fedprox.federation.results import Round
from fedprox.process import uninterrupted
from fedprox.runs.csv_table import CsvTable
from fedprox.runs.model_file import NAME, ModelFacts
from fedprox.runs.reader import number
from fedprox.storage import PERSONAL as PERSONAL_TABLE
from fedprox.storage import write_atomic

METRICS = ("round", "test_loss", "test_accuracy", "train_loss_cohort", "num_clients_counted", "time_s", "drift")
FEDERATION = (  # additional columns with evaluation=clients
    "train_loss",
    "train_accuracy",
    "gradient_variance",
    "gradient_variance_unweighted",
    "dissimilarity_b",
    "gamma_mean",
    "gamma_max",
)
SPREAD = ("client_accuracy_std", "client_accuracy_worst", "client_accuracy_best")  # with evaluation.per_client
BYTES = ("bytes_up", "bytes_down")  # with update=..., in all rounds so far
PERSONAL = (  # with personalisation=..., on the clients' own held-out examples
    "personal_accuracy",
    "personal_accuracy_mean",
    "personal_accuracy_std",
    "personal_accuracy_worst",
    "personal_accuracy_best",
    "personal_coverage",
)
ATTACK = ("num_malicious", "attack_success")  # with attack=..., the second with attack=backdoor
PRIVACY = ("epsilon", "clip")  # with privacy=client
STALENESS = ("staleness_mean", "staleness_max")  # with arrival=buffered
_RESERVED = {
    *(*METRICS, *FEDERATION, *SPREAD, *ATTACK, *BYTES, *PRIVACY, *PERSONAL, *STALENESS, "virtual_time_s", "mu"),
}
CLASSES = ("round", "class", "num_examples", "accuracy", "name")
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


class RunRecord:
    """Writes one run directory; every row is in its file as soon as it is added.

    What counts is what `state` says: it is replaced in one step once all rows of a round are in their files, so an
    interruption at any moment leaves whole rounds.

    Attributes:
        path: The run directory.
        state: How far the tables have come, and the final and the best row, for a process that continues from here.
    """

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Any],
        columns: Sequence[str] = METRICS,
        *,
        client_columns: Sequence[str] = CLIENTS,
        per_class: bool = False,
        class_names: Sequence[str] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin or continue a run: write run.json with the status "running".

        Args:
            path: The run directory, which exists.
            facts: Entries of run.json, such as settings and seed.
            columns: Those of metrics.csv: METRICS, perhaps with FEDERATION, SPREAD and "mu". The strategy's own
                columns are added when it first reports metrics.
            client_columns: Those of clients.csv: CLIENTS, perhaps with further attributes of `ClientOutcome`. Columns
                of metrics that a script sends are added to both tables when a client first reports them.
            per_class: Whether to write classes.csv.
            class_names: Names of the classes in it; empty if they are only numbered.
            state: `state()` of an earlier process in this directory; rows that it wrote later are removed.

        Raises:
            UserError: If the tables are not what they were then.
        """
        self.path = path
        state = state or {"tables": {}, "final": None, "best": None}
        self._reported: tuple[str, ...] = tuple(state.get("reported", ()))
        self._of_clients: tuple[str, ...] = tuple(state.get("of_clients", ()))
        self._sent: tuple[str, ...] = ()  # by scripts in the last round
        self._columns = tuple(dict.fromkeys((*columns, *(state["final"] or ()))))
        self._facts = dict(facts)
        self._client_columns = tuple(client_columns)
        self._class_names = tuple(map(printable, class_names))
        headers = {"metrics.csv": self._columns, "clients.csv": (*client_columns, *self._of_clients)}
        if per_class:
            headers["classes.csv"] = CLASSES
        self._tables = {
            name: CsvTable(path / name, header, state["tables"].get(name)) for name, header in headers.items()
        }
        self._commit(state["final"], state["best"])
        self._is_finished = False
        self._save("running")

    @property
    def final(self) -> Mapping[str, Any] | None:
        """The last row of metrics.csv, by column."""
        return self.state["final"]  # type: ignore[no-any-return]

    def _commit(self, final: Mapping[str, Any] | None, best: Mapping[str, Any] | None) -> None:
        """Let everything that is in the tables count."""
        marks = {name: table.mark() for name, table in self._tables.items()}
        self.state: Mapping[str, Any] = {
            **{"tables": marks, "final": final, "best": best},
            **{"reported": self._reported, "of_clients": self._of_clients},
        }

    def add(self, outcome: Round) -> Mapping[str, Any] | None:
        """Append an evaluated round to metrics.csv and classes.csv, and the cohort of any round to clients.csv.

        Returns:
            The row of metrics.csv; None if the round was not evaluated.
        """
        row = None
        if outcome.test is not None:
            reported = {**outcome.client_metrics, **outcome.metrics}
            values = {**dict.fromkeys(self._columns), **reported, **_values(outcome, outcome.test)}
            row = {column: values[column] for column in self._columns}
            self._tables["metrics.csv"].add([row.values()])
            if "classes.csv" in self._tables:
                self._tables["classes.csv"].add(self._class_rows(outcome.round_num, outcome.test))
            if outcome.test.personal:
                write_atomic(self.path / PERSONAL_TABLE, _personal_table(outcome.test.personal).encode())
        self._tables["clients.csv"].add(_client_rows(outcome, self._client_columns, self._of_clients))
        self._commit(*self._with([row] if row else []))
        return row

    def _class_rows(self, round_num: int, test: Evaluation) -> Iterator[tuple[object, ...]]:
        """Yield a row per class with the columns CLASSES."""
        for each in test.classes:
            yield round_num, *astuple(each), self._class_names[each.label] if self._class_names else ""

    def lacks(self, outcome: Round) -> list[str]:
        """Return the metrics of the strategy and of clients' scripts that have no column yet; see `widen`.

        Raises:
            RunStopped: If a metric has the name of a built-in column, or the strategy did not report it at first.
        """
        for name in outcome.client_metrics:
            if name in _RESERVED or name in CLIENTS:
                raise RunStopped(
                    f"round {outcome.round_num}: the script's metric {name!r} has the name of a built-in column of "
                    "metrics.csv or clients.csv; rename it"
                )
        for name in outcome.metrics:
            metric = f"round {outcome.round_num}: the strategy's metric {name!r}"
            if name in _RESERVED:
                raise RunStopped(f"{metric} has the name of a built-in column of metrics.csv; rename it")
            if self._reported and name not in self._reported:
                first = ", ".join(self._reported)
                raise RunStopped(f"{metric} is new; return it from the first round on, together with {first}")
        self._reported = self._reported or tuple(outcome.metrics)
        self._sent = tuple(outcome.client_metrics)
        return [name for name in {**outcome.client_metrics, **outcome.metrics} if name not in self._columns]

    def widen(self, names: Sequence[str]) -> None:
        """Add columns, which are empty in the existing rows, to metrics.csv, and the clients' own to clients.csv."""
        with uninterrupted():
            self._tables["metrics.csv"].widen(names)
            self._columns = (*self._columns, *names)
            if of_clients := [name for name in names if name in self._sent]:
                self._tables["clients.csv"].widen(of_clients)
                self._of_clients = (*self._of_clients, *of_clients)
            rows = (self.state[name] for name in ("final", "best"))
            self._commit(*(row and {**dict.fromkeys(self._columns), **row} for row in rows))

    def adopt(self, rows: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Begin with the rows of an earlier run, by table and column; columns that it lacks stay empty."""
        more = [name for name in (rows["metrics.csv"] or [{}])[0] if name not in _RESERVED]
        self._sent = tuple(name for name in (rows["clients.csv"] or [{}])[0] if name in more)
        if more:
            self.widen(more)
        for name, table in self._tables.items():
            table.add([row.get(column, "") for column in table.columns] for row in rows[name])
        numbers = [{column: number(row.get(column, "")) for column in self._columns} for row in rows["metrics.csv"]]
        self._commit(*self._with(numbers))

    def _with(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
        """Return the final and the best row of metrics.csv after more rows; of equally good rows the first is best."""
        final, best = self.state["final"], self.state["best"]
        for row in rows:
            final = row
            if best is None or _score(row) > _score(best):
                best = row
        return final, best

    def sync(self) -> None:
        """Return once all rows are on the disk, not only in the operating system's cache."""
        for table in self._tables.values():
            table.sync()

    def finish(
        self,
        params: Mapping[str, torch.Tensor],
        timings: Mapping[str, float],
        peak_memory_bytes: int,
        more: Mapping[str, Any] | None = None,
        status: str = "finished",
        model: ModelFacts | None = None,
    ) -> None:
        """Complete the run: write its last global model, timings and memory, and its status.

        Args:
            params: The state dict, written as safetensors, which holds only tensors and text and cannot run code.
            timings: Seconds for setup_s, rounds_s and total_s.
            peak_memory_bytes: Peak memory of the run's other processes; that of this process is added.
            more: Further entries of run.json.
            status: "finished", or "budget" if the run ended before its last round because its privacy was spent.
            model: What the file says about the model; None if only the clients' script knows it.
        """
        # The model before run.json, so that every finished run has one.
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in params.items()}
        write_atomic(self.path / NAME, save(tensors, metadata=model.metadata() if model else None))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._facts |= {"timings": dict(timings), "peak_memory_bytes": own + peak_memory_bytes, **(more or {})}
        self._save(status)
        self._is_finished = True

    def __enter__(self) -> Self:
        """Return the record, whose status stays "running" until `finish`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Keep all complete rounds and record how the run ended."""
        try:
            for name, table in self._tables.items():
                table.back_to(self.state["tables"][name])
                table.close()
            if self._is_finished:
                return
            if isinstance(error, KeyboardInterrupt):
                self._save("interrupted")
            elif error is not None:
                self._facts["error"] = on_record(error)
                self._save(error.status if isinstance(error, RunStopped) else "failed")
        except OSError:
            if kind is None or not issubclass(kind, OSError):  # otherwise the disk has failed, and that error is raised
                raise

    def _save(self, status: str) -> None:
        """Rewrite run.json atomically."""
        final, best = self.state["final"], self.state["best"]
        result = {"final": _valid(final), "best": _valid(best)} if final and best else None
        facts = {"status": status, **self._facts, "result": result}
        write_atomic(self.path / "run.json", (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())


def _score(row: Mapping[str, Any]) -> float:
    """Return a row's score (`Evaluation.score`); one that was not measured is below all others."""
    score = Evaluation(row["test_loss"], row["test_accuracy"]).score
    return -inf if score is None else float(score)


def _client_rows(outcome: Round, columns: Sequence[str], metrics: Sequence[str]) -> Iterator[tuple[object, ...]]:
    """Yield a row per client of the cohort with these columns, the first of which are CLIENTS, and then metrics."""
    for client in outcome.clients:
        task = client.task
        yield (
            *(outcome.round_num, task.client, client.num_examples, task.is_straggler, task.num_epochs),
            *(client.num_steps, client.counted, client.train_loss, client.drift),
            *(getattr(client, name) for name in columns[len(CLIENTS) :]),
            *(client.metrics.get(name) for name in metrics),
        )


def _values(outcome: Round, test: Evaluation) -> dict[str, Any]:
    """Return a round's values by column; None for those that were not measured."""
    gammas, staleness, virtual_time_s = outcome.gammas, outcome.staleness, outcome.virtual_time_s
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
        "virtual_time_s": None if virtual_time_s is None else round(virtual_time_s, 6),
        "staleness_mean": fmean(staleness) if staleness else None,
        "staleness_max": max(staleness, default=None),
        "mu": outcome.mu,
        "num_malicious": outcome.num_malicious,
        "attack_success": test.attack_success,
        **(asdict(test.privacy) if test.privacy else {}),
        **dict(zip(BYTES, outcome.traffic, strict=True)),
        **(_personal_values(test.personal) if test.personal else {}),
        **{f"test_{name}": value for name, value in test.further},
        **dict(zip(SPREAD, astuple(test.spread) if test.spread else [None] * len(SPREAD), strict=True)),
    }


def _personal_values(personal: PersonalAccuracy) -> dict[str, float]:
    among = spread(personal.by_client)
    values = (personal.by_example, float(personal.by_client.mean()), *astuple(among), personal.coverage)
    return dict(zip(PERSONAL, values, strict=True))


def _personal_table(personal: PersonalAccuracy) -> str:
    """Return personal.csv: the accuracy of the global and the own model of each client that counts."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("client", "num_examples", "global_accuracy", "personal_accuracy", "has_trained"))
    for client in np.flatnonzero(personal.counts):
        size = int(personal.sizes[client])
        accuracies = (int(hits[client]) / size for hits in (personal.num_correct_global, personal.num_correct))
        writer.writerow((int(client), size, *accuracies, bool(personal.has_trained[client])))
    return text.getvalue()


def _valid(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for JSON, which knows neither nan nor infinity: both become None."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
