"""No file that the package reads can run code: nothing in it could unpickle one.

CIFAR-10's batches are pickles, which torchvision loads once it has found their MD5 to be the original's.
"""

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest

import fedprox as package

PACKAGE = Path(package.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "Unpickler", "read_pickle", "unsafe_load", "full_load"}
# What is unsafe by default -> the argument that must make it safe, and its value.
GUARDED = {"np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
FORBIDDEN = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.load",
    "pd.read_pickle",
    "os.system",
    "numpy.memmap",
}


def unsafe(tree: ast.AST) -> list[str]:
    """Return what in a module could turn a file into code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            names = {each.name for each in node.names}
            found += [module] * (module in MODULES) + sorted(names & (CALLS | MODULES))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in GUARDED:
                argument, value = GUARDED[called]
                found += [called] * (given.get(argument) != str(value))
            elif called in FORBIDDEN or called in CALLS or called.rpartition(".")[2] in CALLS - {"compile", "eval"}:
                found.append(called)
            if given.get("allow_pickle") == "True" or given.get("weights_only") == "False":
                found.append(called)
    return found


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_has_nothing_that_could_turn_a_file_into_code(module):
    assert unsafe(ast.parse(module.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "np.load(file)",
        "torch.load(file, weights_only=False)",
        "yaml.load(text)",
        "eval(text)",
        "numpy.lib.format.read_array(file, allow_pickle=True)",
    ],
)
def test_each_of_these_would_be_found(line):
    assert unsafe(ast.parse(line))


class Malicious:
    """Unpickled, it makes a file called marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def malicious(marker) -> bytes:
    """Return a pickle that makes the marker when it is loaded, which is tried here once."""
    content = pickle.dumps(Malicious(marker))
    pickle.loads(content)
    assert marker.exists()
    marker.unlink()
    return content


SMALL = ("engine=local", "num_rounds=1", "num_clients=2", "clients_per_round=1", "protocol=paper")
IMAGES = ("dataset=image_folder", "dataset.path=place", "partition=iid")
LEAF = ("dataset=leaf", "num_clients=null", "dataset.path=place")
EMNIST = "EMNIST/raw/emnist-byclass"
# id: (the file, others that must be there as well, the settings with which it is read)
FILES = {
    "weights": ("x.safetensors", (), ("dataset=digits", "model.init=x.safetensors")),
    "MNIST": ("MNIST/raw/train-images-idx3-ubyte", (), ("dataset=mnist", "data_dir=.")),
    "CIFAR-10": ("cifar-10-batches-py/data_batch_1", (), ("dataset=cifar10", "partition=iid", "data_dir=.")),
    "EMNIST": (
        f"{EMNIST}-train-images-idx3-ubyte",
        tuple(f"{EMNIST}-{name}-ubyte" for name in ("train-labels-idx1", "test-images-idx3", "test-labels-idx1")),
        ("dataset=femnist", "data_dir=."),
    ),
    "LEAF": ("place/train/data.json", ("place/test/data.json",), LEAF),
    "GloVe": (
        "vectors.txt",
        ("place/train/x.json", "place/test/x.json"),
        ("dataset=sent140", *LEAF[1:], "dataset.glove=vectors.txt", "model=lstm_sent140"),
    ),
    "image": ("place/a/0.png", ("place/b/0.png",), IMAGES),
}


@pytest.mark.parametrize(("file", "others", "settings"), FILES.values(), ids=FILES)
def test_a_malicious_pickle_in_place_of_a_file_is_refused_and_not_loaded(
    fedprox, tmp_path, marker, malicious, file, others, settings
):
    for name in (file, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(malicious)
    given = {setting.partition("=")[0] for setting in settings}
    ended = fedprox(*settings, *(each for each in SMALL if each.partition("=")[0] not in given))
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    assert Path(file).name in ended.err
    assert not marker.exists()


@pytest.mark.parametrize("inside", [False, True], ids=["a pickle", "an archive of arrays with objects"])
def test_a_cache_that_is_a_malicious_pickle_is_rebuilt(tmp_path, marker, malicious, inside):
    from fedprox.data.cache import cached

    if inside:
        np.savez(tmp_path / "x.npz", key=np.frombuffer(b"key", np.uint8), x=np.array([Malicious(marker)], dtype=object))
    else:
        (tmp_path / "x.npz").write_bytes(malicious)
    made = cached([tmp_path], "x.npz", "key", lambda: {"x": np.arange(3)})
    assert made["x"].tolist() == [0, 1, 2]
    assert not marker.exists()


def test_the_record_of_a_run_is_not_loaded_either(tmp_path, marker, malicious):
    from fedprox.errors import UserError
    from fedprox.report.summary import read_runs

    for name in ("run.json", "metrics.csv"):
        (tmp_path / name).write_bytes(malicious)
    with pytest.raises(UserError):
        read_runs([tmp_path])
    assert not marker.exists()
