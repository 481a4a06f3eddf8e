"""Reconstruction of examples from an update.

A first linear layer gives them away in closed form (Phong et al. 2017): the gradient of row i of W is the error e_i
times x, and that of b_i is e_i, so Delta W_i / Delta b_i = x; with several examples it is a weighted mean of them.
Other models need gradient matching (Geiping et al. 2020): images whose gradient points where the update does.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedprox.data.federated import Features, LabelledData
from fedprox.errors import UserError
from fedprox.leakage.recorded import RecordedUpdate
from fedprox.seeds import Stream, generator
from fedprox.solvers.threads import one_thread

Delta = Mapping[str, NDArray[np.float64]]
Images = NDArray[np.float64]  # features in 0 .. 1, shape (n, *input_shape)
MAX_MATCHED = 16  # examples; the gradient of more says too little about each
_STEPS, _STEP_SIZE, _TOTAL_VARIATION = 200, 0.1, 1e-4


def reconstructed(update: RecordedUpdate, delta: Delta) -> Images:
    """Return guesses of a client's examples from what the server has received of its update.

    Args:
        update: What the attacker knows besides: the model, w^t and the settings; for gradient matching the labels, too.
        delta: The update as it arrived.

    Raises:
        UserError: If no attack here works on the data or the model.
    """
    if update.features.dtype == np.int64:
        raise UserError("leakage reconstructs numbers such as pixels, but this run's examples are tokens")
    without_decay = without_decayed(update, delta)
    first, *others = update.names
    size = math.prod(update.features.shape[1:])
    is_linear = bool(others) and delta[first].shape == (len(delta[others[0]]), size) and delta[others[0]].ndim == 1
    if is_linear:
        found = from_linear_layer(without_decay[first], without_decay[others[0]])
    else:
        with one_thread():  # steps are short
            found = matched(update, without_decay)
    return _as_images(found.reshape(-1, *update.features.shape[1:]), update.examples)


def without_decayed(update: RecordedUpdate, delta: Delta) -> Delta:
    """Return an update without the part that weight decay alone makes, which is a known multiple of w^t.

    With weight decay d, proximal weight mu and momentum m, the steps are linear in w and the gradients, so this part
    is (s - 1) w^t, where s follows the same steps from 1: v <- m v + d s + mu (s - 1), s <- s - lr v.
    """
    sgd, scale, velocity = update.sgd, 1.0, 0.0
    for _ in range(update.num_steps):
        velocity = sgd.momentum * velocity + sgd.weight_decay * scale + update.mu * (scale - 1)
        scale -= sgd.learning_rate * velocity
    return {name: value - (scale - 1) * update.before[name].astype(np.float64) for name, value in delta.items()}


def from_linear_layer(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Delta W_i / Delta b_i for each row i with Delta b_i != 0, model inputs of shape (rows, d).

    Examples:
        >>> x, errors = np.array([0.5, -2.0, 4.0]), np.array([0.1, -0.3, 0.0])
        >>> from_linear_layer(np.outer(errors, x), errors).round(6).tolist()
        [[0.5, -2.0, 4.0], [0.5, -2.0, 4.0]]
    """
    used = bias != 0
    inputs: NDArray[np.float64] = weight[used] / bias[used][:, None]
    return inputs


def matched(update: RecordedUpdate, delta: Delta) -> NDArray[np.float64]:
    """Return model inputs whose gradient has the direction of -delta, shape (n_k, *input_shape).

    The loss is 1 - cos(gradient, -delta) plus a small total variation, the optimiser Adam with signed steps; labels are
    known, as in Geiping et al.
    """
    if len(update.labels) > MAX_MATCHED:
        raise UserError(
            f"client={update.client} has {len(update.labels)} examples, too many for gradient matching, which takes at "
            f"most {MAX_MATCHED}; name a smaller client, or use a model whose first layer is linear"
        )
    params = {name: torch.tensor(np.asarray(array)) for name, array in update.before.items()}
    trained = {name: params[name].requires_grad_() for name in update.names}
    target = torch.from_numpy(_flat(delta, list(update.names))).float()
    model, labels = update.model.eval(), torch.from_numpy(update.labels)
    rng = generator(update.config.seed, Stream.LEAKAGE, update.round_num, update.client)
    shape = (len(labels), *update.features.shape[1:])
    x = torch.from_numpy(rng.normal(size=shape).astype(np.float32)).requires_grad_()
    adam = torch.optim.Adam([x], lr=_STEP_SIZE)
    for step in range(_STEPS):
        adam.param_groups[0]["lr"] = _STEP_SIZE * (1 - step / _STEPS)
        loss = functional.cross_entropy(functional_call(model, params, (x,)), labels)
        gradients = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
        direction = torch.cat([gradient.flatten() for gradient in gradients])
        distance = 1 + functional.cosine_similarity(direction, target, dim=0)
        (x.grad,) = torch.autograd.grad(distance + _TOTAL_VARIATION * _variation(x), [x])
        x.grad.sign_()
        adam.step()
    return x.detach().numpy().astype(np.float64)


def _variation(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels; 0 for examples that are not images."""
    if x.ndim < 3:
        return torch.zeros(())
    return (x[..., 1:, :] - x[..., :-1, :]).abs().mean() + (x[..., 1:] - x[..., :-1]).abs().mean()


def _flat(delta: Delta, names: list[str]) -> NDArray[np.float64]:
    return np.concatenate([delta[name].ravel() for name in names])


def _as_images(model_input: NDArray[np.float64], examples: LabelledData) -> Images:
    """Return model input as features in 0 .. 1; what is outside the range of the data set is clipped."""
    return scaled(model_input * examples.std + examples.mean, examples)


def scaled(features: Features | NDArray[np.float64], examples: LabelledData) -> Images:
    """Return features as numbers in 0 .. 1, by the least and the largest feature of the data set."""
    least, most = float(examples.features.min()), float(examples.features.max())
    return np.clip((np.asarray(features, np.float64) - least) / (most - least or 1.0), 0.0, 1.0)


def psnr(original: Images, guess: Images) -> float:
    """Return the peak signal-to-noise ratio 10 log10(1 / MSE) in dB; inf for equal images.

    Examples:
        >>> round(psnr(np.zeros(4), np.full(4, 0.1)), 6)
        20.0
    """
    error = float(np.square(original - guess).mean())
    return math.inf if error == 0 else -10 * math.log10(error)
