"""Data sets whose files are available for a figure, and the locations of those files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedprox.errors import UserError

PATHS = {  # name in --path -> data set, setting, default location in the data folder, kind of file
    "shakespeare": ("shakespeare", "dataset.path", "shakespeare", "LEAF folder"),
    "sent140": ("sent140", "dataset.path", "sent140", "LEAF folder"),
    "glove": ("sent140", "dataset.glove", "glove.6B.300d.txt", "glove.6B.300d.txt"),
    "cifar10": ("cifar10", "dataset.path", "", "folder or archive of images"),
}
_NEEDED = {  # kind of file -> what must be there
    "LEAF folder": "train/ and test/ in LEAF's JSON",
    "glove.6B.300d.txt": "word vectors",
    "folder or archive of images": "images as for dataset=image_folder",
}
FROM_TORCHVISION = {  # data set -> one of its files in the data folder; it can be downloaded
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "femnist": "EMNIST/raw/emnist-byclass-train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py/data_batch_1",
}


def choose(
    figures: Sequence[str], shown: Sequence[str], asked: Sequence[str] | None, paths: Mapping[str, str]
) -> list[str]:
    """Return the data sets to run: those that were requested, or those of the figures whose files exist.

    A line is printed for each data set that is left out.

    Args:
        figures: The names of the figures.
        shown: Their data sets.
        asked: The requested data sets; None for all that are available.
        paths: The values of --path: a key of PATHS -> a folder or file.

    Raises:
        UserError: If a requested one is in none of the figures, or its files are missing.
    """
    if others := [name for name in asked or () if name not in shown]:
        raise UserError(f"{' and '.join(figures)} shows {', '.join(shown)}, not {', '.join(others)}")
    problems = {name: missing_files(name, paths) for name in shown}
    if asked is not None:
        for name in asked:
            if problems[name] and (name not in FROM_TORCHVISION or name in paths):
                raise UserError(problems[name])
        return [name for name in shown if name in asked]
    for problem in filter(None, problems.values()):
        print(f"left out: {problem}", flush=True)
    available = [name for name in shown if not problems[name]]
    if not available:
        raise UserError(
            f"{' and '.join(figures)} needs a data set, and the files of all are missing; see the lines above"
        )
    return available


def missing_files(name: str, paths: Mapping[str, str]) -> str:
    """Return a line that names a data set's missing files and the remedy; "" if none is missing."""
    if (file := FROM_TORCHVISION.get(name)) and name not in paths:
        if any((_data_dir() / f"{file}{ending}").is_file() for ending in ("", ".gz")):
            return ""
        return (
            f"{name} needs {_data_dir() / file}; set FEDPROX_DATA_DIR to the folder that holds "
            f"{file.partition('/')[0]}, or download it with --datasets {name}"
        )
    for key, (dataset, _, place, kind) in PATHS.items():
        path = Path(paths.get(key, _data_dir() / place))
        if dataset == name and not (path / "train" if kind == "LEAF folder" else path).exists():
            return f"{name} needs {_NEEDED[kind]}, missing in {path}; set --path {key}=<{kind}>"
    return ""


def overrides(paths: Mapping[str, str]) -> dict[str, list[str]]:
    """Return data set -> Hydra overrides for the locations of its files."""
    given: dict[str, list[str]] = {}
    for key, path in paths.items():
        dataset, setting, _, _ = PATHS[key]
        reader = ["dataset=image_folder"] if dataset in FROM_TORCHVISION else []
        given.setdefault(dataset, []).extend([*reader, f"{setting}={_quoted(str(Path(path).absolute()))}"])
    return given


def pairs(given: Iterable[str]) -> dict[str, str]:
    """Return name -> path for the values NAME=PATH of --path.

    Raises:
        UserError: If a value does not have this form.
    """
    split = [text.partition("=") for text in given]
    for name, _, path in split:
        if name not in PATHS or not path:
            raise UserError(f"--path must be NAME=PATH, with NAME one of {', '.join(PATHS)}, got {name}={path}")
    return {name: path for name, _, path in split}


def _data_dir() -> Path:
    return Path(os.environ.get("FEDPROX_DATA_DIR", "data"))


def _quoted(text: str) -> str:
    """Return a text quoted for Hydra's grammar."""
    return "'" + text.replace("'", "\\'") + "'"
