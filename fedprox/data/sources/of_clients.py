"""Data that only the clients' scripts read (client=script)."""

from fedprox.data.federated import FederatedData
from fedprox.errors import UserError


def of_clients() -> FederatedData:
    """Stand for data that this process cannot have.

    Raises:
        UserError: Always.
    """
    raise UserError("dataset=of_clients are data that only a script reads; add client=script, or choose a data set")
