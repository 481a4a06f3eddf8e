"""The findings and the text of the page docs/interactions.md."""

from collections.abc import Mapping

from fedprox.reproduce.interactions import TABLES
from fedprox.reproduce.pages import Finding, Page, Read, Section, points, said

HONEST, SIGN_FLIP = "no attack", "sign flip"


def median_is_compressed_away(cell: Read) -> Finding:
    """Compare the median behind both codecs with the median of whole updates."""
    whole, coarse, sparse = (cell(f"{codec}, median", HONEST) for codec in ("float32", "4 bits", "top 10%"))
    return Finding(
        "Compression alone stops the median, though nobody attacks",
        whole.mean > 0.75 and max(coarse.mean, sparse.mean) < 0.3,
        f"{said(whole)} for whole updates, {said(coarse)} behind 4 bits and {said(sparse)} behind top 10%; a guess has "
        "10%. Most values of an update become 0, and so does the median of each coordinate. A run warns of this.",
    )


def multi_krum_bears_both_codecs(cell: Read) -> Finding:
    """Compare MultiKrum under attack behind the codecs."""
    whole, coarse, sparse = (cell(f"{codec}, MultiKrum", SIGN_FLIP) for codec in ("float32", "4 bits", "top 10%"))
    return Finding(
        "A rule by distances bears the attack behind both codecs",
        min(whole.mean, coarse.mean, sparse.mean) > 0.8,
        f"MultiKrum has {said(whole)}, {said(coarse)} and {said(sparse)} under the sign flip.",
    )


def sparse_updates_cost_multi_krum_more(cell: Read) -> Finding:
    """Compare what top 10% costs MultiKrum and the mean."""
    whole, sparse = (cell(f"{codec}, MultiKrum", HONEST) for codec in ("float32", "top 10%"))
    mean, sparse_mean = (cell(f"{codec}, mean", HONEST) for codec in ("float32", "top 10%"))
    return Finding(
        "Sparse updates cost MultiKrum more than the mean",
        whole.mean - sparse.mean > 2 * (mean.mean - sparse_mean.mean),
        f"Without an attack, top 10% costs MultiKrum {points(whole, sparse)}, from {said(whole)} to {said(sparse)}, "
        f"and the mean {points(mean, sparse_mean)}, from {said(mean)} to {said(sparse_mean)}.",
    )


def attackers_cost_multi_krum_nothing(cell: Read) -> Finding:
    """Compare MultiKrum with and without attackers."""
    honest, attacked = (cell("top 10%, MultiKrum", attack) for attack in (HONEST, SIGN_FLIP))
    return Finding(
        "MultiKrum behind top 10% is better with attackers than without",
        attacked.mean - honest.mean > honest.std,
        f"{said(attacked)} against {said(honest)}. It selects 12 of 20 updates in either case: without attackers it "
        "leaves out eight honest ones, with them about four.",
    )


def sparse_attack_is_worse(cell: Read) -> Finding:
    """Compare what the attack leaves of the mean with and without compression."""
    whole, sparse = (cell(f"{codec}, mean", SIGN_FLIP) for codec in ("float32", "top 10%"))
    return Finding(
        "The same attack harms the mean more behind top 10%",
        whole.mean - sparse.mean > whole.std,
        f"{said(whole)} for whole updates and {said(sparse)} behind top 10%: the attack alone is ruinous already.",
    )


def krum_pays_for_skew(cell: Read) -> Finding:
    """Compare Krum with the mean."""
    mean, krum = cell("mean", HONEST), cell("Krum", HONEST)
    return Finding(
        "On skewed clients Krum costs 15 points or more, though nobody attacks",
        mean.mean - krum.mean >= 0.15,
        f"{said(krum)} against {said(mean)} with the mean: {points(mean, krum)}. Krum takes one client's model, and "
        "that knows two digits.",
    )


def other_rules_gain(cell: Read) -> Finding:
    """Compare the rules that use many updates with the mean."""
    mean, *others = (cell(rule, HONEST) for rule in ("mean", "median", "MultiKrum", "geometric median"))
    return Finding(
        "Rules that use many updates gain there",
        min(other.mean for other in others) > mean.mean,
        f"{said(others[0])} with the median, {said(others[1])} with MultiKrum, {said(others[2])} with the geometric "
        f"median, {said(mean)} with the mean. They count every client the same; the mean weighs clients of 9 to 3,050 "
        "examples by their number.",
    )


