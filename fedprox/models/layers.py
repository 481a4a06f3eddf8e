"""Parts of a model that clients may keep to themselves, as names in its state dict: its head, its body, its norms."""

from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def head(model: nn.Module) -> set[str]:
    """Return the names of the last layer that has parameters of its own, in the order in which layers were added."""
    layers = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    return _of_layer(model, layers[-1]) if layers else set()


def body(model: nn.Module) -> set[str]:
    """Return the names of all that is not the head."""
    return set(model.state_dict()) - head(model)


def norms(model: nn.Module) -> set[str]:
    """Return the names of batch and instance norms: scale, shift, and running statistics."""
    layers = [name for name, module in model.named_modules() if isinstance(module, _NormBase)]
    return set().union(*(_of_layer(model, name) for name in layers))


def matching(model: nn.Module, patterns: list[str]) -> set[str]:
    """Return the names that match any of some patterns, such as "fc*"."""
    return {name for name in model.state_dict() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def with_tied(model: nn.Module, names: set[str]) -> set[str]:
    """Return names, and those of the same tensors: tied parameters have several."""
    state = model.state_dict(keep_vars=True)
    tensors = {id(state[name]) for name in names}
    return {name for name, tensor in state.items() if id(tensor) in tensors}


def _of_layer(model: nn.Module, layer: str) -> set[str]:
    return {name for name in model.state_dict() if name.rpartition(".")[0] == layer}
