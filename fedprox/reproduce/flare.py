"""NVIDIA FLARE's comparison of four algorithms under label skew: settings, findings, and the numbers of FLARE."""

from collections.abc import Callable, Mapping

from fedprox.reproduce.accuracies import Cell, Factor, Table
from fedprox.reproduce.pages import Finding, Page, Read, Section, points, said

ALPHAS = ("1.0", "0.5", "0.3", "0.1")
PUBLISHED = {  # alpha, algorithm -> final test accuracy in the README of FLARE's CIFAR-10 example
    ("1.0", "FedAvg"): 0.8911,
    ("0.5", "FedAvg"): 0.8787,
    ("0.3", "FedAvg"): 0.8527,
    ("0.1", "FedAvg"): 0.8045,
    ("0.1", "FedProx"): 0.8059,
    ("0.1", "FedOpt"): 0.8058,
    ("0.1", "SCAFFOLD"): 0.8260,
}
_ALGORITHMS = {
    "FedAvg": ("strategy=fedavg", "mu=0"),
    "FedProx": ("strategy=fedprox", "mu=1e-5"),
    "FedOpt": (
        *("strategy=fedavgm", "strategy.server_momentum=0.6"),
        *("server_schedule.name=cosine", "server_schedule.final=0.9"),
    ),
    "SCAFFOLD": ("strategy=scaffold", "strategy.correct=steps"),
}
_EXACT = "experiment=flare_cifar10_exact"


def _table(dataset: str, *overrides: str) -> Table:
    skew = {f"alpha = {alpha}": (f"partition.alpha={alpha}",) for alpha in ALPHAS}
    return Table(dataset, dataset, (_EXACT, *overrides), (Factor("partition", skew),), Factor("algorithm", _ALGORITHMS))


TABLES = (
    _table("cifar10"),
    _table("digits", "dataset=digits", "model=mlp", "augmentation=none", "num_rounds=20", "learning_rate=0.01"),
)


def _row(cell: Read, alpha: str) -> dict[str, Cell]:
    return {name: cell(f"alpha = {alpha}", name) for name in _ALGORITHMS}


def skew_costs(cell: Read) -> Finding:
    """Compare FedAvg at the largest and the smallest alpha."""
    even, skewed = (_row(cell, alpha)["FedAvg"] for alpha in ("1.0", "0.1"))
    return Finding(
        "More label skew costs FedAvg accuracy",
        even.mean - skewed.mean > max(even.std, skewed.std),
        f"{said(even)} at alpha = 1.0 and {said(skewed)} at 0.1, which is {points(even, skewed)}.",
    )


def mu_changes_nothing(cell: Read) -> Finding:
    """Compare FedProx with so small a mu with FedAvg at every alpha."""
    pairs = [(row["FedAvg"], row["FedProx"]) for row in (_row(cell, alpha) for alpha in ALPHAS)]
    largest = max(abs(proximal.mean - plain.mean) for plain, proximal in pairs)
    return Finding(
        "mu = 1e-5 changes nothing that these repetitions can tell from chance",
        all(abs(proximal.mean - plain.mean) <= max(plain.std, proximal.std) for plain, proximal in pairs),
        f"The means of FedProx and FedAvg differ by {100 * largest:.2f} points at most.",
    )


def better(name: str) -> Callable[[Read], Finding]:
    """Return the comparison of an algorithm with FedAvg at the smallest alpha."""

    def compare(cell: Read) -> Finding:
        row = _row(cell, "0.1")
        plain, other = row["FedAvg"], row[name]
        return Finding(
            f"{name} is better than FedAvg at alpha = 0.1",
            other.mean - plain.mean > max(plain.std, other.std),
            f"{said(other)} against {said(plain)}.",
        )

    return compare


def _published() -> str:
    """Return FLARE's numbers as a table."""
    lines = [["partition", *_ALGORITHMS], ["---"] * (1 + len(_ALGORITHMS))]
    for alpha in ALPHAS:
        numbers = [PUBLISHED.get((alpha, name)) for name in _ALGORITHMS]
        lines.append([f"alpha = {alpha}", *("none" if each is None else f"{100 * each:.1f}%" for each in numbers)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_FINDINGS = (skew_costs, mu_changes_nothing, better("FedOpt"), better("SCAFFOLD"))
SECTIONS: Mapping[str, Section] = {
    "cifar10": Section(
        "CIFAR-10, as FLARE has it",
        "8 clients, all in every round, 50 rounds of 4 epochs, B = 64, FLARE's network. FLARE published, from one run "
        f"of each:\n\n{_published()}",
        _FINDINGS,
    ),
    "digits": Section(
        "The same on digits, for two cores",
        "scikit-learn's 1,797 digits and a perceptron with a hidden layer, 8 clients, all in every round, 20 rounds of "
        "4 epochs, B = 64. This shows that the algorithms run; it says nothing about CIFAR-10. FLARE's numbers are in "
        "[Heterogeneity](heterogeneity.md#flares-own-comparison).",
        _FINDINGS,
    ),
}

PAGE = Page(
    name="flare",
    title="NVIDIA FLARE's comparison",
    subject="FedAvg, FedProx, FedOpt and SCAFFOLD under label skew, with the conventions of NVIDIA FLARE's CIFAR-10 "
    "example.",
    text="Repetitions have the same clients, and other initial weights and batches. FLARE's conventions are momentum "
    "0.9 that each client keeps from round to round, a cosine that falls to a hundredth after every local epoch, "
    "averages weighted by numbers of steps, and SCAFFOLD's correction after momentum; FedOpt is momentum 0.6 on the "
    "server, whose learning rate falls from 1 to 0.9. A finding is confirmed if a difference of means is larger than "
    "both standard deviations.",
    tables=TABLES,
    sections=SECTIONS,
    has_bars=False,
)