def skew_raises_the_price_of_noise(cell: Read) -> Finding:
    """Compare what noise costs on IID and on skewed clients."""
    iid, noisy_iid = (cell("IID, mu = 0", noise) for noise in ("z = 0", "z = 1"))
    skewed, noisy_skewed = (cell("skewed, mu = 0", noise) for noise in ("z = 0", "z = 1"))
    return Finding(
        "The same noise costs skewed clients at least twice as much",
        skewed.mean - noisy_skewed.mean >= 2 * (iid.mean - noisy_iid.mean),
        f"z = 1 costs {points(iid, noisy_iid)} on IID clients, from {said(iid)} to {said(noisy_iid)}, and "
        f"{points(skewed, noisy_skewed)} on skewed ones, from {said(skewed)} to {said(noisy_skewed)}, with mu = 0.",
    )


def mu_lowers_the_price_of_noise(cell: Read) -> Finding:
    """Compare what noise costs skewed clients with and without a proximal term."""
    plain, noisy, proximal, noisy_proximal = (
        cell(f"skewed, mu = {mu}", noise) for mu in (0, 1) for noise in ("z = 0", "z = 1")
    )
    return Finding(
        "The proximal term lowers that price",
        (plain.mean - noisy.mean) - (proximal.mean - noisy_proximal.mean) > noisy.std,
        f"On skewed clients z = 1 costs {points(plain, noisy)} with mu = 0 and {points(proximal, noisy_proximal)} with "
        f"mu = 1, which ends at {said(noisy_proximal)}.",
    )


def clipping_helps_skewed_clients(cell: Read) -> Finding:
    """Compare clipped updates without noise with no privacy at all."""
    skewed, clipped = (cell("skewed, mu = 0", privacy) for privacy in ("no privacy", "z = 0"))
    iid, clipped_iid = (cell("IID, mu = 0", privacy) for privacy in ("no privacy", "z = 0"))
    return Finding(
        "Clipping and equal weights alone help skewed clients",
        clipped.mean - skewed.mean > skewed.std,
        f"Without noise they raise the accuracy from {said(skewed)} to {said(clipped)}, and lower it on IID clients "
        f"from {said(iid)} to {said(clipped_iid)}.",
    )


SECTIONS: Mapping[str, Section] = {
    "compression": Section(
        "Compression, robust rules and attackers",
        "scikit-learn's digits, 100 clients with Dirichlet(1) labels, 20 a round, E = 2, 40 rounds, mu = 0, no "
        "stragglers. A fifth of the clients flips the sign of its update and sends it four times as long.",
        (
            median_is_compressed_away,
            multi_krum_bears_both_codecs,
            sparse_updates_cost_multi_krum_more,
            attackers_cost_multi_krum_nothing,
            sparse_attack_is_worse,
        ),
    ),
    "skew": Section(
        "Robust rules and skewed clients",
        "The README's MNIST: 1,000 clients with two digits each and power-law sizes, here 20 a round, E = 10, 100 "
        "rounds, mu = 0, no stragglers, and nobody attacks.",
        (krum_pays_for_skew, other_rules_gain),
    ),
    "privacy": Section(
        "Privacy and skewed clients",
        "The README's MNIST clients, or IID ones: 1,000, of which each takes part in a round with probability 0.05, "
        "E = 10, 40 rounds, no stragglers. Updates are clipped to 0.5, and the noise is z times that; epsilon is that "
        "of all rounds at delta = 0.001. Without privacy a round has 50 clients, weighed by their examples.",
        (skew_raises_the_price_of_noise, mu_lowers_the_price_of_noise, clipping_helps_skewed_clients),
    ),
}

PAGE = Page(
    name="interactions",
    title="Interactions",
    subject="What attacks, robust rules, compression, privacy and skewed data do to each other.",
    text="Repetitions have the same clients, and other attackers, cohorts and batches. An interrupted command "
    "continues. A finding is confirmed if the numbers pass the thresholds in "
    "[interactions_page.py](../fedprox/reproduce/interactions_page.py), which were chosen after a first look at "
    "such runs.",
    tables=TABLES,
    sections=SECTIONS,
)
