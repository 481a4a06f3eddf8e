"""Every command of the README, CONTRIBUTING.md and docs/*.md is run, made small; those that are not are named here."""

import csv
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from fedprox.reproduce.specs import FIGURES, SYNTHETIC
from tests.data.sources.site_folders import write_sites

ROOT = Path(__file__).parents[1]
SITES = "sites/"  # a folder of sites that a page's commands read
OWN_FILES = ("patients.csv", "mine.npz")  # likewise
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n`]*\n(?P<text>.*?)^ *``` *$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\w+)\.py\n")
NOT_RUN = (  # what needs a network, changes a shell or is run elsewhere; every other command is run or is an error
    r"git clone \S+",
    r"cd \S+",
    r"python3? -m venv \.venv",
    r"source \.venv/bin/activate",
    r"pip install -r requirements\.txt",
    r"pip install (--no-deps )?(-e )?\.",
    r"pip install '\.\[\w+\]'",
    r"python train\.py --lr 0\.1",  # as clients it is run here, on its own in tests/test_examples.py
    r"ray start --head.*",
    r"ray start --address=\S+.*",
    r"ray stop",
)


NUM_TRIALS = 2  # of a search
MODULES = {"fedprox.main": "fedprox.main", "fedprox.privacy": "fedprox.privacy"} | {
    f"fedprox.{name}": f"fedprox.{name}.__main__" for name in ("leakage", "report", "reproduce")
}


@dataclass(frozen=True)
class Document:
    """A page: its commands in order, and the Python files that it shows.

    Attributes:
        name: What the page is called in the names of tests.
        commands: Lines of its blocks marked sh; continued lines are joined.
        files: Name -> text of its Python blocks that begin with "# file: NAME.py".
        languages: The marks of all its blocks.
    """

    name: str
    commands: tuple[str, ...]
    files: dict[str, str]
    languages: frozenset[str]


def read_document(name: str, text: str) -> Document:
    blocks = [
        (fence["language"], re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE))
        for fence in FENCE.finditer(text)
    ]
    lines = [line for language, block in blocks if language == "sh" for line in join_continued(block)]
    files = [(found[1], block) for language, block in blocks if language == "python" and (found := FILE.match(block))]
    assert len(files) == len(dict(files)), f"{name} shows two files of one name"
    languages = frozenset(language for language, _ in blocks)
    return Document(name, tuple(lines), dict(files), languages)


def join_continued(block: str) -> Iterator[str]:
    """Yield a block's commands, without comments and blank lines."""
    for line in re.sub(r" *\\\n\s*", " ", block).splitlines():
        if command := re.sub(r"(^|\s+)#.*$", "", line).strip():
            yield command


PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
DOCUMENTS = [read_document(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")) for file in PAGES]
COMMANDS = [
    pytest.param(document, command, id=f"{document.name}: {command}")
    for document in DOCUMENTS
    for command in document.commands
    if document.name != "docs/deployment.md"  # these need a federation: tests/deployment/test_federation.py
]


def program_of(words: list[str]) -> str:
    """Return what a command runs: "fedprox.main", "make", a file and so on, or "" for anything else."""
    if set("|&;><") & set("".join(re.sub(r"<[\w. ]*>", "", word) for word in words)):
        return ""
    if words[0] == "python" and re.fullmatch(r"\w+\.py", words[1]):
        return words[1]
    if re.fullmatch(r"(\S*/)?python3?", words[0]) and words[1:2] == ["-m"] and len(words) > 2:
        return words[2] if words[2] in MODULES else ""
    return {"fedprox": "fedprox.main", "make": "make"}.get(words[0], "")


def arguments_of(words: list[str]) -> list[str]:
    return words[1:] if words[0] in ("fedprox", "make") else words[3:]


def made_small(arguments: list[str], data_dir: Path) -> list[str]:
    """Return a command's arguments with few rounds, one repetition and this machine's data folder."""
    if {"--help", "--version", "--cfg", "--info", "--hydra-help"} & set(arguments):
        return arguments
    sweeps = bool({"--multirun", "-m"} & set(arguments))
    kept = [re.sub(r"range\(\d+\)", "range(1)", word) for word in arguments if not word.startswith("num_rounds=")]
    kept = [re.sub(r"range\((\d+),\d+\)", r"\1", word) for word in kept]
    kept = [re.sub(r"^branch_round=\d+$", "branch_round=2", _placed(word, data_dir)) for word in kept]
    is_slow = {"model=cnn", "model=torchvision"} & set(kept)  # minutes otherwise
    cheap = ["num_epochs=2", "clients_per_round=2"] if is_slow else []
    cheap += [f"hydra.sweeper.num_trials={NUM_TRIALS}"] if is_search(kept) else []
    cheap += ["num_clients=2"] if "client=script" in kept else []  # each is a process that imports torch
    if any(word.startswith("experiment=") and "cifar10" in word for word in kept):
        kept = [re.sub(r"^([\w.]+=[\w.]+),[\w.,]+$", r"\1", word) for word in kept]  # one value of a sweep
        cheap = ["num_epochs=1", "clients_per_round=1", "num_clients=100"]
    return [*kept, *cheap, f"num_rounds={1 if sweeps else 2}"]


def _placed(word: str, data_dir: Path) -> str:
    """Return an argument with a relative place of data in this machine's data folder."""
    name, _, place = word.partition("=")
    if name not in ("data_dir", "dataset.path") or place in (SITES, *OWN_FILES) or Path(place).is_absolute():
        return word
    return f"{name}={data_dir if name == 'data_dir' else data_dir / place}"


def figure_made_small(arguments: list[str]) -> list[str]:
    """Return a reproduction's arguments with one repetition of one round on one data set that needs no files."""
    kept = list(arguments)
    for option in {"--seeds", "--rounds", "--datasets", "--path", "--device"} & set(kept):
        at = kept.index(option)
        del kept[at : at + 2]
    names = [name for name in (FIGURES[kept[0]].datasets if kept[0] in FIGURES else ()) if name in SYNTHETIC]
    names = {"interactions": ["digits"], "flare": ["digits"], "algorithms": ["synthetic_1_1"]}.get(kept[0], names)
    return [*kept, "--seeds", "1", "--rounds", "1", "--datasets", [*names, "synthetic_iid"][0]]


def is_search(arguments: list[str]) -> bool:
    return any(word.startswith("hydra/sweeper=optuna") for word in arguments)


def on_ray(arguments: list[str]) -> bool:
    """Return whether a run would start Ray."""
    return not any(word.startswith(("engine=local", "resume=", "branch_from=", "--help")) for word in arguments)


def num_jobs(arguments: list[str]) -> int:
    """Return how many new runs a command does: the product of its sweeps."""
    if any(word.startswith("resume=") for word in arguments):
        return 0
    if is_search(arguments):
        return NUM_TRIALS
    overrides = [word for word in arguments if "=" in word and not word.startswith("--")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return math.prod(len(list(override.sweep_string_iterator())) for override in parsed if override.is_sweep_override())


def needs_what_is_not_here(arguments: list[str]) -> str:
    """Return the setting that cannot be had on this machine, "" if there is none."""
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "engine.address":
            return key
        if word == "partition=flower" and not find_spec("flwr_datasets"):
            return word
        asks_for_gpu = value.startswith("cuda") if key == "server_device" else key.endswith("num_gpus") and value != "0"
        if asks_for_gpu and not torch.cuda.is_available():
            return key
    return ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Return each document's folder, with the Python files that it shows; its commands run there in order.

    A page whose commands read sites/ has that folder, and one that reads the user's own files has these.
    """
    made = {}
    for document in DOCUMENTS:
        made[document.name] = tmp_path_factory.mktemp("document")
        if any(f"dataset.path={SITES}" in command for command in document.commands):
            write_sites(made[document.name] / SITES, "image_folder")
        if any(f"dataset.path={OWN_FILES[0]}" in command for command in document.commands):
            write_own_files(made[document.name])
        for name, text in document.files.items():
            (made[document.name] / f"{name}.py").write_text(text)
    return made


def write_own_files(folder: Path) -> None:
    """Write a table and arrays of 120 examples."""
    rng = np.random.default_rng(0)
    x, ill = rng.normal(size=(120, 2)), np.array(["ill", "well"])[np.arange(120) % 2]
    rows = zip(x.tolist(), ["north", "south", "west"] * 40, ill, strict=True)
    lines = [f"{age},{dose},{hospital},{outcome}" for (age, dose), hospital, outcome in rows]
    (folder / OWN_FILES[0]).write_text("\n".join(["age,dose,hospital,outcome", *lines]))
    np.savez(folder / OWN_FILES[1], x=x, y=ill)


def runs_in(folder: Path) -> set[Path]:
    return {file.parent for file in folder.rglob("run.json")}


def sweeps_in(folder: Path) -> list[Path]:
    """Return the sweeps' directories, oldest first."""
    files = sorted(folder.rglob("multirun.yaml"), key=lambda file: file.stat().st_mtime)
    return [file.parent.relative_to(folder) for file in files]


def filled_in(arguments: list[str], sweeps: list[Path]) -> list[str]:
    """Return a report's arguments with multirun/<...> replaced by the sweeps that are there, in their order."""
    places = [place for place, word in enumerate(arguments) if re.match(r"multirun/.*<.*>", word)]
    assert len(places) <= len(sweeps), "more placeholders than sweeps: a page's commands are run all together, in order"
    filled = dict(zip(places, map(str, sweeps), strict=False))
    return [filled.get(place, word) for place, word in enumerate(arguments)]


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_documented_command_works(folders, environment, in_this_process, monkeypatch, request, document, command):
    words = shlex.split(command)
    program = program_of(words)
    if any(re.fullmatch(pattern, shlex.join(words)) for pattern in NOT_RUN):
        return
    assert program, f"do not know how to run: {command}"
    if program == "make":
        assert_made_known(tuple(arguments_of(words)))
        return
    folder = folders[document.name]

    def in_its_own(arguments: list[str]) -> Any:
        line = [sys.executable, *(["-m", program] if program in MODULES else [program]), *arguments]
        variables = environment(PYTHONPATH=f"{ROOT}:{folder}")
        done = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, timeout=1200)
        return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)

    if program.endswith(".py"):
        assert program.removesuffix(".py") in document.files
        ended = in_its_own(words[2:])
        assert (ended.status, ended.err) == (0, "")
        return
    if command.replace("engine=ray", "engine=local") in set(document.commands) - {command}:
        return  # Ray is tried once: this command, made small, is that one
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # `python -m` has the working directory there

    def call(arguments: list[str]) -> Any:
        if program == "fedprox.main":
            if arguments == ["num_rounds=2"]:
                return in_its_own(arguments)  # Ray would stay in this process, and speak when it likes
            arguments = [*arguments, *placed_in(folder, arguments)]
        return in_this_process(import_module(MODULES[program]).main, arguments)

    if is_search(words):
        pytest.importorskip("optuna", reason="Optuna, the extra search, is not installed")
    if program != "fedprox.reproduce" and needs_data(words):
        request.getfixturevalue("data_dir")  # skips, or fails under CI
    for path in re.findall(r"dataset\.path=(\S+\.zip)", " ".join(document.commands)):
        if not (Path(environment()["FEDPROX_DATA_DIR"]) / path).exists():
            pytest.skip(f"this page's commands need {path}, which cannot be downloaded")
    if program in ("fedprox.leakage", "fedprox.report"):
        data_dir = Path(environment()["FEDPROX_DATA_DIR"])
        arguments = [_placed(word, data_dir) for word in filled_in(arguments_of(words), sweeps_in(folder))]
        assert_reports(call, folder, arguments)
    elif program == "fedprox.privacy":
        ended = call(arguments_of(words))
        assert (ended.status, ended.err) == (0, "")
        assert "epsilon" in ended.out
    elif program == "fedprox.reproduce":
        assert_reproduces(call, folder, figure_made_small(arguments_of(words)))
    else:
        assert_runs(call, folder, made_small(arguments_of(words), Path(environment()["FEDPROX_DATA_DIR"])))


def placed_in(folder: Path, arguments: list[str]) -> list[str]:
    """Return what a command lacks: the local engine, as Ray is tried once, and a name, instead of the second's."""
    more = ["engine=local"] if on_ray(arguments) else []
    if "num_rounds=" in " ".join(arguments) and not any(".dir=" in word or "resume=" in word for word in arguments):
        number = len(runs_in(folder))
        more += [f"hydra.run.dir=outputs/{number}", f"hydra.sweep.dir=multirun/{number}"]
    return more


@cache
def assert_made_known(targets: tuple[str, ...]) -> None:
    told = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout


def needs_data(words: list[str]) -> bool:
    """Return whether a command reads MNIST or images, or reports on sweeps that did."""
    if "dataset=image_folder" in words:
        return True
    data = [word for word in words if word.startswith(("dataset=", "dataset._target_=", "experiment=", "client="))]
    return not any("mnist" not in word for word in data) and not {"--help", "--version"} & set(words)


def assert_reports(call, folder: Path, arguments: list[str]) -> None:
    """Run a report; every file that it was asked for is there afterwards."""
    ended = call(arguments)
    assert ended.status == 0, ended.err
    if arguments[0] == "watch":
        assert ended.out
        return
    files = [folder / arguments[place + 1] for place, word in enumerate(arguments) if word in ("--out", "--table")]
    assert files
    assert all(file.stat().st_size for file in files)


def assert_reproduces(call, folder: Path, arguments: list[str]) -> None:
    """Reproduce a figure; it names the files that it made, its table among them."""
    ended = call(arguments)
    assert (ended.status, ended.err) == (0, "")
    files = [folder / line for line in ended.out.splitlines() if line.endswith((".png", ".md", ".csv"))]
    assert {f"{arguments[0]}.md", f"{arguments[0]}.csv"} <= {file.name for file in files} or arguments[0] == "all"
    assert files
    assert all(file.stat().st_size for file in files)


def assert_runs(call, folder: Path, arguments: list[str]) -> None:
    """Run an experiment or a sweep; each job leaves a finished run with all its rounds."""
    before = runs_in(folder)
    ended = call(arguments)
    if lacking := needs_what_is_not_here(arguments):
        assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
        assert ended.err.startswith("error: ")
        assert lacking in ended.err
        return
    assert (ended.status, ended.err) == (0, "")
    if not any(word.startswith("num_rounds=") for word in arguments):  # --help and the like
        assert ended.out
        return
    new = runs_in(folder) - before
    assert len(new) == num_jobs(arguments)
    for run in new:
        facts = json.loads((run / "run.json").read_text())
        with (run / "metrics.csv").open() as file:
            rounds = [int(row["round"]) for row in csv.DictReader(file)]
        assert facts["status"] == "finished"
        assert rounds == list(range(facts["settings"]["num_rounds"] + 1))


def test_the_readme_says_how_to_test_run_and_sweep():
    (readme,) = [document for document in DOCUMENTS if document.name == "README.md"]
    assert {"make run", "make test"} <= set(readme.commands)
    main = [command for command in readme.commands if command.startswith("python -m fedprox.main")]
    assert "python -m fedprox.main" in main
    assert [command for command in main if "--multirun" in command and "+repeat_num=range(5)" in command]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_block_of_commands_is_marked_sh_so_that_it_is_run(document):
    assert document.languages & {"bash", "shell", "console", "zsh"} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_python_file_that_is_shown_is_used_by_a_command_of_its_page(document):
    unused = [name for name in document.files if not any(f"={name}." in command for command in document.commands)]
    assert unused == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


# The reader of documents itself.

SAMPLE = """
Some text, `python -m fedprox.main inline=1` is no block.

```sh
# a comment
make run

python -m fedprox.main --multirun \\
    mu=0.0,2.0 '+repeat_num=range(5)'
```

```python
# file: mine.py
def data():
    return 1
```

```python
print("of no file")
```

- in a list:
  ```sh
  python -m fedprox.main   # with a comment
  ```

```
python -m fedprox.main output=1
```
"""


def test_reading_joins_continued_lines_and_takes_blocks_marked_sh_only():
    document = read_document("sample", SAMPLE)
    assert document.commands == (
        "make run",
        "python -m fedprox.main --multirun mu=0.0,2.0 '+repeat_num=range(5)'",
        "python -m fedprox.main",
    )
    assert document.files == {"mine": "# file: mine.py\ndef data():\n    return 1\n"}
    assert document.languages == {"sh", "python", ""}


def test_a_run_becomes_small_and_keeps_all_else():
    small = made_small(["mu=1", "num_rounds=200", "data_dir=../data", "hydra.run.dir=x"], Path("/mnist"))
    assert small == ["mu=1", "data_dir=/mnist", "hydra.run.dir=x", "num_rounds=2"]
    assert made_small(["--help"], Path("/mnist")) == ["--help"]


def test_a_sweep_over_cifar10_becomes_smaller_still():
    small = made_small(
        ["-m", "experiment=flare_cifar10_small", "seed=range(3)", "mu=0.001,0.01,1.0", "x=1"], Path("/x")
    )
    cheap = ["num_epochs=1", "clients_per_round=1", "num_clients=100", "num_rounds=1"]
    assert small == ["-m", "experiment=flare_cifar10_small", "seed=range(1)", "mu=0.001", "x=1", *cheap]


def test_a_figure_becomes_small_and_keeps_what_is_not_about_its_size():
    small = ["--seeds", "1", "--rounds", "1", "--datasets"]
    assert figure_made_small(["fig1", "--seeds", "5", "--out", "x"]) == ["fig1", "--out", "x", *small, "synthetic_1_1"]
    assert figure_made_small(["all", "--datasets", "mnist"]) == ["all", *small, "synthetic_iid"]


def test_a_sweep_becomes_small_and_keeps_its_jobs_but_for_all_repetitions_but_one():
    small = made_small(["--multirun", "mu=0,2", "stragglers_fraction=0,0.5,0.9", "+repeat_num=range(5)"], Path("/x"))
    assert small == ["--multirun", "mu=0,2", "stragglers_fraction=0,0.5,0.9", "+repeat_num=range(1)", "num_rounds=1"]
    assert num_jobs(small) == 2 * 3
    assert num_jobs(["mu=1", "num_rounds=2"]) == 1


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("python -m fedprox.main mu=1", "fedprox.main"),
        (".venv/bin/python -m fedprox.main", "fedprox.main"),
        ("fedprox mu=1", "fedprox.main"),
        ("python -m fedprox.report multirun/<...> --out f.png", "fedprox.report"),
        ("python -m fedprox.reproduce fig2 --seeds 5", "fedprox.reproduce"),
        ("make test", "make"),
        ("python -m http.server", ""),
        ("python train.py", "train.py"),
        ("rm -rf x", ""),
        ("python -m fedprox.main && make", ""),
        ("python -m fedprox.main > log", ""),
        ("make run; make test", ""),
    ],
)
def test_what_nobody_knows_how_to_run_is_not_taken_for_a_program(command, program):
    assert program_of(shlex.split(command)) == program


def test_placeholders_are_filled_with_the_sweeps_in_their_order():
    sweeps = [Path("multirun/a/1"), Path("multirun/a/2")]
    asked = ["multirun/<...>", "multirun/<date>/<time>", "--out", "f.png"]
    assert filled_in(asked, sweeps) == ["multirun/a/1", "multirun/a/2", "--out", "f.png"]
    with pytest.raises(AssertionError, match="more placeholders than sweeps"):
        filled_in(asked, sweeps[:1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_command_for_a_gpu_is_known_to_fail_where_there_is_none():
    assert needs_what_is_not_here(["server_device=cuda", "client_resources.num_gpus=0.25"]) == "server_device"
    assert needs_what_is_not_here(["client_resources.num_gpus=0.25"]) == "client_resources.num_gpus"
    assert needs_what_is_not_here(["server_device=cpu", "client_resources.num_gpus=0"]) == ""
