"""The real libraries, confined to a test's folder without a network, and readers for their files."""

import csv
import json
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedprox.runs.loggers.group import Attached
from fedprox.runs.loggers.interface import Logger
from fedprox.runs.loggers.mlflow import ENVIRONMENT
from fedprox.runs.reader import read_metrics

FACTS = {
    "algorithm": "FedProx (mu = 1)",
    "name": "digits",
    "seed": 3,
    "settings": {"seed": 3, "mu": 1.0, "engine": {"num_threads": None, "_target_": "a.B"}, "flags": [1, 2]},
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Isolate the libraries from the settings of this machine's user."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "users"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name, value in ENVIRONMENT.items():  # set here, so that pytest restores it
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def facts() -> dict[str, Any]:
    """Return facts like those of run.json, with settings of every type at two depths."""
    return json.loads(json.dumps(FACTS))


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """Return an existing run directory."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def log(run_dir, facts) -> Callable[..., None]:
    """Return a function that logs a run's rounds with a logger; `value` gives the loss of a round, `error` the end."""

    def part(
        logger: Logger,
        rounds: Iterable[int],
        first_round: int = 0,
        value: Callable[[int], float] = float,
        error: BaseException | None = None,
    ) -> None:
        file = run_dir / "metrics.csv"
        earlier = read_metrics(file)[:first_round] if first_round else []
        with Attached({"tool": logger}, run_dir, facts, first_round, earlier) as attached:
            kept = [line for line in _lines(file) if int(line.partition(",")[0]) < first_round]
            for round_num in rounds:
                kept.append(f"{round_num},{value(round_num)},\n")
                file.write_text("round,test_loss,drift\n" + "".join(kept))
                attached.log({"round": round_num, "test_loss": value(round_num), "drift": None})
            if error:
                raise error

    return part


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines(keepends=True)[1:] if file.exists() else []


History = dict[str, list[tuple[int, float]]]


class Read:
    """Readers of the trackers' files: metric -> (round, value) in the order of writing."""

    @staticmethod
    def metrics_csv(run_dir: Path) -> History:
        """Return metrics.csv without empty cells."""
        with (run_dir / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name != "round"]
        return {name: [(int(row["round"]), float(row[name])) for row in rows if row[name]] for name in names}

    @staticmethod
    def tensorboard(run_dir: Path) -> History:
        """Return the scalars in single precision, which event files have."""
        events = tensorboard_events(run_dir)
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    @staticmethod
    def wandb(run_dir: Path) -> History:
        """Return the history of all offline folders of a run, oldest first."""
        found: History = {}
        for record in wandb_records(run_dir):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name in items:
                    if not name.startswith("_"):
                        found.setdefault(name, []).append((items["_step"], float(items[name])))
        return found

    @staticmethod
    def mlflow(run_dir: Path) -> History:
        """Return the history of the run whose id is in the run directory."""
        from mlflow import MlflowClient

        folder = Path("mlruns").absolute().as_uri()
        client, run_id = MlflowClient(folder), (run_dir / "mlflow_run_id").read_text().strip()
        names = client.get_run(run_id).data.metrics
        return {name: [(each.step, each.value) for each in client.get_metric_history(run_id, name)] for name in names}


def tensorboard_events(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def wandb_records(run_dir: Path) -> list[Any]:
    """Return the records of a run's offline files.

    The library's own process writes the last one, an exit, some milliseconds after the run has ended.
    """
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    found = []
    for file in files:
        for _ in range(60_000):
            records = list(_records(file.read_bytes()))
            if records and records[-1].HasField("exit"):
                break
            time.sleep(0.01)
        found += records
    return found


def _records(data: bytes) -> Iterator[Any]:
    """Yield the records of a file in LevelDB's log format.

    After 7 bytes of its own come blocks of 32768 bytes with pieces of records, each with a checksum, a length and a
    kind: 1 whole, 2 first, 3 middle, 4 last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    at, record = 7, b""
    while at < len(data):
        left = -at % 32768
        if 0 < left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


@pytest.fixture
def read() -> type[Read]:
    """Return the readers."""
    return Read


@pytest.fixture
def wandb_config():
    """Return a function that returns the config of each offline folder of a run."""

    def configs(run_dir: Path) -> list[dict[str, Any]]:
        return [
            {update.key: json.loads(update.value_json) for update in record.run.config.update}
            for record in wandb_records(run_dir)
            if record.WhichOneof("record_type") == "run"
        ]

    return configs


@pytest.fixture
def wandb_exits():
    """Return a function that returns the exit code of each offline folder of a run."""

    def exits(run_dir: Path) -> list[int]:
        found = [each for each in wandb_records(run_dir) if each.WhichOneof("record_type") == "exit"]
        return [record.exit.exit_code for record in found]

    return exits


@pytest.fixture
def tensorboard_hyperparameters():
    """Return a function that returns the hyperparameters in a run's event files."""

    def values(run_dir: Path) -> dict[str, Any]:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        content = tensorboard_events(run_dir).PluginTagToContent("hparams")["_hparams_/session_start_info"]
        found = HParamsPluginData.FromString(content).session_start_info.hparams
        return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}

    return values
