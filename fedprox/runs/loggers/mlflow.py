"""MLflow logger: runs in a shared local folder, in a database or on a server."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fedprox.runs.loggers.interface import hyperparameters, measured, require, title
from fedprox.runs.reader import Row

FOLDER = "mlruns"  # in the working directory, where MLflow's own programs look for it
MAX_PARAMS = 100  # in one request
ENVIRONMENT = {  # defaults; MLflow reads these variables when it is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # without it MLflow refuses folders
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a run waits for them; MLflow's default of 7 takes 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
}
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowLogger:
    """Logs through MLflow's client, without MLflow's global "active run"."""

    def __init__(self, tracking_uri: str | None = None, experiment: str = "fedprox") -> None:
        """Check that MLflow is installed.

        Args:
            tracking_uri: A folder, sqlite:///<file> or a server's address; None for MLFLOW_TRACKING_URI, or FOLDER if
                that is not set.
            experiment: The MLflow experiment that lists the run.
        """
        require("mlflow", extra="mlflow")
        self._uri = tracking_uri
        self._experiment = experiment

    def begin(self, run_dir: Path, facts: Mapping[str, Any], first_round: int) -> None:
        """Start a run or, with first_round > 0, continue the one whose id is in <run>/mlflow_run_id.

        Values that it already has are not logged again, because MLflow would keep both; a resumed run repeats its
        rounds bit for bit.
        """
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs every retry
        from mlflow import MlflowClient

        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI") or FOLDER
        if "://" not in uri:
            uri = Path(uri).absolute().as_uri()  # MLflow would keep this process's first working directory
        id_file = run_dir / "mlflow_run_id"
        with _one_at_a_time():
            self._client = MlflowClient(tracking_uri=uri)
            if first_round and id_file.exists():
                self._resume(id_file.read_text().strip())
            else:
                self._start(title(run_dir, facts), str(run_dir), hyperparameters(facts))
                id_file.write_text(f"{self._id}\n")

    def log(self, row: Row) -> None:
        """Log a row without the values that the run already has."""
        from mlflow.entities import Metric

        step, values = measured(row)
        now_ms = int(time.time() * 1000)
        new = [Metric(name, value, now_ms, step) for name, value in values.items() if (name, step) not in self._logged]
        self._client.log_batch(self._id, metrics=new)

    def end(self, status: str) -> None:
        """Record how the run ended."""
        self._client.set_terminated(self._id, STATUS[status])

    def _start(self, name: str, run_dir: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment_id(), run_name=name, tags={"run_dir": run_dir})
        self._id = run.info.run_id
        self._logged: set[tuple[str, int]] = set()
        left = iter([Param(key, str(value)) for key, value in params.items()])
        while some := list(islice(left, MAX_PARAMS)):
            self._client.log_batch(self._id, params=some)

    def _resume(self, run_id: str) -> None:
        run = self._client.get_run(run_id)
        self._id = run_id
        self._logged = {
            (name, metric.step) for name in run.data.metrics for metric in self._client.get_metric_history(run_id, name)
        }
        self._client.update_run(run_id, status="RUNNING")

    def _experiment_id(self) -> str:
        """Return the id of the experiment, which is created if it does not exist."""
        found = self._client.get_experiment_by_name(self._experiment)
        return str(found.experiment_id if found else self._client.create_experiment(self._experiment))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait until no other process of this installation is in here: parallel jobs would all create the folder."""
    here = os.open(Path(__file__).parent, os.O_RDONLY)
    try:
        fcntl.flock(here, fcntl.LOCK_EX)
        yield
    finally:
        os.close(here)
