"""Workloads: the commands that a user would type, the numbers that count, and their goals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Goal:
    """Goal for a number on two cores.

    Attributes:
        number: A key of `benchmarks.summary.UNITS`.
        goal: The value to aim at.
        limit: The worst acceptable value.
        more_is_better: Whether the number should be above these values rather than below.
    """

    number: str
    goal: float
    limit: float
    more_is_better: bool = False


@dataclass(frozen=True)
class Case:
    """One program that is measured repeatedly in fresh processes.

    Attributes:
        workload: Name of its workload.
        label: Its name within the workload.
        commands: Arguments of `python -m fedprox.main`, a tuple per command; they run one after another.
        program: Or the command line of another program, which prints its numbers as a line of JSON.
        goals: Goals of its numbers.
        shown: More numbers for the table.
    """

    workload: str
    label: str
    commands: tuple[tuple[str, ...], ...] = ()
    program: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    shown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in tables and progress lines."""
        return f"{self.workload} {self.label}"


@dataclass(frozen=True)
class Ratio:
    """A number of one case divided by the same number of another, run by run.

    Attributes:
        workload: Name of its workload.
        number: A key of `benchmarks.summary.UNITS`.
        of: Label of the case in the numerator.
        to: Label of the case in the denominator.
        per_core: Whether the denominator uses one core, so that it is multiplied by the number of cores.
        goals: At most one, whose `number` is "ratio".
    """

    workload: str
    number: str
    of: str
    to: str
    per_core: bool = False
    goals: tuple[Goal, ...] = ()

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.workload} {self.of} / {'cores x ' * self.per_core}{self.to}"


@dataclass(frozen=True)
class Workload:
    """A set of cases that are measured in turn.

    Attributes:
        name: Such as W1.
        what: A description in one line.
        cases: In the order of execution.
        ratios: Ratios between cases.
    """

    name: str
    what: str
    cases: tuple[Case, ...]
    ratios: tuple[Ratio, ...] = ()


def _ours(workload: str, label: str, *settings: str, goals: Sequence[Goal] = (), shown: Sequence[str] = ()) -> Case:
    """Return a case of one command; a label such as engine=local is also one of its settings."""
    engine = (label,) * label.startswith("engine=")
    return Case(workload, label, ((*settings, *engine),), goals=tuple(goals), shown=tuple(shown))


LOCAL, RAY, RAW = "engine=local", "engine=ray", "raw torch, one thread"
NO_STRAGGLERS = "stragglers_fraction=0.0"
SWEEP = ("--multirun", LOCAL, "stragglers_fraction=0.0,0.5,0.9", "+repeat_num=range(5)")
_CIFAR_SHAPED = ("dataset=custom", "dataset._target_=benchmarks.federations.cifar_shaped")
CIFAR = (
    *_CIFAR_SHAPED,
    "partition=custom",
    "partition._target_=benchmarks.federations.dirichlet",
    "+partition.alpha=0.3",
    "model=cnn_tutorial",
    "num_clients=100",
    "batch_size=32",
    "num_epochs=2",
    "num_rounds=16",
    NO_STRAGGLERS,
)
SIZES = {f"{num_clients:,} clients": num_clients for num_clients in (1_000, 10_000, 100_000)}


def _mnist_shaped(num_clients: int) -> tuple[str, ...]:
    data = ("dataset=custom", "dataset._target_=benchmarks.federations.mnist_shaped", "partition=natural")
    clients = (f"+dataset.num_clients={num_clients}", f"num_clients={num_clients}")
    return (*data, *clients, "num_rounds=101", NO_STRAGGLERS, LOCAL)


_W1_LOCAL = (Goal("rounds_s", 0.5, 1.0), Goal("whole_s", 4, 6), Goal("memory_gb", 0.9, 1.2))
_W2 = (  # as docs/results.md has them
    (*SWEEP, "mu=0.0,2.0", "hydra.sweep.dir=multirun/levels/fedprox"),
    ("--config-name", "fedavg", *SWEEP, "hydra.sweep.dir=multirun/levels/fedavg"),
)
_W4 = ("experiment=paper_synthetic_1_1", "evaluation=clients", NO_STRAGGLERS)  # as figures 2 and 6 have them, mu = 1
_SPEED = ("images_per_s", "memory_gb")
_CORES = (Goal("ratio", 0.97, 0.9, more_is_better=True),)


def _cifar(name: str, what: str, *settings: str) -> Workload:
    """Return a workload of CIFAR-shaped images on both engines, and its speed divided by plain torch's."""
    cases = (
        _ours(name, LOCAL, *CIFAR, *settings, shown=_SPEED),
        _ours(name, RAY, *CIFAR, *settings, "client_resources.num_cpus=1", shown=_SPEED),
        Case(name, RAW, program=("{python}", "-m", "benchmarks.raw_torch"), shown=("images_per_s",)),
    )
    return Workload(
        name, what, cases, tuple(Ratio(name, "images_per_s", engine, RAW, True, _CORES) for engine in (LOCAL, RAY))
    )


_W7 = ("experiment=pfl_cifar10", *_CIFAR_SHAPED, "num_rounds=110", "evaluation.every=10")
_W8 = ("experiment=flare_cifar10", *_CIFAR_SHAPED, "num_rounds=4")


