"""Contents of the paper's figures: data sets, straggler levels, lines and plotted metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedprox.report.runs import TITLES


@dataclass(frozen=True)
class Dataset:
    """A data set of the paper with its own settings (Li et al. 2020, app. C.2).

    Attributes:
        title: Its name in the paper.
        best_mu: The best of 0.001, 0.01, 0.1, 1 in the paper, which names it only for the data sets of figure 1.
        adversarial_mu: Initial value of adaptive mu (app. C.3.3): 1 on IID data, 0 otherwise.
    """

    title: str
    best_mu: float = 1.0
    adversarial_mu: float = 0.0


_PARAMETERS = {
    "synthetic_iid": {"adversarial_mu": 1.0},
    "shakespeare": {"best_mu": 0.001},
    "sent140": {"best_mu": 0.01},
}
DATASETS = {name: Dataset(title, **_PARAMETERS.get(name, {})) for name, title in TITLES.items()}
LOWER_RUNS = 1  # at most: FedDANE with 20 and 30 devices per round costs two and three times as much
SYNTHETIC = ("synthetic_iid", "synthetic_0_0", "synthetic_0.5_0.5", "synthetic_1_1")
PAPER_DATASETS = ("synthetic_1_1", "mnist", "femnist", "shakespeare", "sent140")


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        label: Its name in the legend and the table.
        overrides: Hydra overrides; {data.best_mu} and the like stand for a data set's values.
        colour: Index into `fedprox.report.style.PALETTE`.
        style: Matplotlib's line style.
    """

    label: str
    overrides: tuple[str, ...]
    colour: int
    style: str = "-"


