"""The length of a client's path in gradients: how far its SGD moves for a gradient that stays the same.

From w^t, SGD with momentum rho and the proximal term ends at w^t - eta * sum_j a_j g_j, where g_j is the mini-batch
gradient of step j, weight decay and any correction included, and the weights a_j follow from the number of steps, rho,
eta and mu alone (Wang et al. 2020). Their sum ||a||_1 is what FedNova divides updates by, and what turns an
update into a mean gradient (SCAFFOLD's option II).
"""

from functools import lru_cache

from fedprox.solvers.problem import SgdSettings


def effective_steps(num_steps: int, sgd: SgdSettings, mu: float) -> float:
    """Return ||a||_1, the sum of the weights of a client's gradients in its update.

    Plain SGD has a_j = 1. Momentum alone has a_j = (1 - rho^(K - j)) / (1 - rho), and the proximal term alone has
    a_j = (1 - eta mu)^(K - 1 - j), for j = 0 .. K - 1 (Wang et al. 2020). Here both may come together.

    Args:
        num_steps: K, >= 0.
        sgd: Learning rate eta and momentum rho.
        mu: Weight of the proximal term, >= 0 and below 2 / eta.

    Examples:
        >>> from dataclasses import replace
        >>> plain = SgdSettings(learning_rate=0.1, batch_size=10)
        >>> effective_steps(3, plain, mu=0.0)
        3.0
        >>> effective_steps(3, replace(plain, momentum=0.5), mu=0.0)  # 1.75 + 1.5 + 1
        4.25
        >>> effective_steps(3, plain, mu=5.0)  # 0.25 + 0.5 + 1
        1.75
    """
    return _moved(num_steps, sgd.momentum, sgd.learning_rate * mu)


@lru_cache(maxsize=4096)  # a client has few numbers of steps
def _moved(num_steps: int, momentum: float, pull: float) -> float:
    """Return (w^t - w) / eta after steps with a gradient that is always 1; `pull` is eta mu."""
    moved = velocity = 0.0
    for _ in range(num_steps):
        velocity = momentum * velocity + 1.0 - pull * moved
        moved += velocity
    return moved