def _on_gpu(name: str, what: str, settings: tuple[str, ...]) -> Workload:
    """Return a workload on a GPU, in float32 and in bfloat16."""
    labels = {"float32": (), "bfloat16": ("mixed_precision=true",)}
    shown = ("round_ms", "images_per_s", "setup_s")
    place = (LOCAL, "server_device=cuda")
    return Workload(
        name, what, tuple(_ours(name, label, *settings, *place, *more, shown=shown) for label, more in labels.items())
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "W1",
            "the default MNIST run without stragglers: 100 rounds, evaluation in each",
            (
                _ours("W1", LOCAL, NO_STRAGGLERS, goals=_W1_LOCAL),
                _ours("W1", RAY, NO_STRAGGLERS, goals=[Goal("whole_s", 12, 20)], shown=["rounds_s", "memory_gb"]),
            ),
        ),
        Workload(
            "W2",
            "the straggler figure of docs/results.md: 45 runs, two commands",
            (Case("W2", LOCAL, _W2, goals=(Goal("whole_s", 30, 60),), shown=("rounds_s", "memory_gb")),),
        ),
        Workload(
            "W3",
            "W1 with one local epoch",
            (_ours("W3", LOCAL, NO_STRAGGLERS, "num_epochs=1", goals=[Goal("rounds_s", 0.3, 0.5)], shown=["whole_s"]),),
        ),
        Workload(
            "W4",
            "figure 2's Synthetic(1,1): 200 rounds of 20 epochs, all metrics on all clients in each",
            (_ours("W4", LOCAL, *_W4, goals=[Goal("rounds_s", 2.5, 5)], shown=["whole_s"]),),
        ),
        _cifar("W5", "CIFAR-shaped images, CNN of 62,006 parameters, Dirichlet(0.3), B = 32, 10 clients a round"),
        _cifar(
            "W5aug",
            "W5 with images that are padded, cropped and mirrored; the raw training has them ready",
            "augmentation=crop_flip",
        ),
        Workload(
            "W6",
            "W1's model with 1,000 to 100,000 clients of 62 examples each",
            tuple(
                _ours("W6", label, *_mnist_shaped(size), shown=["round_ms", "setup_s", "memory_gb"])
                for label, size in SIZES.items()
            ),
            (
                Ratio("W6", "round_ms", "10,000 clients", "1,000 clients"),
                Ratio("W6", "round_ms", "100,000 clients", "1,000 clients", goals=(Goal("ratio", 1.05, 1.3),)),
            ),
        ),
        _on_gpu(
            "W7", "pfl-research's benchmark on a GPU: 50 of 1,000 clients a round, 5 steps of 10 images, dropout", _W7
        ),
        _on_gpu("W8", "NVIDIA FLARE's comparison on a GPU: 8 clients, 4 epochs of augmented images, ModerateCNN", _W8),
        Workload(
            "limit",
            "lower bound for W1: its arithmetic at the speed of large matrix products",
            (
                Case(
                    "limit",
                    "of W1",
                    program=("{python}", "-m", "benchmarks.limit"),
                    shown=("limit_s", "gflop", "gflop_per_s"),
                ),
            ),
        ),
    )
}


def of_engine(workload: Workload, engine: str) -> Workload:
    """Return a workload without the cases of other engines."""
    cases = [case for case in workload.cases if case.label in (f"engine={engine}", RAW) or "=" not in case.label]
    labels = {case.label for case in cases}
    ratios = tuple(ratio for ratio in workload.ratios if {ratio.of, ratio.to} <= labels)
    return replace(workload, cases=tuple(cases), ratios=ratios)


def changed(workload: Workload, overrides: Sequence[str]) -> Workload:
    """Return a workload with more settings in all of our own cases, and without goals."""
    cases = [
        replace(
            case,
            commands=tuple((*command, *overrides) for command in case.commands),
            program=(*case.program, *overrides) if case.program else (),
            goals=(),
            shown=shown_of(case),
        )
        for case in workload.cases
    ]
    ratios = tuple(replace(ratio, goals=()) for ratio in workload.ratios)
    return replace(workload, cases=tuple(cases), ratios=ratios)


def against(workload: Workload, label: str, overrides: Sequence[str] = (), program: Sequence[str] = ()) -> Workload:
    """Return a workload with an opponent after its first case, and the ratios of the opponent's times to ours.

    The opponent is our first case with other settings, or another program.
    """
    ours, *others = workload.cases
    accuracy = ("accuracy", "accuracy_last10")  # both sides must have learned the same
    shown = (*(number for number in shown_of(ours) if number in ("rounds_s", "round_ms", "whole_s")), *accuracy)
    commands = () if program else tuple((*command, *overrides) for command in ours.commands)
    opponent = Case(workload.name, label, commands, tuple(program), shown=shown)
    ours = replace(ours, shown=(*shown_of(ours), *accuracy))
    ratios = [Ratio(workload.name, number, label, ours.label) for number in shown if number not in accuracy]
    return replace(workload, cases=(ours, opponent, *others), ratios=(*workload.ratios, *ratios))


def shown_of(case: Case) -> tuple[str, ...]:
    """Return the numbers of a case for the table."""
    return tuple(dict.fromkeys((*(goal.number for goal in case.goals), *case.shown)))
