"""Settings of the tables of what attacks, robust rules, compression, privacy and skewed data do to each other."""

from fedprox.reproduce.accuracies import Factor, Table

_CODECS = {
    "float32": ("update=none",),
    "4 bits": ("update=quantise", "update.bits=4"),
    "top 10%": ("update=top_k", "update.fraction=0.1"),
}
_FEW_RULES = {
    "mean": ("strategy=fedprox",),
    "median": ("strategy=fed_median",),
    "MultiKrum": ("strategy=multi_krum", "strategy.num_malicious=5", "strategy.num_selected=12"),
}
_RULES = {
    "mean": ("strategy=fedprox",),
    "Krum": ("strategy=krum", "strategy.num_malicious=5"),
    "median": ("strategy=fed_median",),
    "MultiKrum": ("strategy=multi_krum", "strategy.num_malicious=5"),
    "geometric median": ("strategy=geometric_median",),
}
_ATTACKS = {"no attack": ("attack=none",), "sign flip": ("attack=sign_flip", "attack.scale=4", "attack.fraction=0.2")}
_PRIVACY = ("privacy=client", "privacy.clip=0.5", "privacy.delta=1e-3")

TABLES = (
    Table(
        "compression",
        "digits",
        ("experiment=digits_skewed",),
        (Factor("update", _CODECS), Factor("rule", _FEW_RULES)),
        Factor("attack", _ATTACKS),
    ),
    Table(
        "skew",
        "mnist",
        ("dataset=mnist", "clients_per_round=20", "stragglers_fraction=0", "mu=0"),
        (Factor("rule", _RULES),),
        Factor("attack", {"no attack": ()}),
    ),
    Table(
        "privacy",
        "mnist",
        # The runs of this command continue with nan, which cannot be clipped.
        ("dataset=mnist", "clients_per_round=50", "num_rounds=40", "stragglers_fraction=0", "on_divergence=stop"),
        (
            Factor("clients", {"IID": ("partition=iid",), "skewed": ("partition=power_law",)}),
            Factor("mu", {"mu = 0": ("mu=0",), "mu = 1": ("mu=1",)}),
        ),
        Factor(
            "privacy",
            {
                "no privacy": ("privacy=none",),
                **{f"z = {z:g}": (*_PRIVACY, f"privacy.noise_multiplier={z:g}") for z in (0, 0.5, 1)},
            },
        ),
    ),
)