FEDAVG = Line("FedAvg", ("strategy=fedavg",), 0)
MU_0 = Line("FedProx (mu = 0)", ("mu=0",), 1)
MU_1 = Line("FedProx (mu = 1)", ("mu=1",), 2)
BEST_MU = Line("FedProx (best mu)", ("mu={data.best_mu:g}",), 2)
ADAPTIVE_MU = Line("FedProx (adaptive mu)", ("mu={data.adversarial_mu:g}", "adaptive_mu.enabled=true"), 3)
FEDDANE_0 = Line("FedDANE (mu = 0)", ("strategy=feddane", "mu=0"), 5)
FEDDANE_1 = Line("FedDANE (mu = 1)", ("strategy=feddane", "mu=1"), 4)
MORE_DEVICES = tuple(  # of 30; the paper's text gives no numbers for the lower row of figure 4
    Line(f"{line.label[:-1]}, {num} devices)", (*line.overrides, f"clients_per_round={num}"), line.colour, style)
    for line in (FEDDANE_0, FEDDANE_1)
    for num, style in ((20, "--"), (30, ":"))
)
PROPORTIONAL_0 = Line("mu = 0, sampling by size", ("mu=0", "sampling=proportional"), 5)
PROPORTIONAL_1 = Line("mu = 1, sampling by size", ("mu=1", "sampling=proportional"), 4)


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: a column per data set, a row per straggler level and metric.

    Attributes:
        title: Its subject, for the legend.
        datasets: Its columns.
        lines: In the order of the legend.
        metrics: The plotted columns of metrics.csv.
        levels: Its shares of stragglers, 0 .. 1.
        overrides: Hydra overrides of all its runs.
        levels_across: Whether the levels are columns instead of rows.
        lower_lines: The lines of a second set of rows; those that are not in the first have at most LOWER_RUNS
            repetitions.
        over_data: Whether lines are means over data sets drawn with seeds 0, 1, ... instead of repetitions on the data
            set of seed 0. Only synthetic data sets can be drawn again.
    """

    title: str
    datasets: tuple[str, ...]
    lines: tuple[Line, ...]
    metrics: tuple[str, ...]
    levels: tuple[float, ...] = (0.0,)
    overrides: tuple[str, ...] = ()
    levels_across: bool = False
    lower_lines: tuple[Line, ...] = ()
    over_data: bool = False

    @property
    def all_lines(self) -> tuple[Line, ...]:
        """The lines of all rows, each once."""
        return tuple(dict.fromkeys((*self.lines, *self.lower_lines)))


_THREE = (FEDAVG, MU_0, BEST_MU)
_LEVELS = (0.0, 0.5, 0.9)
_ALL = ("train_loss", "test_accuracy", "gradient_variance")

FIGURES = {
    "fig1": Figure("Training loss with stragglers", PAPER_DATASETS, _THREE, ("train_loss",), _LEVELS),
    "fig2": Figure(
        "Statistical heterogeneity, no stragglers",
        SYNTHETIC,
        (MU_0, MU_1),
        ("train_loss", "gradient_variance"),
        over_data=True,
    ),
    "fig3": Figure("Adaptive mu", ("synthetic_iid", "synthetic_1_1"), (MU_0, MU_1, ADAPTIVE_MU), ("train_loss", "mu")),
    "fig4": Figure(
        "FedDANE and FedProx",
        SYNTHETIC,
        (MU_0, MU_1, FEDDANE_0, FEDDANE_1),
        ("train_loss",),
        lower_lines=(FEDDANE_0, FEDDANE_1, *MORE_DEVICES),
    ),
    "fig5": Figure(
        "Stragglers on IID data",
        ("synthetic_iid",),
        (FEDAVG, MU_0, MU_1),  # the paper names no best mu for IID data
        ("train_loss", "test_accuracy"),
        _LEVELS,
        levels_across=True,
    ),
    "fig6": Figure("All metrics of figure 2", SYNTHETIC, (MU_0, MU_1), _ALL, over_data=True),
    "fig7": Figure("Test accuracy with stragglers", PAPER_DATASETS, _THREE, ("test_accuracy",), _LEVELS),
    "fig8": Figure("Dissimilarity, no stragglers", PAPER_DATASETS, (MU_0, BEST_MU), ("gradient_variance",)),
    "fig9": Figure(
        "Training loss with stragglers, E = 1", PAPER_DATASETS, _THREE, ("train_loss",), _LEVELS, ("num_epochs=1",)
    ),
    "fig10": Figure(
        "Test accuracy with stragglers, E = 1", PAPER_DATASETS, _THREE, ("test_accuracy",), _LEVELS, ("num_epochs=1",)
    ),
    "fig11": Figure("Adaptive mu on all synthetic data", SYNTHETIC, (MU_0, MU_1, ADAPTIVE_MU), ("train_loss", "mu")),
    "fig12": Figure(
        "Uniform sampling, and sampling by size with a simple mean",
        SYNTHETIC,
        (MU_0, MU_1, PROPORTIONAL_0, PROPORTIONAL_1),
        _ALL,
    ),
    "headline": Figure(
        "Test accuracy at 90% stragglers", PAPER_DATASETS, (FEDAVG, BEST_MU), ("train_loss", "test_accuracy"), (0.9,)
    ),
}


@dataclass(frozen=True)
class Job:
    """One run of a figure.

    Attributes:
        dataset: A key of DATASETS.
        stragglers_fraction: Share of stragglers, 0 .. 1.
        label: The label of its line.
        repetition: 0, 1, ...: the setting repeat_num, which repetition 0 does not have.
        overrides: Hydra overrides without repetition and seed.
        seed: 0, 1, ...: the setting seed, which draws a synthetic data set.
    """

    dataset: str
    stragglers_fraction: float
    label: str
    repetition: int
    overrides: tuple[str, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """The run directory's name: all settings, and not the figure, because figures share runs."""
        said = [override for override in self.overrides if override != "evaluation=clients"]
        seed = [f"seed={self.seed}"] if self.seed else []
        repetition = [f"repeat_num={self.repetition}"] if self.repetition else []
        return ",".join([*said, *seed, *repetition]).removeprefix("experiment=").removeprefix("paper_")


def jobs_of(figure: Figure, datasets: Sequence[str], num_seeds: int, num_rounds: int | None = None) -> list[Job]:
    """Return a figure's runs, data set by data set.

    Args:
        figure: One of FIGURES.
        datasets: Which of its data sets.
        num_seeds: Number of repetitions on the data of seed 0, and in a figure over data sets also of data sets with
            one run each; the first run belongs to both.
        num_rounds: None for the paper's number.
    """
    rounds = () if num_rounds is None else (f"num_rounds={num_rounds}",)
    repetitions = [(0, repetition) for repetition in range(num_seeds)]
    other_data = [(seed, 0) for seed in range(1, num_seeds)] if figure.over_data else []
    return [
        Job(
            dataset,
            level,
            line.label,
            repetition,
            (
                f"experiment=paper_{dataset}",
                "evaluation=clients",
                *(override.format(data=DATASETS[dataset]) for override in line.overrides),
                f"stragglers_fraction={level:g}",
                *figure.overrides,
                *rounds,
            ),
            seed,
        )
        for dataset in figure.datasets
        if dataset in datasets
        for level in figure.levels
        for line in figure.all_lines
        for seed, repetition in (*repetitions, *other_data)
        if line in figure.lines or repetition < LOWER_RUNS
    ]
