"""The local solver's definition: w <- w - lr * (grad F_B(w) + mu * (w - w^t) + weight_decay * w)."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.federation.schedules import epoch_factors
from fedprox.models.cnn import cnn
from fedprox.solvers.problem import LocalProblem, LocalSolution, LocalWork, SgdSettings
from fedprox.solvers.reference import ReferenceSolver, step

# Float64 throughout: what remains is rounding, a few units of 1e-16 per operation.
EXACT = {"rtol": 1e-12, "atol": 1e-13}
NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES = 8, 3, 4


def examples(num_examples: int = NUM_EXAMPLES, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(num_examples, NUM_FEATURES)))
    return features, torch.from_numpy(rng.integers(NUM_CLASSES, size=num_examples))


def linear() -> nn.Module:
    return nn.Linear(NUM_FEATURES, NUM_CLASSES).double()


def weights(seed: int = 1, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Return parameters of both signs for `linear`."""
    rng = np.random.default_rng(seed)
    return {
        "weight": torch.from_numpy(scale * rng.normal(size=(NUM_CLASSES, NUM_FEATURES))),
        "bias": torch.from_numpy(scale * rng.normal(size=NUM_CLASSES)),
    }


def orders(num_epochs: int, num_examples: int = NUM_EXAMPLES, seed: int = 2) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_examples).tolist() for _ in range(num_epochs)]


def batches(epoch_orders: list[list[int]], batch_size: int) -> list[list[int]]:
    """Return the positions of each mini-batch, written out independently of the solver."""
    return [order[at : at + batch_size] for order in epoch_orders for at in range(0, len(order), batch_size)]


def work(epochs: list[list[int]], num_steps: int, mu: float, seed: int = 0) -> LocalWork:
    return LocalWork([np.array(order, dtype=np.int64) for order in epochs], num_steps, mu, seed)


def solve(
    global_params: dict[str, torch.Tensor],
    *,
    mu: float = 0.0,
    num_steps: int = 10**6,
    epochs: list[list[int]] | None = None,
    data: tuple[torch.Tensor, torch.Tensor] | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
    start: dict[str, torch.Tensor] | None = None,
    **sgd,
):
    settings = SgdSettings(**({"learning_rate": 0.1, "batch_size": 3} | sgd))
    solver = ReferenceSolver(model or linear(), settings)
    features, labels = data or examples()
    some_work = work(orders(2) if epochs is None else epochs, num_steps, mu, seed)
    return solver.solve(LocalProblem(global_params, features, labels, some_work, start=start))


def flat(params: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([params["weight"].flatten(), params["bias"].flatten()])


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or EXACT))


# One step


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
def test_one_step_on_a_quadratic_matches_the_closed_form(mu, weight_decay):
    # f(w) = (w - b)^2 / 2, so w1 = w0 - lr * ((w0 - b) + mu * (w0 - wt) + wd * w0); w0 on both sides of wt and b.
    b, wt, lr = 3.0, -1.0, 0.1
    for w0 in (2.0, -4.0, 5.0, wt):
        params = [torch.tensor([w0], dtype=torch.float64)]
        anchor = [torch.tensor([wt], dtype=torch.float64)]
        sgd = SgdSettings(lr, 1, weight_decay=weight_decay)
        step(params, [params[0] - b], anchor, None, mu, sgd)
        expected = w0 - lr * ((w0 - b) + mu * (w0 - wt) + weight_decay * w0)
        assert params[0].item() == pytest.approx(expected, rel=1e-14)
        assert anchor[0].item() == wt


def test_momentum_carries_the_whole_bracket():
    # v1 = g1, v2 = m v1 + g2 with g = (w - b) + mu (w - wt), both signs of w - wt.
    b, wt, lr, mu, m = 3.0, -1.0, 0.1, 0.5, 0.9
    for w0 in (2.0, -4.0):
        params, anchor = [torch.tensor([w0]).double()], [torch.tensor([wt]).double()]
        velocity = [torch.zeros(1).double()]
        sgd = SgdSettings(lr, 1, momentum=m)
        for _ in range(2):
            step(params, [params[0] - b], anchor, velocity, mu, sgd)
        v1 = (w0 - b) + mu * (w0 - wt)
        w1 = w0 - lr * v1
        v2 = m * v1 + (w1 - b) + mu * (w1 - wt)
        assert params[0].item() == pytest.approx(w1 - lr * v2, rel=1e-14)
        assert velocity[0].item() == pytest.approx(v2, rel=1e-14)


# A velocity that is kept, epochs with rates of their own, and corrections after momentum


