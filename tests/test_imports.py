"""Imports point one way, and what is slow or optional is imported only where it is used."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import fedprox

PACKAGE = Path(fedprox.__file__).parent

# From the bottom up: a module may import those before it, and no other.
ORDER = [
    "errors",
    "startup",
    "announcing",
    "terminal",
    "version",
    "seeds",
    "earlier",
    "recorded",
    "files",
    "following",
    "run_log",
    "signals",
    "checksum",
    "csv_table",
    "environment",
    "legacy",
    "threads",
    "generators",
    "data.augmentation",
    "epoch_batches",
    "plan",
    "authors",
    "data.checks",
    "data.federated",
    "data.fingerprint",
    "data.shares",
    "data.partition",
    "data.feature_skew",
    "data.dirichlet",
    "data.pathological",
    "data.digits",
    "data.download",
    "data.channels",
    "data.cifar_batches",
    "data.cifar10",
    "data.mnist",
    "data.femnist",
    "data.synthetic",
    "data.array_cache",
    "data.picture_files",
    "data.picture_decoding",
    "data.image_folder",
    "data.leaf_cache",
    "data.leaf_files",
    "data.leaf_arrays",
    "data.leaf",
    "data.glove",
    "data.text",
    "data.skew",
    "models",
    "vision_models",
    "language_models",
    "metrics",
    "accuracies",
    "adaptive_mu",
    "early_stopping",
    "solvers.problem",
    "solvers.compiling",
    "solvers.picture_kernels",
    "solvers.pooling",
    "solvers.batches",
    "solvers.workspace",
    "solvers.reference",
    "solvers.cohort",
    "solvers.lanes",
    "solvers.logistic_kernels",
    "solvers.gradients",
    "solvers.logistic",
    "solvers.choice",
    "client_gradients",
    "logistic_metrics",
    "module_evaluator",
    "federation_metrics",
    "arrays",
    "plain",
    "messages",
    "batch_statistics",
    "strategy_state",
    "strategy_checks",
    "strategy_calls",
    "averaging",
    "strategy",
    "client_app",
    "engines.identity",
    "engines.balance",
    "engines.local",
    "engines.tokens",
    "engines.cluster",
    "engines.crew",
    "engines.ray",
    "outcomes",
    "measuring",
    "faults",
    "rounds",
    "schedule",
    "progress",
    "records",
    "loggers.interface",
    "loggers.tensorboard",
    "loggers.wandb",
    "loggers.mlflow",
    "loggers.attached",
    "checkpoint",
    "checkpointing",
    "report.checks",
    "report.lineage",
    "report.directory",
    "report.panels",
    "report.curves",
    "report.measures",
    "report.table",
    "report.figures",
    "report.outputs",
    "report.holdings",
    "report.holdings_figure",
    "config",
    "trust",
    "config_checks",
    "building",
    "data_assembly",
    "model_checks",
    "assembly",
    "prepared",
    "same_data",
    "branching",
    "experiment",
    "jobs",
    "sweep",
    "resuming",
    "main",
    "report.divisions",
    "report.partition",
    "report.watch",
    "report.__main__",
    "reproduce.figures",
    "reproduce.datasets",
    "reproduce.runs",
    "reproduce.tables",
    "reproduce.headline",
    "reproduce.drawing",
    "reproduce.__main__",
]

# Who may import what, imports inside functions included; a name stands for itself and all below it.
ALLOWED = {
    "matplotlib": {"report", "reproduce.drawing"},
    "pandas": {"report", "reproduce"},
    "ray": {"engines.ray", "engines.cluster", "engines.crew", "engines.tokens"},
    "hydra": {"main", "config", "building", "sweep", "resuming", "report.divisions", "reproduce.runs"},
    "omegaconf": {"main", "config", "sweep", "resuming", "run_log", "report.divisions"},
    "flwr": {
        "arrays",
        "plain",
        "checkpoint",
        "messages",
        "batch_statistics",
        "strategy_state",
        "strategy_calls",
        "averaging",
        "strategy",
        "client_app",
        "engines",
        "outcomes",
        "measuring",
        "faults",
        "rounds",
        "assembly",
        "prepared",
    },
    "torch": {
        "environment",
        "data.feature_skew",
        "arrays",
        "strategy_calls",
        "logistic_metrics",
        "models",
        "vision_models",
        "language_models",
        "module_evaluator",
        "client_gradients",
        "federation_metrics",
        "solvers",
        "client_app",
        "threads",
        "generators",
        "engines.local",
        "records",
        "config_checks",
        "model_checks",
        "data_assembly",
        "assembly",
        "loggers.tensorboard",
    },
    "wandb": {"loggers.wandb"},
    "mlflow": {"loggers.mlflow"},
    "torchvision": {"data.download", "vision_models"},
    "sklearn": {"data.digits"},
    "orjson": {"data.leaf_files"},
    "tqdm": {"progress", "data.picture_decoding"},
    "tabulate": {"jobs", "report.watch"},
    "PIL": {"data.picture_decoding"},
    "numba": {"solvers.lanes", "solvers.compiling"},
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Return every module's syntax tree by its name below `fedprox`; packages are not among them."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and "conf" not in path.relative_to(PACKAGE).parts
    }


def imported(tree: ast.AST) -> set[str]:
    """Return the full names that a module imports, `from a import b` as a.b, by import_module("a") too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def own(names: set[str]) -> set[str]:
    """Return which modules of the package are meant by imported names."""
    below = {name.removeprefix("fedprox.") for name in names if name.startswith("fedprox.")}
    known = set(modules())
    found = {module for name in below for module in known if name == module or name.startswith(module + ".")}
    unknown = {name for name in below if not any(name == m or name.startswith(m + ".") for m in known)}
    assert not unknown, f"imports of what is no module: {unknown}"
    return found


def test_the_order_lists_every_module_once():
    assert sorted(ORDER) == sorted(modules())


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_those_before_it(module):
    assert own(imported(modules()[module])) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_where_it_belongs(library):
    users = {
        module
        for module, tree in modules().items()
        if any(name.partition(".")[0] == library for name in imported(tree))
    }
    strangers = {user for user in users if not any((user + ".").startswith(room + ".") for room in ALLOWED[library])}
    assert not strangers
    assert users  # else the table is out of date


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
