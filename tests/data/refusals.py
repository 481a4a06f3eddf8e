"""Errors of data that are refused."""

from collections.abc import Callable
from typing import Any

import pytest

from fedprox.errors import UserError


def line_of(function: Callable[..., Any], *arguments: Any, **settings: Any) -> str:
    """Return the one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)
