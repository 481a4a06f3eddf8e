"""`hydra/sweeper=optuna`: a search in which Optuna chooses the values of settings, trial by trial.

hydra-optuna-sweeper needs Optuna 2, of 2022, so this sweeper is our own. Nothing is stored but the runs: a search that
continues asks a sampler with the same seed again, and the trials that have finished are not run again. So it is the
search that would have been without the interruption.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fedprox.cli.jobs import earlier_run
from fedprox.cli.trials import FAILED, FINISHED, PRUNED, Trial, write_trials
from fedprox.config.compose import compose, parsed
from fedprox.config.schema import Config, Search
from fedprox.errors import UserError
from fedprox.runs.reader import flattened, read_metrics, read_record
from fedprox.seeds import Stream, generator

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

SWEEPER = "hydra_plugins.fedprox.OptunaSweeper"  # Hydra makes no plugin of a package with another name
_NOT_SEARCHED = ("seed", "repeat_num", "objective", "early_stopping", "pruning_bar")
_MOST_ROUNDS_APART = 1e-9  # by which a share of the rounds may exceed a whole number
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Space:
    """What a search varies, and what it does not.

    Attributes:
        fixed: Overrides with one value.
        searched: Name of a setting as overrides have it, perhaps with a plus -> the values that it may have.
    """

    fixed: Sequence[str]
    searched: Mapping[str, "BaseDistribution"]

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial."""
        return [*self.fixed, *(f"{name}={value}" for name, value in values.items())]


class OptunaSweeper(Sweeper):
    """Runs trials one after another, or in batches, each a run in a directory of its own."""

    def __init__(self, **_: Any) -> None:
        """Do nothing: `setup` reads the settings, because an error here would be reported as one of Hydra's."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings, and make the launcher.

        Raises:
            UserError: If Optuna is not installed, or a setting breaks a rule.
        """
        if find_spec("optuna") is None:
            raise UserError("hydra/sweeper=optuna needs Optuna; install it with pip install 'fedprox[search]'")
        own: dict[str, Any] = OmegaConf.to_container(config.hydra.sweeper)  # type: ignore[assignment]
        own.pop("_target_")
        self.search = Search.of(own, "hydra.sweeper")
        self.folder, self.config_name = Path(config.hydra.sweep.dir), config.hydra.job.config_name
        OmegaConf.save(config, self.folder / "multirun.yaml")
        self.launch = (
            Plugins.instance()
            .instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)
            .launch
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all trials; after each batch, `trials.csv` has their values.

        Raises:
            UserError: If there is nothing to search, or the directory has other runs than those of this search.
        """
        search = self.search
        words = [*(f"{name}={value}" for name, value in search.params.items()), *arguments]
        begun = self._composed(fixed_words(words))
        from fedprox.experiment.build import (
            objective as objective_of,  # here: it imports torch, which --help does not need
        )

        space, objective = space_of(words, begun), objective_of(begun)
        study = _study(search, begun.seed, objective.direction)
        trials: list[Trial] = []
        curves: list[Rows] = []
        while (left := search.num_trials - len(trials)) > 0:
            asked = [study.ask(dict(space.searched)) for _ in range(min(search.num_parallel, left))]
            batch = [self._with_bar(space.words(trial.params), curves) for trial in asked]
            for number, trial_words in enumerate(batch, len(trials)):
                self._check_earlier(self.folder / str(number), trial_words)
            for trial, job in zip(asked, self.launch(batch, initial_job_idx=len(trials)), strict=True):
                trials.append(ended := _ended(trial, job))
                _tell(study, trial, ended)
                if ended.status == FINISHED:
                    curves.append(read_metrics(_run_dir(job) / "metrics.csv"))
            write_trials(self.folder, trials, objective.direction, begun.objective or objective.column)

    def _composed(self, words: Sequence[str]) -> Config:
        return compose(words, self.config_name)

    def _check_earlier(self, run_dir: Path, words: Sequence[str]) -> None:
        """Raise UserError if a trial's directory has a run with other settings."""
        if (run_dir / "run.json").exists():
            earlier_run(run_dir, self._composed(words).plain())

    def _with_bar(self, words: list[str], curves: Sequence[Rows]) -> list[str]:
        """Return a trial's overrides with the values that it must reach, if trials are pruned."""
        if len(curves) < self.search.num_startup:
            return words
        config = self._composed(words)
        bar = median_bar(curves, config, self.search)
        return [*words, f"pruning_bar={bar}".replace(" ", "")] if bar and config.pruning_bar is None else words


