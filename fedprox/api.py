"""The same runs from Python: settings in, a run directory, tables and a model out.

Hydra composes the configuration as for the command, and leaves nothing behind in the process.
"""

import copy
import random
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprox.cli.jobs import earlier_run
from fedprox.cli.own import Command, command_of, prepared
from fedprox.cli.resume import whole_command, without_resume
from fedprox.cli.words import words_of
from fedprox.config.compose import CONF, HydraJob, apart, as_given, compose, errors_explained
from fedprox.config.schema import Config, Target
from fedprox.errors import RunStopped, UserError, on_record
from fedprox.held import PREFIX, holding, is_factory, is_held
from fedprox.process import switch_off_telemetry, terminated_like_interrupted
from fedprox.report.finished import draw_curves
from fedprox.runs.log import begin_log, log_apart
from fedprox.runs.reader import COMPLETE, read_record
from fedprox.runs.trust import is_place, is_refused

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from fedprox.experiment.trained import TrainedModel
    from fedprox.runs.model_file import ModelFacts

switch_off_telemetry()
_LOCAL = "fedprox.engines.local.local_grid"
_one_at_a_time = threading.RLock()  # runs seed torch's generators and set its threads


class Run:
    """A run directory, read when it is asked for.

    Attributes:
        directory: The run directory; see docs/run-directory.md.
    """

    def __init__(self, directory: Path, model: Any = None, *, is_own: bool = False) -> None:
        """Prepare to read a run directory.

        Args:
            directory: Such as runs/digits.
            model: The class or function that made the model, if it cannot be imported.
            is_own: Whether this process has made the run, and so has called what its record names already.
        """
        self.directory, self._model, self._is_own = directory, model, is_own

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json: settings, versions, status, result and timings."""
        return read_record(self.directory / "run.json")

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by name, nested as in conf/."""
        return dict(self.record["settings"])

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """metrics.csv: a row per round, round 0 (the initial model) included."""
        return self._table("metrics.csv")

    @cached_property
    def clients(self) -> "pd.DataFrame":
        """clients.csv: a row per client and round."""
        return self._table("clients.csv")

    @cached_property
    def model(self) -> "TrainedModel":
        """The last global model, an `nn.Module` in evaluation mode that normalises its input as in training."""
        return _loaded(self.directory, self._model, {}, is_own=self._is_own)

    def predict(self, examples: "ArrayLike") -> "NDArray[Any]":
        """Return the model's predictions for examples as in the data set, such as their classes, shape (n,)."""
        return self.model.predict(examples)

    def plot(self) -> "Figure":
        """Return the figure of curves.png: losses and test accuracy by round."""
        from fedprox.report.curves import curves_of

        return curves_of(self.directory)

    def _table(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_csv(self.directory / name)

    def __repr__(self) -> str:
        """Return what was run, how far it came, and where it is."""
        final = (self.record.get("result") or {}).get("final") or {}
        accuracy = final.get("test_accuracy")
        result = "" if accuracy is None else f", accuracy {accuracy:.4f} after round {final['round']}"
        name = f"{self.record['algorithm']} on {self.record['name']}"
        return f"<Run {name}: {self.record['status']}{result}; {self.directory}>"


class Comparison:
    """Several algorithms, each run several times.

    Attributes:
        runs: Label -> its runs, by repetition.
        directory: Holds a folder for each label, with a run directory for each repetition.
    """

    def __init__(self, runs: Mapping[str, Sequence[Run]], directory: Path) -> None:
        """Keep the runs."""
        self.runs, self.directory = dict(runs), directory

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """All rounds of all runs, as `fedprox.report.summary.read_runs` returns them, with the labels as algorithms."""
        import pandas as pd

        from fedprox.report.summary import read_runs

        tables = [
            read_runs([run.directory]).assign(algorithm=label, repetition=number)
            for label, runs in self.runs.items()
            for number, run in enumerate(runs)
        ]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """Means and standard deviations over the repetitions: a row per label; see `fedprox.report.summary.summarise`.

        test_accuracy and test_loss are a run's means over its last ten rounds.
        """
        from fedprox.report.summary import summarise

        return summarise(self.frame).set_index("algorithm").loc[list(self.runs)]

    def plot(self) -> "Figure":
        """Return a figure of test loss and accuracy by round: means, and bands of one standard deviation."""
        from fedprox.report.figures import comparison

        return comparison(self.frame)

    def __repr__(self) -> str:
        """Return the labels and where the runs are."""
        runs = ", ".join(f"{label} x {len(each)}" for label, each in self.runs.items())
        return f"<Comparison {runs}; {self.directory}>"


def run(
    settings: Mapping[str, Any] | None = None,
    /,
    *,
    data: Any = None,
    directory: str | Path | None = None,
    config_name: str = "config",
    **more: Any,
) -> Run:
    """Run one experiment, as the command `fedprox` does, and return it.

    The run directory and its numbers are the command's, with engine=local unless `engine` is given. Nothing is printed
    but warnings, and a progress bar if it takes more than two seconds and a terminal or a notebook shows it.

    Args:
        settings: Settings by name, such as {"partition.alpha": 0.1}; names are those of the command line.
        data: Examples of one's own in place of `dataset`: (x, y); (x, y, clients) with a client id for each example; a
            mapping from client to (x, y); LabelledData; FederatedData; or a function that returns one of the last two.
            x has shape (n, *input_shape) and is the model's input as it is; y holds classes 0, 1, ... Examples without
            clients are divided among 10 with partition=dirichlet, unless `num_clients` and `partition` say otherwise.
        directory: The run directory, in which an earlier run is replaced, as by the command; None for
            outputs/<date>/<time>.
        config_name: A file of conf/, such as "fedavg".
        **more: More settings, such as dataset="digits" or mu=0.1. Groups such as model and strategy also take a class,
            a function or an object. `resume` continues an earlier run.

    Raises:
        UserError: If a setting or the data are wrong; nothing has been computed then, and the directory is unchanged.
        RunStopped: If a fault ends the run; what was measured is kept in its directory.
        KeyboardInterrupt: On Ctrl-C; `resume` continues the run.

    Examples:
        >>> import fedprox
        >>> run = fedprox.run(dataset="digits", num_clients=20, partition="dirichlet", num_rounds=2, directory="digits")
        >>> run.metrics["round"].tolist()
        [0, 1, 2]
    """
    with _alone():
        return _run(_asked(_together(settings, more), data, directory, config_name))


def compare(
    algorithms: Mapping[str, Mapping[str, Any]],
    /,
    *,
    repetitions: int = 1,
    data: Any = None,
    directory: str | Path | None = None,
    config_name: str = "config",
    **common: Any,
) -> Comparison:
    """Run several algorithms on the same data, clients and batches, each several times, and return the comparison.

    Repetition k has repeat_num=k: other initial weights, cohorts, stragglers and batches on the same division of the
    data, and the same ones for all algorithms. All settings are checked before the first run. If the directory holds
    runs of an earlier call with the same settings, finished ones are kept and others continue.

    Args:
        algorithms: Label -> settings of the algorithm, such as {"FedProx": {"mu": 0.1}}.
        repetitions: Runs of each algorithm.
        data: See `run`.
        directory: Holds the runs; None for multirun/<date>/<time>.
        config_name: See `run`.
        **common: Settings of all algorithms; an algorithm's own replace them.

    Raises:
        UserError, RunStopped, KeyboardInterrupt: See `run`.
    """
    _check_comparison(algorithms, repetitions)
    data, sweep_dir = prepared(data), directory or HydraJob((), config_name).sweep_dir
    with _alone(), _made(Path(sweep_dir), is_new=directory is None) as place:
        commands = {
            label: [
                _asked({**common, **own, "repeat_num": number}, data, place / folder / str(number), config_name)
                for number in range(repetitions)
            ]
            for (label, own), folder in zip(algorithms.items(), _folders(algorithms), strict=True)
        }
        for each in commands.values():
            _check_first(each[0])
        runs = {label: [_run(each, keep=True) for each in repeated] for label, repeated in commands.items()}
    return Comparison(runs, place)


def load_run(directory: str | Path, model: Any = None) -> Run:
    """Return a run that was made earlier, by a command or from Python.

    Args:
        directory: A run directory.
        model: The class or function that made its model, if it is not this package's own; see `load_model`.

    Raises:
        UserError: If there is no run, or its record is damaged.
    """
    found = Run(Path(directory), model)
    _check_run(found.directory)
    return found


def load_model(path: str | Path, model: Any = None, **arguments: Any) -> "TrainedModel":
    """Return the last global model of a run, in evaluation mode; it normalises its input as in training.

    Args:
        path: A run directory, or its model.safetensors.
        model: The class or function that made the model, or a module of it. A file may come from a stranger, so what it
            names is not called unless it is this package's own.
        **arguments: Of that class or function, in place of those in the file, such as the path of its word vectors.

    Raises:
        UserError: If the file is missing or damaged, or names a model that must be given.

    Examples:
        >>> import fedprox
        >>> run = fedprox.run(dataset="digits", num_clients=20, partition="dirichlet", num_rounds=2, directory="digits")
        >>> model = fedprox.load_model("digits")
        >>> model.predict([[[0.0] * 8] * 8]).shape
        (1,)
    """
    with _one_at_a_time:
        return _loaded(Path(path), model, arguments)


def _together(settings: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of both forms."""
    if settings is not None and not isinstance(settings, Mapping):
        raise UserError(
            f"settings must be a mapping, such as {{'partition.alpha': 0.1}}, got a {type(settings).__name__}; give "
            "others by name, as in fedprox.run(mu=0.1)"
        )
    if twice := [name for name in settings or {} if name in more]:
        raise UserError(f"{twice[0]} was given twice, in the mapping and by name; leave one of them out")
    return {**(settings or {}), **more}


def _asked(settings: Mapping[str, Any], data: Any, directory: str | Path | None, config_name: str) -> Command:
    """Return the command for a run."""
    with apart(), errors_explained():
        return command_of(settings, data, directory, config_name)


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other run of this process compute meanwhile, and free the data at the end."""
    with _one_at_a_time:
        state = random.getstate()  # libraries draw from it, such as for the names of messages
        try:
            with terminated_like_interrupted():
                yield
        finally:
            random.setstate(state)
            _forget_data()


def _forget_data() -> None:
    if module := sys.modules.get("fedprox.experiment.data"):  # else no run has loaded any
        module.forget_data()


@contextmanager
def _made(directory: Path, *, is_new: bool) -> Iterator[Path]:
    """Create a directory, which is removed again if an error leaves it empty.

    Args:
        directory: Where.
        is_new: Whether it must be a new one: then it gets a number if the name is taken.
    """
    directory = directory.absolute()  # the user's code may change the working directory
    was_there = directory.exists() and not is_new
    made = _numbered(directory) if is_new else directory
    made.mkdir(parents=True, exist_ok=True)
    try:
        yield made
    except BaseException:
        if not was_there:
            with suppress(OSError):  # it is not empty
                made.rmdir()
        raise


def _numbered(directory: Path) -> Path:
    """Create a new directory: this one, or with _1, _2, ... after its name."""
    names = (f"{directory.name}_{number}" if number else directory.name for number in count())
    return next(made for name in names if _is_created(made := directory.with_name(name)))


def _is_created(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _run(command: Command, *, keep: bool = False) -> Run:
    """Run a command.

    Args:
        command: The run.
        keep: Whether to keep a run in its directory that has the same settings, and to continue it.
    """
    if command.held:  # other objects may have had the same names
        _forget_data()
    with holding(command.held):
        job = HydraJob(command.words, command.config_name)
        is_named = any(word.startswith("hydra.run.dir=") for word in command.words)
        with _made(Path(job.run_dir), is_new=not is_named) as run_dir:
            settings = job.settings(run_dir)
            _check_here(settings, command)
            remedy = "name a new directory, or give the settings that made this one"
            earlier = earlier_run(run_dir, settings.plain(), remedy) if keep else None
            if not (earlier and earlier["status"] in COMPLETE):
                _compute(command, job, settings, run_dir, resume=bool(settings.resume or earlier))
    target = settings.model.target
    return Run(run_dir, command.held.get(target.removeprefix(PREFIX)) if is_held(target) else None, is_own=True)


def _compute(command: Command, job: HydraJob, settings: Config, run_dir: Path, *, resume: bool) -> None:
    """Compute a run, or its remaining rounds, and draw its curves."""
    from fedprox.experiment import run as experiment  # here: it imports torch
    from fedprox.runs.progress import with_quiet_progress

    config, hydra = job.config, job.hydra
    overrides = without_resume(as_given(hydra.hydra.overrides.task))
    asked = ["fedprox.run", *command.words]
    with _explained(run_dir), log_apart(run_dir / "main.log", job.log_format):
        experiment.run(
            *(settings, run_dir),
            resume=resume,
            origin={"config_name": command.config_name, "overrides": overrides, "command": asked},
            on_begin=lambda: begin_log(run_dir, config, hydra, "fedprox"),
            progress=with_quiet_progress,
        )
        draw_curves(run_dir)


@contextmanager
def _explained(run_dir: Path) -> Iterator[None]:
    """Say in errors that end a run how to continue, and turn a user's sys.exit() into an error."""
    try:
        yield
    except SystemExit as end:
        raise RunStopped(f"{on_record(end)} ended the run") from end
    except (KeyboardInterrupt, RunStopped) as error:
        error.add_note(f"what was measured is kept; continue with fedprox.run(resume={str(run_dir)!r})")
        raise


def _check_here(settings: Config, command: Command) -> None:
    """Raise UserError unless a run can compute in this process."""
    if settings.is_deployment:
        raise UserError("engine=deployment runs on a federation, from the command line alone; use engine=local or ray")
    if command.held and settings.engine.target != _LOCAL:
        raise UserError(
            f"engine._target_={settings.engine.target} computes in other processes, which cannot import "
            f"{', '.join(command.held)}; import it from a module, or use engine=local"
        )


def _check_first(command: Command) -> None:
    """Raise UserError if a command's settings are wrong, as far as that can be known without data."""
    from fedprox.experiment import build  # here: it imports torch

    with holding(command.held):
        job = HydraJob(command.words, command.config_name)
        settings = job.settings(Path(job.run_dir))
        _check_here(settings, command)
        build.check_settings(settings)
        build.strategy(settings)


def _check_comparison(algorithms: Any, repetitions: Any) -> None:
    """Raise UserError unless the algorithms and the number of repetitions have their forms."""
    form = "algorithms must be a mapping from label to settings, such as {'FedAvg': {'strategy': 'fedavg'}}"
    if not isinstance(algorithms, Mapping) or not algorithms:
        raise UserError(f"{form}, got {algorithms!r:.60}; give one or more")
    for label, own in algorithms.items():
        if not isinstance(label, str) or not isinstance(own, Mapping):
            raise UserError(f"{form}, got {own!r:.60} for {label!r}; give it a mapping")
    if isinstance(repetitions, bool) or not isinstance(repetitions, int) or repetitions < 1:
        raise UserError(f"repetitions must be an integer >= 1, got {repetitions!r}; 5 are usual")


def _folders(labels: Iterable[str]) -> list[str]:
    """Return a folder's name for each label, all of them different."""
    folders: list[str] = []
    for label in labels:
        name = re.sub(r"[^\w.=+ -]", "_", label).strip(". ") or "_"
        names = (f"{name}_{number}" if number else name for number in count())
        folders.append(next(each for each in names if each not in folders))
    return folders


def _check_run(directory: Path) -> None:
    if not (directory / "run.json").is_file():
        raise UserError(f"{directory} is not a run directory: run.json is missing; name a directory that has it")
    read_record(directory / "run.json")


def _loaded(path: Path, model: Any, arguments: Mapping[str, Any], *, is_own: bool = False) -> "TrainedModel":
    """Return a model; see `load_model`.

    Args:
        path: A run directory, or a model.safetensors.
        model: What made it; None for what the file names.
        arguments: In place of those in the file.
        is_own: Whether this process has called what the file names already.
    """
    from fedprox.experiment.trained import trained_model
    from fedprox.runs.model_file import NAME, read_facts

    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist; name a finished run's directory, or finish the run with resume=")
    with _one_at_a_time:
        facts = read_facts(file) or _facts_of_run(file)
        if model is None:
            if not is_own:
                _check_trusted(file, facts.model, arguments)
            named, held = facts.model.target, {}
        else:
            named, held = f"{PREFIX}model", {"model": model if is_factory(model) else lambda: copy.deepcopy(model)}
        given = {**facts.model.arguments, **arguments} if model is None or is_factory(model) else {}
        with holding(held):
            return trained_model(file, facts.model_copy(update={"model": Target(_target_=named, **given)}))


def _check_trusted(file: Path, model: Target, given: Mapping[str, Any]) -> None:
    """Raise UserError if a file names a function that is not ours, or a file to be read."""
    if is_held(model.target):
        raise UserError(
            f"{file} is of {model.name}, which existed only in the Python process that trained it; give it: "
            f"load_model(..., model={model.name})"
        )
    if is_refused("model._target_", model.target, CONF):
        raise UserError(
            f"{file} names {model.target!r:.100}, but a file may not decide what is called; if you trust it, import "
            "and give it: load_model(..., model=...)"
        )
    for name, value in model.arguments.items():
        if name not in given and (is_place(f"model.{name}", value) or is_refused(f"model.{name}", value, CONF)):
            raise UserError(
                f"{file} names {value!r:.100} as {name}, but a file may not decide what is read; give it: "
                f"load_model(..., {name}=...)"
            )


def _facts_of_run(file: Path) -> "ModelFacts":
    """Return what is known of the model of a run of an earlier version, from its settings and its data.

    Raises:
        UserError: If there is no such run, its record names what a record may not decide, or its data are not here.
    """
    from fedprox.data.facts import Facts
    from fedprox.experiment.data import divided_data
    from fedprox.experiment.trained import model_facts

    run_dir = file.parent
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{file} does not describe its model, and run.json is not beside it; name its run directory")
    words = [*words_of("resume", str(run_dir)), "engine=local", "data_dir=${oc.env:FEDPROX_DATA_DIR,data}"]
    with apart(), errors_explained():
        _, name, *command = whole_command(words)
        settings = compose([word for word in command if not word.startswith("hydra.")], name)
    if settings.client.script is not None or settings.has_sites:
        raise UserError(
            f"{file} does not describe its model, whose clients had their own script or data; load the weights with "
            "safetensors.torch.load_file"
        )
    facts = model_facts(settings, Facts.of(divided_data(settings)), read_record(run_dir / "run.json").get("git_commit"))
    _forget_data()
    assert facts  # without a script
    return facts