def solve_one(given: LocalWork, velocity: dict | None = None, **sgd) -> LocalSolution:
    settings = SgdSettings(**({"learning_rate": 0.1, "batch_size": 3, "momentum": 0.9} | sgd))
    return ReferenceSolver(linear(), settings).solve(LocalProblem(weights(), *examples(), given, velocity=velocity))


def test_one_step_from_a_velocity_and_corrected_after_momentum_matches_the_formula():
    # Without momentum w0 - w1 = lr g. With v0, v1 = m v0 + g, w1 = w0 - lr (v1 + c), and c is no part of v1.
    one_step, w0, v0, c = work(orders(1), 1, mu=0.0), weights(), weights(5), weights(6)
    alone = solve_one(one_step, momentum=0.0).params
    found = solve_one(replace(one_step, correction=c, corrects_steps=True), v0, momentum_buffer="kept")
    within = solve_one(replace(one_step, correction=c), v0, momentum_buffer="kept")
    for name, start in w0.items():
        v1 = 0.9 * v0[name] + (start - alone[name]) / 0.1
        torch.testing.assert_close(found.velocity[name], v1, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.params[name], start - 0.1 * (v1 + c[name]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(within.velocity[name], v1 + c[name], rtol=1e-10, atol=1e-12)


def test_without_momentum_a_correction_of_steps_is_one_of_gradients():
    given = replace(work(orders(2), 5, mu=0.5), correction=weights(6), epoch_factors=(1.0, 0.25))
    one, other = (solve_one(replace(given, corrects_steps=each), momentum=0.0).params for each in (True, False))
    assert_same(one, other)


def test_a_velocity_that_starts_at_zero_is_the_one_that_none_is_given_and_is_returned_only_if_kept():
    given = work(orders(2), 5, mu=0.5)
    zeros = {name: torch.zeros_like(value) for name, value in weights().items()}
    assert_same(solve_one(given).params, solve_one(given, zeros).params, rtol=0, atol=0)
    assert solve_one(given).velocity is None
    assert solve_one(given, momentum_buffer="kept").velocity is not None


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_rates_of_epochs_are_those_of_torchs_schedule_and_end_with_the_work(kind):
    # Three epochs of three batches, of which eight steps are done; factors of a fourth epoch are left over.
    made = {"sgd": lambda own, lr: torch.optim.SGD(own, lr, momentum=0.9), "adam": torch.optim.Adam}
    model, epochs = linear(), orders(3)
    model.load_state_dict(weights())
    optimizer = made[kind](model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=0.1 * 0.01)
    for number, batch in enumerate(batches(epochs, 3)[:8]):
        optimizer.zero_grad()
        functional.cross_entropy(model(examples()[0][batch]), examples()[1][batch]).backward()
        optimizer.step()
        if number % 3 == 2:
            schedule.step()
    given = replace(work(epochs, 8, mu=0.0), epoch_factors=tuple(epoch_factors(1, 3, num_epochs=4, final=0.01)))
    settings = {"sgd": {}, "adam": {"momentum": 0.0, "optimizer": lambda own, lr: torch.optim.Adam(list(own), lr=lr)}}
    found = solve_one(given, **settings[kind]).params
    assert_same(found, dict(model.state_dict()), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found["weight"], solve_one(replace(given, epoch_factors=())).params["weight"], rtol=1e-3)


# The gradient of h_k


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_every_step_is_the_gradient_of_the_batchs_h_with_the_anchor_at_the_global_model(mu):
    # h_B(w) = F_B(w) + mu/2 ||w - w^t||^2 by central differences; steps 2 .. 6 have left w^t, in both
    # directions. The differences err by about eps^2 + 1e-16 / eps = 1e-10 for eps = 1e-6, and dividing a
    # step by lr = 0.1 adds 1e-15.
    features, labels = examples()
    start, eps, lr = weights(), 1e-6, 0.1
    path = [flat(start)] + [flat(solve(start, mu=mu, num_steps=s).params) for s in range(1, 7)]
    difference = path[5] - path[0]
    assert (difference > 0).any()
    assert (difference < 0).any()

    def h(w: torch.Tensor, batch: list[int]) -> float:
        weight, bias = w[:-NUM_CLASSES].reshape(NUM_CLASSES, NUM_FEATURES), w[-NUM_CLASSES:]
        logits = features[batch] @ weight.T + bias
        loss = (torch.logsumexp(logits, 1) - logits[torch.arange(len(batch)), labels[batch]]).mean()
        return float(loss + mu / 2 * ((w - path[0]) ** 2).sum())

    for (w, after), batch in zip(pairwise(path), batches(orders(2), 3), strict=True):
        unit = eps * torch.eye(len(w), dtype=torch.float64)
        numeric = torch.tensor([(h(w + e, batch) - h(w - e, batch)) / (2 * eps) for e in unit]).double()
        torch.testing.assert_close((w - after) / lr, numeric, rtol=1e-7, atol=1e-8)


def test_from_another_start_the_anchor_is_still_the_global_model():
    # One step from v: v - lr * (grad F_B(v) + mu * (v - w^t)), and grad F_B(v) is (v - v1) / lr of a step with mu = 0.
    anchor, start, lr, mu = weights(), weights(seed=5), 0.1, 0.7
    plain = flat(solve(start, num_steps=1).params)
    found = solve(anchor, start=start, mu=mu, num_steps=1)
    torch.testing.assert_close(flat(found.params), plain - lr * mu * (flat(start) - flat(anchor)), **EXACT)
    assert_same(start, weights(seed=5))
    assert_same(solve(anchor, start=anchor, mu=mu).params, solve(anchor, mu=mu).params)
    assert_same(solve(anchor, start=start).params, solve(start).params)  # without mu the anchor plays no part


# Known special cases


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_mu_0_is_torchs_sgd(momentum, weight_decay):
    model = linear()
    model.load_state_dict(weights())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    features, labels = examples()
    for batch in batches(orders(2), 3):
        optimizer.zero_grad()
        functional.cross_entropy(model(features[batch]), labels[batch]).backward()
        optimizer.step()
    ours = solve(weights(), momentum=momentum, weight_decay=weight_decay)
    assert ours.num_steps == 6
    assert_same(ours.params, dict(model.state_dict()))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_from_zero_weights_but_not_from_others_mu_is_weight_decay_mu(momentum):
    zero = {name: torch.zeros_like(value) for name, value in weights().items()}
    with_mu = solve(zero, mu=0.3, momentum=momentum)
    with_decay = solve(zero, weight_decay=0.3, momentum=momentum)
    assert_same(with_mu.params, with_decay.params)
    elsewhere = flat(solve(weights(), mu=0.3).params) - flat(solve(weights(), weight_decay=0.3).params)
    assert elsewhere.abs().max() > 0.01


def test_a_larger_mu_keeps_the_result_nearer_to_the_global_model():
    start = weights()
    distances = [float((flat(solve(start, mu=mu).params) - flat(start)).norm()) for mu in (0.0, 0.5, 2.0)]
    assert distances[0] > 1.02 * distances[1] > 1.02**2 * distances[2] > 0


# Amount of work


def test_it_stops_after_num_steps_in_the_middle_of_an_epoch():
    first, second = orders(2)
    stopped = solve(weights(), num_steps=4, mu=0.5)  # three batches of the first epoch, one of the second
    by_hand = solve(weights(), epochs=[first, second[:3]], mu=0.5)
    assert (stopped.num_steps, by_hand.num_steps) == (4, 4)
    assert_same(stopped.params, by_hand.params)
    assert stopped.train_loss == pytest.approx(by_hand.train_loss, rel=1e-12)
    assert not torch.equal(flat(stopped.params), flat(solve(weights(), num_steps=5, mu=0.5).params))


def test_without_steps_the_solution_is_the_global_model():
    for solution in (solve(weights(), num_steps=0), solve(weights(), epochs=[])):
        assert solution.num_steps == 0
        assert solution.train_loss == 0.0
        assert_same(solution.params, weights(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("last_batch", "batches_"),
    [
        ("keep", [[2, 0, 3], [1, 6, 5], [4, 7]]),
        ("drop", [[2, 0, 3], [1, 6, 5]]),
        ("merge", [[2, 0, 3], [1, 6, 5, 4, 7]]),
    ],
)
def test_an_epochs_last_batch_follows_the_setting(last_batch, batches_):
    # With mu = 0 a batch is one step from wherever the one before ended: w <- w - lr * the batch's own mean gradient.
    (features, labels), order = examples(), [2, 0, 3, 1, 6, 5, 4, 7]
    model, loss_sum = linear(), 0.0
    model.load_state_dict(weights())
    for batch in batches_ * 2:
        model.zero_grad()
        loss = functional.cross_entropy(model(features[batch]), labels[batch])
        loss.backward()
        loss_sum += loss.item() * len(batch)
        with torch.no_grad():
            for param in model.parameters():
                param -= 0.1 * param.grad
    solution = solve(weights(), epochs=[order, order], last_batch=last_batch)
    assert solution.num_steps == 2 * len(batches_)
    assert_same(solution.params, dict(model.state_dict()))
    num_seen = 2 * sum(map(len, batches_))
    assert solution.train_loss == pytest.approx(loss_sum / num_seen, rel=1e-6)  # kept in float32, as above


# Training loss


def test_train_loss_is_the_mean_over_examples_as_they_were_processed_without_the_proximal_term():
    # Batches of 3, 3 and 2: each one's mean at the weights before its step, weighted by its size. The mean
    # of batch means would be another number.
    features, labels = examples()
    epochs, start, mu = orders(1), weights(), 0.8
    path = [start] + [solve(start, epochs=epochs, num_steps=s, mu=mu).params for s in (1, 2)]
    sums = []
    for params, batch in zip(path, batches(epochs, 3), strict=True):
        logits = (features[batch] @ params["weight"].T + params["bias"]).numpy()
        chosen = logits[np.arange(len(batch)), labels[batch].numpy()]
        sums.append(float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum()))
    mean_of_means = (sums[0] / 3 + sums[1] / 3 + sums[2] / 2) / 3
    assert abs(sum(sums) / 8 - mean_of_means) > 1e-3
    # The sum is kept in float32: 2^-24 relative per addition, three additions.
    assert solve(start, epochs=epochs, mu=mu).train_loss == pytest.approx(sum(sums) / 8, rel=1e-6)


# Arguments and generators stay unchanged


def test_arguments_and_the_model_are_not_changed():
    model, (features, labels), start = linear(), examples(), weights()
    model.eval()
    model.zero_grad()
    before = [copy.deepcopy(value) for value in (model.state_dict(), features, labels, start)]
    solution = solve(start, data=(features, labels), model=model, mu=0.5, momentum=0.9, weight_decay=0.1)
    assert_same(dict(model.state_dict()), dict(before[0]), rtol=0.0, atol=0.0)
    assert torch.equal(features, before[1])
    assert torch.equal(labels, before[2])
    assert_same(start, before[3], rtol=0.0, atol=0.0)
    assert not model.training
    assert all(param.grad is None for param in model.parameters())
    assert not torch.equal(flat(solution.params), flat(start))


def test_a_later_call_neither_changes_an_earlier_solution_nor_depends_on_it():
    solver = ReferenceSolver(linear(), SgdSettings(0.1, 3, momentum=0.9))
    features, labels = examples()
    first = solver.solve(LocalProblem(weights(), features, labels, work(orders(2), 6, 0.5)))
    kept = copy.deepcopy(first.params)
    solver.solve(LocalProblem(weights(seed=5), features, labels, work(orders(2, seed=6), 6, 0.5)))
    assert_same(first.params, kept, rtol=0.0, atol=0.0)
    # The velocity starts at zero: the same call gives the same result, and that of a fresh solver.
    again = solver.solve(LocalProblem(weights(), features, labels, work(orders(2), 6, 0.5)))
    assert_same(again.params, kept, rtol=0.0, atol=0.0)


def test_dropout_follows_the_seed_of_the_work_and_not_the_global_generator():
    model = nn.Sequential(nn.Dropout(0.5), linear())
    start = {f"1.{name}": value for name, value in weights().items()}
    torch.manual_seed(1)
    one = solve(start, model=model, seed=3).params["1.weight"]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    same, other = (solve(start, model=model, seed=seed).params["1.weight"] for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 1e-3
    assert (one - solve(weights()).params["weight"]).abs().max() > 1e-3  # so it is training mode


def test_batch_norms_buffers_are_part_of_the_solution_and_start_at_the_global_ones():
    # running_mean <- 0.9 running_mean + 0.1 batch mean, from the global value 5; one batch of all 8 examples.
    model = nn.Sequential(nn.BatchNorm1d(NUM_FEATURES), nn.Linear(NUM_FEATURES, NUM_CLASSES)).double()
    start = copy.deepcopy(model.state_dict())
    start["0.running_mean"].fill_(5.0)
    features, labels = examples()
    solver = ReferenceSolver(model, SgdSettings(0.1, 8))
    for _ in range(2):  # the second call does not continue from the buffers of the first
        solution = solver.solve(LocalProblem(start, features, labels, work(orders(1), 1, 0.5)))
        assert solution.params.keys() == start.keys()
        expected = 0.9 * 5.0 + 0.1 * features.mean(dim=0)
        torch.testing.assert_close(solution.params["0.running_mean"], expected, **EXACT)
        assert int(solution.params["0.num_batches_tracked"]) == 1
    assert float(start["0.running_mean"].min()) == 5.0


def test_float32_models_stay_float32_and_agree_with_float64():
    # Six steps of size 0.1 on numbers of order 1: a few hundred float32 roundings of 6e-8.
    features, labels = examples()
    single = {name: value.float() for name, value in weights().items()}
    model = nn.Linear(NUM_FEATURES, NUM_CLASSES)
    solution = solve(single, data=(features.float(), labels), model=model, mu=0.5)
    assert {value.dtype for value in solution.params.values()} == {torch.float32}
    double = flat(solve(weights(), mu=0.5).params)
    torch.testing.assert_close(flat(solution.params).double(), double, rtol=0, atol=1e-5)
    assert math.isfinite(solution.train_loss)


# Layout, threads and precision


def seeded_cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cnn((8, 8), NUM_CLASSES)


def cnn_problems(model: nn.Module) -> list[tuple]:
    rng = np.random.default_rng(0)
    return [
        LocalProblem(
            {name: value + 0.002 * client for name, value in model.state_dict().items()},
            torch.from_numpy(rng.normal(size=(size, 8, 8)).astype(np.float32)),
            torch.from_numpy(rng.integers(NUM_CLASSES, size=size)),
            work(orders(2, size), 10**6, 0.5),
        )
        for client, size in enumerate((1, 9, 30, 17, 5, 40, 8, 33))
    ]


def test_the_layout_changes_solutions_by_rounding_only():
    model = seeded_cnn()
    problems, sgd = cnn_problems(model), SgdSettings(0.02, 4, momentum=0.9)
    plain, fast = ReferenceSolver(model, sgd), ReferenceSolver(model, sgd, "cpu", problems[1].features)
    for problem in problems:
        one, other = plain.solve(problem), fast.solve(problem)
        # Up to 20 steps in float32: 6e-8 per operation, which a CNN may enlarge a hundredfold.
        assert_same(one.params, other.params, rtol=1e-4, atol=1e-5)
        assert all(value.is_contiguous() for value in other.params.values())


def test_only_a_tried_model_without_random_numbers_is_concurrent():
    features, _ = examples()
    drawing, sgd = nn.Sequential(nn.AlphaDropout(0.5), linear()), SgdSettings(0.1, 3)
    assert not ReferenceSolver(linear(), sgd).is_concurrent
    assert not ReferenceSolver(drawing, sgd, "cpu", features).is_concurrent
    assert ReferenceSolver(linear(), sgd, "cpu", features).is_concurrent


def test_a_frozen_parameter_stays():
    model = nn.Sequential(nn.Linear(NUM_FEATURES, NUM_FEATURES), linear()).double()
    model[0].weight.requires_grad_(False)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    features, labels = examples()
    problem = LocalProblem(start, features, labels, work(orders(2), 6, 0.5))
    found = ReferenceSolver(model, SgdSettings(0.1, 3)).solve(problem).params
    assert torch.equal(found["0.weight"], start["0.weight"])
    assert not torch.equal(found["0.bias"], start["0.bias"])
    assert not torch.equal(found["1.weight"], start["1.weight"])


def test_a_parameter_outside_the_loss_has_only_weight_decay_and_the_proximal_term():
    model = linear()
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    start = weights() | {"unused": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    # Its gradient and, at w = w^t, the proximal term are 0: only weight decay moves it, by 1 - lr * 0.5 a step.
    solution = solve(start, mu=0.0, model=model, epochs=orders(1), weight_decay=0.5)
    assert torch.allclose(solution.params["unused"], start["unused"] * 0.95**3, **EXACT)
    assert torch.equal(solve(start, mu=1.0, model=model).params["unused"], start["unused"])


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights():
    seen = []

    class Seeing(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            seen.append(logits.dtype)
            return logits

    torch.manual_seed(0)
    model = Seeing(NUM_FEATURES, NUM_CLASSES)
    features, labels = examples()
    some_work, start = work(orders(2), 10**6, mu=0.5), copy.deepcopy(model.state_dict())
    solved = {
        mixed: ReferenceSolver(model, SgdSettings(0.1, 3, mixed_precision=mixed)).solve(
            LocalProblem(start, features.float(), labels, some_work)
        )
        for mixed in (True, False)
    }
    assert set(seen) == {torch.bfloat16, torch.float32}
    for name, value in solved[False].params.items():
        assert solved[True].params[name].dtype == torch.float32
        # bfloat16 has 8 bits: logits of order 1 are off by 0.4%, and six steps of 0.1 add that up.
        assert 0 < (solved[True].params[name] - value).abs().max() < 6 * 0.1 * 0.02
