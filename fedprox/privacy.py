"""`python -m fedprox.privacy SETTING=VALUE ...`: what the privacy of a planned run costs, without training.

The settings are those of `fedprox.main`, with privacy=client; no data are read.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from fedprox.cli.options import Parser
from fedprox.cli.terminal import ends_quietly
from fedprox.cli.version import HOME, version_line
from fedprox.config.compose import compose
from fedprox.config.schema import Config
from fedprox.errors import UserError, one_line
from fedprox.strategies.accounting import Ledger, calibrated, epsilon_by_moments, library

_DESCRIPTION = """\
Print the epsilon of a planned run with client-level differential privacy, round by round, without training."""
_EPILOG = f"""\
examples:
  python -m fedprox.privacy num_clients=1000 clients_per_round=10 num_rounds=100 privacy.noise_multiplier=1 \\
      privacy.delta=1e-3
  python -m fedprox.privacy experiment=digits privacy.epsilon=2 privacy.delta=1e-3

documentation: {HOME}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit status: 0, or 2 after a user error."""
    parser = Parser(
        prog="python -m fedprox.privacy",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version_line())
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE", help="as for fedprox.main")
    try:
        _print(compose(["privacy=client", *parser.parse_args(argv).settings]))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _print(config: Config) -> None:
    own, rounds, num_clients = config.privacy, config.num_rounds, config.num_clients
    library()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orders of Renyi divergence that do not converge are left out
    if num_clients is None:
        raise UserError("num_clients must be given, since no data are read here; such as num_clients=1000")
    assert own.delta is not None
    asked = config.clients_per_round or num_clients
    probability = asked / num_clients
    noise = own.noise_multiplier
    if noise is None:
        assert own.epsilon is not None
        noise = calibrated(own.epsilon, own.delta, probability, rounds)
    print(
        f"{num_clients} clients, each in a round with probability {probability:g} ({asked} on average); noise "
        f"multiplier {noise:.4g}, delta {own.delta:g}"
    )
    print(f"{'rounds':>8} {'epsilon':>10} {'by moments':>12}")
    for done in _milestones(rounds):
        spending = noise, probability, done
        moments = epsilon_by_moments(own.delta, spending) if noise else float("inf")
        print(f"{done:>8} {Ledger([spending]).epsilon(own.delta):>10.4f} {moments:>12.4f}")
    if own.budget is not None and noise:
        within = Ledger().rounds_within(own.budget, own.delta, (noise, probability, rounds))
        print(f"{within} of {rounds} rounds stay within epsilon {own.budget:g}")


def _milestones(rounds: int) -> list[int]:
    """Return 1, 10, 100 ..., half of the rounds and all of them.

    >>> _milestones(100)
    [1, 10, 50, 100]
    """
    powers = [10**power for power in range(len(str(rounds)))]
    return sorted({*powers, max(1, rounds // 2), rounds})


if __name__ == "__main__":
    sys.exit(ends_quietly(main))
