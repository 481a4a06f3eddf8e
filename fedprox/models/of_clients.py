"""The model of the clients' script (client=script)."""

from torch import nn

from fedprox.errors import UserError


def of_clients() -> nn.Module:
    """Stand for a model that only a script can make.

    Raises:
        UserError: Always.
    """
    raise UserError("model=of_clients is the model of a script; add client=script, or choose a model")
