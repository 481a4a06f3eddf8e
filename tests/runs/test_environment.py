"""Recorded facts about the program and the machine."""

import json
import platform
from importlib.metadata import version

from fedprox.runs.environment import environment


def test_the_environment_names_what_a_result_depends_on():
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    for package in ("flwr", "torch", "ray", "numpy"):
        assert facts["versions"][package] == version(package)
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["hardware"]["num_cpus"] >= 1
