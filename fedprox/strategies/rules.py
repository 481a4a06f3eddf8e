"""Robust rules: aggregates of updates that a minority of hostile clients can move only so far.

A rule is a function of the updates u_k = w_k - w^t of a round's n clients, an array of shape (n, d) in float64, and
returns the aggregate u, shape (d,). Every client counts the same: one that could claim a weight would. On whole models
instead of updates, float32 distances would lose late, small updates to rounding.
"""

import math

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

_MAX_ITERATIONS, _TOLERANCE = 100, 1e-10  # of Weiszfeld's algorithm; the tolerance is relative


def median(updates: Vectors) -> Vectors:
    """Return the median of each coordinate (Yin et al. 2018)."""
    return np.asarray(np.median(updates, axis=0))


def trimmed_mean(updates: Vectors, num_trimmed: int) -> Vectors:
    """Return the mean of each coordinate without its lowest and its highest `num_trimmed` values (Yin et al. 2018)."""
    n = len(updates)
    inner = np.partition(updates, (num_trimmed, n - num_trimmed - 1), axis=0)[num_trimmed : n - num_trimmed]
    return np.asarray(inner.mean(axis=0))


def squared_distances(updates: Vectors) -> Vectors:
    """Return ||u_i - u_j||^2 of all pairs, shape (n, n).

    Taken from differences, one row at a time: |u_i|^2 + |u_j|^2 - 2 u_i u_j cancels where updates are alike.
    """
    return np.array([np.square(updates - own).sum(axis=1) for own in updates])


def krum_scores(distances: Vectors, num_malicious: int) -> Vectors:
    """Return each one's sum of squared distances to its n - f - 2 nearest others, shape (n,) (Blanchard et al. 2017).

    Args:
        distances: From `squared_distances`.
        num_malicious: f.
    """
    num_near = max(1, len(distances) - num_malicious - 2)
    return np.asarray(np.sort(distances, axis=1)[:, 1 : num_near + 1].sum(axis=1))  # the first is its own, 0


def multi_krum(updates: Vectors, num_malicious: int, num_selected: int) -> Vectors:
    """Return the mean of the `num_selected` updates with the lowest Krum scores; one of them for Krum."""
    scores = krum_scores(squared_distances(updates), num_malicious)
    return np.asarray(updates[np.sort(np.argsort(scores, kind="stable")[:num_selected])].mean(axis=0))


def bulyan(updates: Vectors, num_malicious: int) -> Vectors:
    """Return Bulyan's aggregate (El Mhamdi et al. 2018).

    Krum selects n - 2f updates, one after another among those left; of two with the same score, which the last ones
    often have, the first counts. Of each coordinate the n - 4f selected values nearest to their median are averaged.
    """
    n, distances = len(updates), squared_distances(updates)
    left, selected = list(range(n)), []
    for _ in range(n - 2 * num_malicious):
        scores = krum_scores(distances[np.ix_(left, left)], num_malicious) if len(left) > 1 else np.zeros(1)
        selected.append(left.pop(int(np.argmin(scores))))
    chosen = updates[np.sort(selected)]
    offsets = np.abs(chosen - np.median(chosen, axis=0))
    nearest = np.argsort(offsets, axis=0, kind="stable")[: n - 4 * num_malicious]
    return np.asarray(np.take_along_axis(chosen, nearest, axis=0).mean(axis=0))


def clipped(updates: Vectors, radius: float) -> Vectors:
    """Return updates scaled down to a norm of at most `radius`; shorter ones and zeros stay."""
    norms = np.linalg.norm(updates, axis=-1, keepdims=True)
    return np.asarray(updates * np.minimum(1.0, radius / np.maximum(norms, np.finfo(np.float64).tiny)))


def centred_clipping(updates: Vectors, radius: float, iterations: int) -> Vectors:
    """Return v after v <- v + mean of (u_i - v), each clipped to a radius, from v = 0 (Karimireddy et al. 2021)."""
    centre: Vectors = np.zeros_like(updates[0])
    for _ in range(iterations):
        centre = centre + clipped(updates - centre, radius).mean(axis=0)
    return centre


def geometric_median(updates: Vectors) -> Vectors:
    """Return the point with the least sum of distances to the updates, by Weiszfeld's algorithm (Pillutla et al. 2022).

    Distances below the tolerance count as the tolerance, so the point may be one of the updates.
    """
    scale = float(np.abs(updates).max())
    if not scale:
        return np.zeros_like(updates[0])
    point, least = updates.mean(axis=0), _TOLERANCE * scale
    for _ in range(_MAX_ITERATIONS):
        weights = 1.0 / np.maximum(np.linalg.norm(updates - point, axis=1), least)
        moved = (weights / weights.sum()) @ updates
        if np.linalg.norm(moved - point) <= least:
            return np.asarray(moved)
        point = moved
    return np.asarray(point)


def nearest_neighbour_mixing(updates: Vectors, num_malicious: int) -> Vectors:
    """Return for each update the mean of its n - f nearest, itself included, shape (n, d) (Allouah et al. 2023)."""
    order = np.argsort(squared_distances(updates), axis=1, kind="stable")[:, : len(updates) - num_malicious]
    return np.array([updates[np.sort(near)].mean(axis=0) for near in order])


def bucketing(updates: Vectors, bucket_size: int, rng: np.random.Generator) -> Vectors:
    """Return the means of buckets of updates at random, shape (ceil(n / s), d) (Karimireddy et al. 2022)."""
    shuffled, num_buckets = updates[rng.permutation(len(updates))], math.ceil(len(updates) / bucket_size)
    return np.array([bucket.mean(axis=0) for bucket in np.array_split(shuffled, num_buckets)])
