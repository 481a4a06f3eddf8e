"""Packages execute nothing when they are imported; `make lint` checks the order of their imports."""

import ast
from pathlib import Path

import fedprox

PACKAGE = Path(fedprox.__file__).parent


def test_packages_hold_a_docstring_and_nothing_else():
    for path in PACKAGE.glob("*/**/__init__.py"):  # the package's own loads the public names lazily
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path.name
        assert isinstance(body[0].value, ast.Constant)
        assert isinstance(body[0].value.value, str)