def space_of(words: Sequence[str], config: Config) -> Space:
    """Return what overrides say about a search.

    Args:
        words: Overrides, some of them with several values or an interval; of two for one setting the last one counts.
        config: The configuration without the settings that have several values.

    Raises:
        UserError: If there is nothing to search, or something that no search may choose.
    """
    overrides = {override.get_key_element().lstrip("+"): override for override in parsed(words)}
    swept = {name: override for name, override in overrides.items() if override.is_sweep_override()}
    for name in swept:
        if name.partition(".")[0] in _NOT_SEARCHED:
            raise UserError(
                f"{name} cannot be searched, got {swept[name].input_line}: a search would choose the luckiest draw, or "
                "another goal; give it one value, and repeat the best settings afterwards"
            )
    if not swept:
        raise UserError(
            "hydra/sweeper=optuna needs a setting to search; give one, such as 'mu=tag(log,interval(0.001,1))', or use "
            "hydra/sweeper=optuna_mu"
        )
    defaults = flattened(config.plain())
    fixed = [str(override.input_line) for name, override in overrides.items() if name not in swept]
    searched = {each.get_key_element(): _distribution(each, defaults.get(name)) for name, each in swept.items()}
    return Space(fixed, searched)


def fixed_words(words: Sequence[str]) -> list[str]:
    """Return those overrides that have one value."""
    return [str(override.input_line) for override in parsed(words) if not override.is_sweep_override()]


def _distribution(override: Override, default: Any) -> "BaseDistribution":
    """Return the values that a swept override allows: in an interval integers if the setting's default is one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, RangeSweep) and not value.shuffle and all(type(each) is int for each in _steps(value)):
        numbers = range(*_steps(value))
        if value.step > 0 and len(numbers) > 0:
            return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, is_log = cast(float, value.start), cast(float, value.end), "log" in value.tags
    if not low < high or (is_log and low <= 0):
        above = ", with low > 0 for tag(log, ...)" if is_log else ""
        raise UserError(f"{override.input_line} must be an interval(low, high) with low < high{above}")
    is_cast = isinstance(low, int) and isinstance(high, int)  # by int(interval(1, 64)); Hydra's ends are else floats
    if is_cast or (type(default) is int and low == int(low) and high == int(high)):
        return IntDistribution(int(low), int(high), log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def _steps(value: RangeSweep) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def median_bar(curves: Sequence[Rows], config: Config, search: Search) -> list[list[float]]:
    """Return the rounds in which a trial is compared with others, each with the median of theirs in that round.

    This is Optuna's median rule (`optuna.pruners.MedianPruner`) at some rounds: a trial ends if its best value so far
    is worse than the median of the values that the finished trials had in the same round.

    Args:
        curves: The rows of metrics.csv of each finished trial.
        config: The trial's settings.
        search: How often to compare, and from how many finished trials on.
    """
    metric, every, bar = config.early_stopping.metric, config.evaluation.every, []
    if metric is None:
        return []
    for share in search.prune_at:
        at = every * math.ceil(share * config.num_rounds / every - _MOST_ROUNDS_APART)  # an evaluated round
        values = [row.get(metric) for rows in curves for row in rows if row["round"] == at]
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if at < config.num_rounds and len(numbers) >= search.num_startup:
            bar.append([at, statistics.median(numbers)])
    return bar


def _study(search: Search, seed: int, direction: Literal["maximize", "minimize"]) -> "optuna.Study":
    """Return an empty study whose sampler follows from the seed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number = int(generator(seed, Stream.SEARCH).integers(2**32))
    if search.sampler == "random":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=number)
    else:
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=search.num_startup)
    return optuna.create_study(sampler=sampler, direction=direction)


def _ended(trial: "optuna.Trial", job: JobReturn) -> Trial:
    """Return how a trial ended."""
    value, params = job.return_value, {name.lstrip("+"): str(value) for name, value in trial.params.items()}
    if value is None or not math.isfinite(value):
        return Trial(trial.number, params, FAILED, None)
    stopped = read_record(_run_dir(job) / "run.json").get("stopped_early") or {}
    return Trial(trial.number, params, PRUNED if "missed" in stopped else FINISHED, float(value))


def _run_dir(job: JobReturn) -> Path:
    assert job.hydra_cfg is not None  # of a job that has ended
    return Path(job.hydra_cfg.hydra.runtime.output_dir)


def _tell(study: "optuna.Study", trial: "optuna.Trial", ended: Trial) -> None:
    """Let Optuna learn from a trial."""
    from optuna.trial import TrialState

    if ended.status == PRUNED and ended.value is not None:
        trial.report(ended.value, step=1)
        study.tell(trial, state=TrialState.PRUNED)
    elif ended.status == FAILED:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, ended.value)
