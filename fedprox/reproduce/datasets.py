"""Which data sets a figure can be drawn with here, and where their files are."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedprox.errors import UserError
from fedprox.reproduce.specs import DATASETS, FIGURES

PATHS = {  # what --path may name -> data set, the setting, its place in the data folder, what it is
    "shakespeare": ("shakespeare", "dataset.path", "shakespeare", "LEAF folder"),
    "sent140": ("sent140", "dataset.path", "sent140", "LEAF folder"),
    "glove": ("sent140", "dataset.glove", "glove.6B.300d.txt", "glove.6B.300d.txt"),
}
FROM_TORCHVISION = {  # data set -> a file of it in the data folder; it is downloaded where it can be
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "femnist": "EMNIST/raw/emnist-byclass-train-images-idx3-ubyte",
}


def choose(figures: Sequence[str], asked: Sequence[str] | None, paths: Mapping[str, str]) -> list[str]:
    """Return the data sets to run: those asked for, or those of the figures whose files are here.

    A data set that is left out is told in one line.

    Args:
        figures: Keys of FIGURES.
        asked: What the user named; None for all that can be had.
        paths: What --path gave: a key of PATHS -> a folder or file.

    Raises:
        UserError: If one that was asked for is in none of the figures, or its files are not here.
    """
    shown = [name for name in DATASETS if any(name in FIGURES[figure].datasets for figure in figures)]
    if strangers := [name for name in asked or () if name not in shown]:
        raise UserError(f"{' and '.join(figures)} shows {', '.join(shown)}, not {', '.join(strangers)}")
    if asked is not None:
        for name in asked:
            if (lacking := what_is_lacking(name, paths)) and name not in FROM_TORCHVISION:
                raise UserError(lacking)
        return [name for name in shown if name in asked]
    for lacking in filter(None, (what_is_lacking(name, paths) for name in shown)):
        print(f"left out: {lacking}", flush=True)
    available = [name for name in shown if not what_is_lacking(name, paths)]
    if not available:
        raise UserError(f"no data set of {' and '.join(figures)} is here")
    return available


def what_is_lacking(name: str, paths: Mapping[str, str]) -> str:
    """Return in one line which files of a data set are not here and what to set; "" if none."""
    if file := FROM_TORCHVISION.get(name):
        if any((_data_dir() / f"{file}{ending}").is_file() for ending in ("", ".gz")):
            return ""
        return (
            f"{name} needs {_data_dir() / file}; set FEDPROX_DATA_DIR to the folder that holds "
            f"{file.partition('/')[0]}, or name it with --datasets {name}, which downloads it"
        )
    for key, (dataset, _, place, kind) in PATHS.items():
        path = Path(paths.get(key, _data_dir() / place))
        if dataset == name and not (path / "train" if kind == "LEAF folder" else path).exists():
            what = "train/ and test/ in LEAF's JSON" if kind == "LEAF folder" else "word vectors"
            return f"{name} needs {what}, which are not in {path}; set --path {key}=<{kind}>"
    return ""


def overrides(paths: Mapping[str, str]) -> dict[str, list[str]]:
    """Return data set -> Hydra overrides that say where its files are."""
    given: dict[str, list[str]] = {}
    for key, path in paths.items():
        dataset, setting, _, _ = PATHS[key]
        given.setdefault(dataset, []).append(f"{setting}={_quoted(str(Path(path).absolute()))}")
    return given


def pairs(given: Iterable[str]) -> dict[str, str]:
    """Return what several --path NAME=PATH say.

    Raises:
        UserError: If one is not of that form.
    """
    split = [text.partition("=") for text in given]
    for name, _, path in split:
        if name not in PATHS or not path:
            raise UserError(f"--path takes NAME=PATH with a NAME of {', '.join(PATHS)}, got {name}={path}")
    return {name: path for name, _, path in split}


def _data_dir() -> Path:
    return Path(os.environ.get("FEDPROX_DATA_DIR", "data"))


def _quoted(text: str) -> str:
    """Return a value for Hydra's grammar, whatever characters are in it."""
    return "'" + text.replace("'", "\\'") + "'"
