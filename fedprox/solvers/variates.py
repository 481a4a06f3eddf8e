"""Control variates of SCAFFOLD (Karimireddy et al. 2020): a client's estimate of its own gradient."""

from fedprox.solvers.effective_steps import effective_steps
from fedprox.solvers.problem import LocalProblem, LocalSolution, Params, SgdSettings

FULL_GRADIENT, MEAN_GRADIENT = 1, 2  # the paper's options I and II


def mean_gradient(problem: LocalProblem, solution: LocalSolution, sgd: SgdSettings) -> Params | None:
    """Return the next c_k by option II: the mean of the client's mini-batch gradients along its path.

        c_k <- c_k - c + (w^t - w_k) / (eta ||a||_1)        (Karimireddy et al. 2020, algorithm 1)

    With plain SGD ||a||_1 is the number of steps, as in the paper; `effective_steps` has it for momentum and mu, with
    which this is still a weighted mean of the gradients. Weight decay counts as part of the gradient.

    If the correction is added to steps, c_k is the mean of the client's steps after momentum, and the divisor K eta,
    with the learning rate eta of the last step, as in NIID-Bench (Li et al. 2022) and NVIDIA FLARE.

    Args:
        problem: Its correction is c - c_k, name -> tensor.
        solution: What the solver made of it.
        sgd: Settings of the local solver.

    Returns:
        Name -> tensor, for the names of the correction; None if the client has not done a single step.
    """
    work = problem.work
    num_batches = sgd.epoch(problem.num_examples).num_batches
    scaled, correction = sgd.scaled(work.learning_rate_factor), work.correction or {}
    if work.corrects_steps:
        last = work.factor(max(solution.num_steps - 1, 0), num_batches)
        scale = sgd.scaled(last).learning_rate * solution.num_steps
    else:
        scale = scaled.learning_rate * effective_steps(solution.num_steps, scaled, work.mu)
    if not scale:
        return None
    moved = {name: problem.global_params[name] - solution.params[name] for name in correction}
    return {name: moved[name] / scale - own for name, own in correction.items()}
