"""Memory that training takes on a device, estimated before it is taken."""

import copy
import logging

import torch
from torch import Tensor, nn

from fedprox.solvers.generators import seeded
from fedprox.solvers.problem import SgdSettings

_SHARE = 0.8  # of the free memory: an allocator needs some room between its pieces
_log = logging.getLogger("fedprox")


def clients_at_once(
    model: nn.Module, sgd: SgdSettings, examples: Tensor, clients_per_round: int, device: str
) -> int | None:
    """Return how many clients may train side by side on a device; None for no limit, as on a CPU."""
    if torch.device(device).type == "cpu":
        return None
    return clients_that_fit(model, sgd, examples, clients_per_round, torch.cuda.mem_get_info(device)[0])


def clients_that_fit(
    model: nn.Module, sgd: SgdSettings, examples: Tensor, clients_per_round: int, free_bytes: int
) -> int | None:
    """Return how many clients may train side by side in some memory; None if all of a round's may.

    The estimate is logged.

    Args:
        model: On the CPU.
        sgd: Settings of the local solver.
        examples: A model input, shape (1 or more, *input_shape).
        clients_per_round: K.
        free_bytes: Memory that is free.
    """
    each = client_bytes(model, sgd, examples)
    num = max(1, int(_SHARE * free_bytes) // each)
    sizes = f"about {clients_per_round * each / 1e9:.2g} GB of the {free_bytes / 1e9:.3g} GB that are free"
    if num >= clients_per_round:
        _log.info("%d clients side by side take %s", clients_per_round, sizes)
        return None
    _log.info("%d clients side by side would take %s, so at most %d train at once", clients_per_round, sizes, num)
    return num


def client_bytes(model: nn.Module, sgd: SgdSettings, examples: Tensor) -> int:
    """Return the bytes that a client of a cohort takes: its models, and the activations of a batch.

    The models are w, w^t, the gradient, and with momentum or another optimiser one or two more.
    """
    weights = sum(int(tensor.nbytes) for tensor in model.state_dict().values())
    num_models = 3 + (2 if sgd.optimizer else int(sgd.momentum > 0))
    batch = sgd.batch_size * 2 * activation_bytes(copy.deepcopy(model).cpu().train(), examples[:1].cpu())
    return num_models * weights + batch


def activation_bytes(model: nn.Module, example: Tensor) -> int:
    """Return the bytes that one more example, shape (1, *input_shape), adds to those kept for a gradient."""
    kept = [_kept_bytes(model, example.expand(copies, *example.shape[1:])) for copies in (2, 3)]
    return example.nbytes + max(0, kept[1] - kept[0])


def _kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps from a forward pass, including parameters."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    kept = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with seeded(0, x.device), torch.enable_grad(), kept:
        model(x.clone(memory_format=torch.contiguous_format))
    return sum(sizes)
