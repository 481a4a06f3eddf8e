"""Settings of the comparison of algorithms, with the learning rates that a search has found for each.

The search took one run of each combination at seed=1 (other data, other clients), in the harder column of each table,
and the best mean accuracy of its last ten rounds: four rates of the clients for every algorithm, each with three values
of the number that some have besides.
"""

from collections.abc import Mapping, Sequence

from fedprox.reproduce.accuracies import Factor, Table

RATES = {"synthetic": (0.001, 0.003, 0.01, 0.03), "mnist": (0.003, 0.01, 0.03, 0.1), "digits": (0.03, 0.1, 0.3, 1.0)}
_MUS = ("mu=0.01", "mu=0.1", "mu=1")
_ADAPTIVE = tuple(f"strategy.server_learning_rate={rate}" for rate in (0.01, 0.03, 0.1))
_FASTER = tuple(f"strategy.server_learning_rate={rate}" for rate in (0.03, 0.1, 0.3))
# name in a table -> strategy, and the values of its own number that were tried
ALGORITHMS: Mapping[str, tuple[str, Sequence[str]]] = {
    "FedAvg": ("fedavg", ()),
    "FedProx": ("fedprox", _MUS),
    "SCAFFOLD": ("scaffold", ()),
    "FedNova": ("fednova", ()),
    "FedDyn": ("feddyn", _MUS),
    "FedAvgM": ("fedavgm", tuple(f"strategy.server_learning_rate={rate}" for rate in (0.1, 0.3, 1))),
    "FedAdagrad": ("fedadagrad", _FASTER),
    "FedAdam": ("fedadam", _ADAPTIVE),
    "FedYogi": ("fedyogi", _ADAPTIVE),
    "FedDANE": ("feddane", _MUS),
}
# table -> algorithm -> the clients' learning rate and the place of its own number's value, as found
_FOUND: Mapping[str, Mapping[str, tuple[float, int | None]]] = {
    "synthetic": {
        "FedAvg": (0.001, None),
        "FedProx": (0.01, 2),
        "SCAFFOLD": (0.001, None),
        "FedNova": (0.003, None),
        "FedDyn": (0.03, 1),
        "FedAvgM": (0.001, 2),
        "FedAdagrad": (0.003, 2),
        "FedAdam": (0.001, 1),
        "FedYogi": (0.003, 2),
        "FedDANE": (0.001, 2),
    },
    "mnist": {
        "FedAvg": (0.003, None),
        "FedProx": (0.1, 2),
        "SCAFFOLD": (0.003, None),
        "FedNova": (0.003, None),
        "FedDyn": (0.01, 2),
        "FedAvgM": (0.003, 0),
        "FedAdagrad": (0.1, 0),
        "FedAdam": (0.1, 0),
        "FedYogi": (0.1, 0),
        "FedDANE": (0.01, 1),
    },
    "digits": {
        "FedAvg": (0.3, None),
        "FedProx": (0.3, 0),
        "SCAFFOLD": (0.1, None),
        "FedNova": (0.3, None),
        "FedDyn": (0.1, 1),
        "FedAvgM": (0.3, 1),
        "FedAdagrad": (0.1, 2),
        "FedAdam": (0.1, 2),
        "FedYogi": (0.1, 2),
        "FedDANE": (0.03, 0),
    },
}


def _found(table: str) -> Factor:
    """Return the algorithms of a table, with the numbers that were found for it."""
    choices = {}
    for name, (strategy, values) in ALGORITHMS.items():
        rate, place = _FOUND[table][name]
        own = () if place is None else (values[place],)
        choices[name] = (f"strategy={strategy}", f"learning_rate={rate:g}", *own)
    return Factor("algorithm", choices)


_STRAGGLERS = Factor(
    "stragglers", {"no stragglers": ("stragglers_fraction=0",), "90% stragglers": ("stragglers_fraction=0.9",)}
)
TABLES = (
    Table(
        "synthetic",
        "synthetic_1_1",
        ("experiment=paper_synthetic_1_1", "num_rounds=100"),
        (_found("synthetic"),),
        _STRAGGLERS,
    ),
    Table("mnist", "mnist", ("dataset=mnist",), (_found("mnist"),), _STRAGGLERS),
    Table(
        "digits",
        "digits",
        ("experiment=digits_mlp", "solver=cohort"),
        (_found("digits"),),
        Factor("partition", {"alpha = 0.1": ("partition.alpha=0.1",), "alpha = 1": ("partition.alpha=1",)}),
    ),
)
