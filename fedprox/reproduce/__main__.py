"""`python -m fedprox.reproduce FIGURE`: the runs, the figure and the table of a figure in the paper."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from fedprox.cli.options import Parser
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.errors import UserError, one_line
from fedprox.process import exit_status, terminated_like_interrupted
from fedprox.report.style import save
from fedprox.reproduce import accuracies, algorithms_page, bars, datasets, flare, headline, interactions_page, tables
from fedprox.reproduce.figures import draw
from fedprox.reproduce.pages import Page
from fedprox.reproduce.runs import run_missing
from fedprox.reproduce.specs import DATASETS, FIGURES, Job, jobs_of

PAGES = {page.name: page for page in (interactions_page.PAGE, algorithms_page.PAGE, flare.PAGE)}
KNOWN = tuple(dict.fromkeys((*DATASETS, *(name for page in PAGES.values() for name in page.datasets))))


def main(argv: Sequence[str] | None = None) -> int:
    """Reproduce a figure and return the exit status: 0; 2 after a user error; 130 or 143 after a signal."""
    try:
        arguments = _parser().parse_args(argv)
        with terminated_like_interrupted():
            _reproduce(arguments)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; choose another folder with --out", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted; repeat the command to continue", file=sys.stderr)
        return exit_status(interrupt)
    return 0


_DESCRIPTION = """\
Reproduce a figure of the FedProx paper: do the runs that are missing, draw the figure, write its table."""
_EPILOG = f"""\
examples:
  python -m fedprox.reproduce fig2
  python -m fedprox.reproduce fig1 --datasets mnist,synthetic_1_1 --seeds 5
  python -m fedprox.reproduce all --rounds 10 --out quick
  python -m fedprox.reproduce interactions
  python -m fedprox.reproduce algorithms
  python -m fedprox.reproduce flare --device cuda --datasets cifar10

documentation: {HOME}"""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fedprox.reproduce",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument(
        "figure",
        choices=[*FIGURES, "all", *PAGES],
        metavar="FIGURE",
        help="fig1 to fig12, headline, or all of these; or a page: interactions (attacks, compression, privacy), "
        "algorithms, or flare (NVIDIA FLARE's comparison)",
    )
    parser.add_argument(
        "--datasets",
        type=_datasets,
        metavar="NAME,...",
        help=f"some of {', '.join(KNOWN)} (default: those of the figure whose files exist)",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        help="repetitions, and in figures 2 and 6 also data sets (default: 1, pages 5; the docs use 5)",
    )
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds of each run (default: the paper's)")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="device of evaluation and engine=local: cpu (default) or cuda")
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="location of files: shakespeare=<LEAF folder>, sent140=<LEAF folder>, glove=<file>, "
        "cifar10=<folder or archive of images>",
    )
    parser.add_argument("--out", type=Path, default=Path("reproduction"), metavar="FOLDER", help="default: %(default)s")
    return parser


def _datasets(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in KNOWN]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (choose from {', '.join(KNOWN)})")
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text}")
    return int(text)


def _reproduce(arguments: argparse.Namespace) -> None:
    if page := PAGES.get(arguments.figure):
        _reproduce_page(page, arguments)
        return
    names = list(FIGURES) if arguments.figure == "all" else [arguments.figure]
    shown = [name for name in DATASETS if any(name in FIGURES[figure].datasets for figure in names)]
    chosen = _chosen(arguments, names, shown)
    jobs = {name: jobs_of(FIGURES[name], chosen, arguments.seeds or 1, arguments.rounds) for name in names}
    jobs = {name: runs for name, runs in jobs.items() if runs}
    _run((job for runs in jobs.values() for job in runs), chosen, arguments)
    for name, runs in jobs.items():
        for file in write(name, tables.read_curves(runs, arguments.out), arguments.out):
            print(file)


def _reproduce_page(page: Page, arguments: argparse.Namespace) -> None:
    chosen = _chosen(arguments, [page.name], page.datasets)
    jobs = accuracies.jobs_of(page.tables, chosen, arguments.seeds or accuracies.NUM_SEEDS, arguments.rounds)
    _run((job for runs in jobs.values() for job in runs), chosen, arguments)
    for file in write_page(page, accuracies.read_cells(jobs, arguments.out), arguments.out):
        print(file)


def _chosen(arguments: argparse.Namespace, figures: Sequence[str], shown: Sequence[str]) -> list[str]:
    return datasets.choose(figures, shown, arguments.datasets, datasets.pairs(arguments.path))


def _run(jobs: Iterable[Job], chosen: Sequence[str], arguments: argparse.Namespace) -> None:
    """Do the missing runs; consecutive ones on the same data load it only once."""
    engine = [f"engine={arguments.engine}", f"server_device={arguments.device}"]
    files = datasets.overrides(datasets.pairs(arguments.path))
    by_dataset = sorted(jobs, key=lambda job: chosen.index(job.dataset))
    run_missing(by_dataset, arguments.out, {name: [*engine, *files.get(name, ())] for name in chosen})


def write(name: str, curves: pd.DataFrame, out: Path) -> list[Path]:
    """Write a figure's files into a folder and return them: NAME.png (not for the headline), NAME.md, NAME.csv."""
    figure = FIGURES[name]
    files = []
    if name == "headline":
        table = headline.compare(headline.read_runs(curves))
        text = headline.readable(table).to_markdown(index=False, disable_numparse=True)
    else:
        table = tables.summarise(curves, figure)
        text = tables.readable(table, figure).to_markdown(index=False, disable_numparse=True)
        files = [out / f"{name}.png"]
        save(draw(figure, curves), files[0], dpi=150)
    print(f"\n{text}\n")
    (out / f"{name}.md").write_text(f"{text}\n", encoding="utf-8")
    table.to_csv(out / f"{name}.csv", index=False)
    return [*files, out / f"{name}.md", out / f"{name}.csv"]


def write_page(page: Page, cells: accuracies.Cells, out: Path) -> list[Path]:
    """Write a page, its figure and its numbers into a folder and return them."""
    files = [out / f"{page.name}.md", out / page.figure, out / f"figures/{page.name}.csv"]
    files[1].parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(page.written(cells), encoding="utf-8")
    save(bars.draw(page, cells), files[1], dpi=150)
    accuracies.to_frame(cells).to_csv(files[2], index=False)
    return files


if __name__ == "__main__":
    sys.exit(ends_quietly(main))
