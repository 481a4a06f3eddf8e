"""What is slow or optional is loaded only where it is used; `make lint` holds the order of the packages."""

import ast
import subprocess
import sys
from pathlib import Path

import fedprox

PACKAGE = Path(fedprox.__file__).parent


def test_packages_hold_a_docstring_and_nothing_else():
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path.name
        assert isinstance(body[0].value, ast.Constant)
        assert isinstance(body[0].value.value, str)


def loaded_by(module: str) -> set[str]:
    """Return the top-level names of everything that a fresh process loads with a module."""
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=600
    )
    return set(done.stdout.split())


def test_the_command_line_starts_without_what_takes_seconds_to_import():
    loaded = loaded_by("fedprox.main")
    assert "hydra" in loaded
    assert not loaded & {"torch", "ray", "torchvision", "matplotlib", "sklearn", "pandas", "flwr", "numba", "joblib"}


def test_an_experiment_loads_neither_ray_nor_the_libraries_of_other_data_sets_nor_figures():
    loaded = loaded_by("fedprox.experiment.run")
    assert {"torch", "flwr"} <= loaded
    assert not loaded & {"ray", "torchvision", "sklearn", "matplotlib", "pandas"}


def test_the_curves_of_a_run_are_drawn_without_pandas():
    loaded = loaded_by("fedprox.report.curves")
    assert "matplotlib" in loaded
    assert "pandas" not in loaded
