"""Whether a run that is resumed, or left by a branch, was made on the data that there are now."""

from collections.abc import Mapping
from typing import Any

from fedprox.data.federated import FederatedData
from fedprox.errors import UserError


def fingerprints(data: FederatedData) -> dict[str, str]:
    """Return what run.json says of the data: the examples' fingerprint, and that of who holds which of them."""
    return {"data": data.examples.fingerprint[:32], "partition": data.fingerprint[:32]}


def check_same_data(present: Mapping[str, Any], earlier: Mapping[str, Any], option: str) -> None:
    """Raise UserError if the data of an earlier run were others, or its record does not say.

    Args:
        present: Facts of the present run, with the entry "fingerprint".
        earlier: The run.json of the earlier one.
        option: What the command names it by, for the message.
    """
    was, now = earlier.get("fingerprint"), present["fingerprint"]
    if not isinstance(was, Mapping):
        raise UserError(f"{option} has no fingerprint of its data, so they may be others; begin a new run")
    changed = next((name for name in ("data", "partition") if was.get(name) != now[name]), None)
    if changed:
        what = {"data": "the data are", "partition": "the data are divided among clients otherwise; the partition is"}
        raise UserError(
            f"{option} had other data: {what[changed]} not what it began with ({was.get('data', '')!s:.8} then); bring "
            "back what it had, or begin a new run"
        )
