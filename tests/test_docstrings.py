"""The examples in docstrings are right."""

import doctest
import importlib

import pytest

MODULES = (
    "api",
    "cli.words",
    "data.federated",
    "data.heterogeneity",
    "data.own",
    "data.partitioners.dirichlet",
    "deployment.client_app",
    "engines.balance",
    "evaluation.metrics",
    "federation.schedules",
    "plan.epoch_batches",
    "plan.plan",
    "seeds",
    "solvers.problem",
    "solvers.reference",
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_modules_docstrings_are_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = doctest.testmod(importlib.import_module(f"fedprox.{name}"), optionflags=doctest.ELLIPSIS)
    assert ended.attempted > 0
    assert ended.failed == 0
