"""`python -m fedprox.leakage RUN round=1 --out leak.png`: what one recorded update of a run gives away.

One client's update is computed again, changed as each defence would change it, and attacked. The figure shows original
and reconstructed examples, the table their peak signal-to-noise ratios.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedprox.cli.options import Parser
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.errors import RunStopped, UserError, one_line
from fedprox.leakage.defences import defences, stream
from fedprox.leakage.reconstruction import Delta, Images, psnr, reconstructed, scaled
from fedprox.leakage.recorded import RecordedUpdate, recorded_update
from fedprox.process import exit_status
from fedprox.report.outputs import FIGURES, check_writable
from fedprox.report.style import blank_figure, save

SHOWN = 4  # examples in the figure


def main(argv: list[str] | None = None) -> int:
    """Draw the figure and print the table.

    Returns:
        The exit status: 0; 2 after a user error; 130 after Ctrl-C.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        _leak(_parser().parse_args(argv))
    except (UserError, RunStopped) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename} cannot be read or written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        return exit_status(interrupt)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fedprox.leakage",
        description="Reconstruct a client's examples from its update in one round of a run, as it was sent and behind "
        "each defence.",
        epilog=f"example: python -m fedprox.leakage runs/digits round=1 --out leak.png\ndocumentation: {HOME}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="NAME=VALUE",
        help="round=1 and client=3, by default that with the fewest examples; or settings that a record may not "
        "decide, as for resume=",
    )
    parser.add_argument("--noise", type=float, default=1.0, metavar="Z", help="noise multiplier (default: %(default)s)")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the figure: FILE ends in .png, .pdf or .svg"
    )
    return parser


def _leak(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out, FIGURES, "--out")
    if not arguments.noise >= 0 or arguments.noise == float("inf"):
        raise UserError(f"--noise must be finite and >= 0, got {arguments.noise}")
    given = dict(word.partition("=")[::2] for word in arguments.settings)
    numbers = {name: _whole(name, given.pop(name)) for name in ("round", "client") if name in given}
    if not numbers.get("round"):
        raise UserError(f"round must be an integer >= 1, got {numbers.get('round')}; add round=1")
    update = recorded_update(
        arguments.run_dir,
        numbers["round"],
        numbers.get("client"),
        [word for word in arguments.settings if word.partition("=")[0] in given],
    )
    originals, guesses = scaled(update.features, update.examples), _guesses(update, arguments.noise)
    best = {name: _best(originals, found) for name, found in guesses.items()}
    save(_draw(originals, best, update), arguments.out)
    print(
        f"client {update.client}, round {update.round_num}: {len(originals)} examples, {update.num_steps} steps of SGD"
    )
    for name, (_, ratios) in best.items():
        print(f"{name:20} best {max(ratios):6.1f} dB, mean {np.mean(ratios):6.1f} dB")
    print(f"\nfigure: {arguments.out}")


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"{name} must be an integer >= 0, got {text or chr(39) * 2}")
    return int(text)


def _guesses(update: RecordedUpdate, noise: float) -> dict[str, Images]:
    """Return the attack's guesses behind each defence, and at last the guess without any update, the mean example."""
    flat = np.concatenate([value.ravel() for value in update.delta.values()])
    found = {
        name: reconstructed(
            update,
            _shaped(defend(flat, stream(update.config.seed, update.round_num, update.client, at)), update.delta),
        )
        for at, (name, defend) in enumerate(defences(noise).items())
    }
    mean = update.examples.features.mean(axis=0, dtype=np.float64)[np.newaxis]
    return found | {"mean example": scaled(mean, update.examples)}


def _shaped(flat: NDArray[np.float64], like: Delta) -> Delta:
    """Return a vector as arrays by name."""
    ends = np.cumsum([value.size for value in like.values()])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def _best(originals: Images, guesses: Images) -> tuple[Images, list[float]]:
    """Return for each original the guess nearest to it, and its PSNR; without guesses a grey image."""
    guesses = guesses if len(guesses) else np.full_like(originals[:1], 0.5)
    ratios = [[psnr(original, guess) for guess in guesses] for original in originals]
    return guesses[np.argmax(ratios, axis=1)], list(map(max, ratios))


def _draw(originals: Images, best: Mapping[str, tuple[Images, list[float]]], update: RecordedUpdate) -> Figure:
    """Draw the examples that leak most as rows: the original, and the guess behind each defence."""
    shown = np.argsort(-np.array(next(iter(best.values()))[1]), kind="stable")[:SHOWN]
    figure = blank_figure(height=0.6 + 1.4 * len(shown))
    axes = figure.subplots(len(shown), 1 + len(best), squeeze=False)
    for row, example in zip(axes, shown, strict=True):
        for place in row:
            place.set_axis_off()
        _show(row[0], originals[example], "original")
        for place, (name, (guesses, ratios)) in zip(row[1:], best.items(), strict=True):
            _show(place, guesses[example], f"{name}\n{ratios[example]:.1f} dB")
    figure.suptitle(f"Client {update.client} in round {update.round_num}, from its update", fontsize="medium")
    figure.tight_layout()
    return figure


def _show(axes: Axes, image: NDArray[np.float64], title: str) -> None:
    """Draw an image; a row of numbers if the example is not one."""
    pixels = np.atleast_2d(image.squeeze())
    pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels  # channels last
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect="equal" if image.ndim > 1 else "auto")
    axes.set_title(title, fontsize=7)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `| head` may leave early; nothing is lost
    sys.exit(ends_quietly(main))
