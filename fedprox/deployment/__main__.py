"""The command `python -m fedprox.deployment`: prepare a federation, or run one on this machine."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedprox.cli.terminal import ends_quietly
from fedprox.deployment import daemons
from fedprox.deployment.kits import Federation, address, check_sites, prepare
from fedprox.errors import RunStopped, UserError, one_line
from fedprox.process import exit_status, terminated_like_interrupted

_log = logging.getLogger("fedprox")
_NEXT = """\
The server: {folder}/start_server.sh, with port {port} open. Then let the sites take part, once each:
  FLWR_HOME={folder}/home flwr supernode register {folder}/sites/{site}/key.pub {connection}
Each site: copy its folder from {folder}/sites/ there, and data=<its data> ./start.sh
Researchers: {folder}/ca/ca.crt and the entry of {folder}/home/config.toml in their own ~/.flwr/config.toml."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0; 1 after a fault; 2 after a mistake, each told in one line."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    parser = _parser()
    try:
        given = parser.parse_args(argv)
        with terminated_like_interrupted():
            given.run(given)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except RunStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return exit_status(interrupt)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m fedprox.deployment", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--folder", type=Path, default=Path("deployment"), help="default: %(default)s")
        made.set_defaults(run=run)
        return made

    prepared = command("prepare", _prepare, "Write certificates, a kit per site and a start script for the server.")
    prepared.add_argument("--server", required=True, metavar="HOST:PORT", help="the server as sites reach it")
    prepared.add_argument("--sites", required=True, metavar="A,B", help="the sites' names")
    prepared.add_argument("--connection", default="federation", help="the server's name in Flower's config.toml")
    started = command("up", _up, "Prepare a federation and start it on this machine, on the loopback device only.")
    nodes = started.add_mutually_exclusive_group(required=True)
    nodes.add_argument("--nodes", type=int, help="number of SuperNodes; node k plays client k")
    nodes.add_argument("--sites", metavar="A,B", help="a SuperNode per site")
    started.add_argument("--data", type=Path, help="with --sites: a folder that has a folder of data per site")
    command("status", _status, "Show what runs on this machine.")
    command("down", _down, "Stop it; nothing is left running.")
    return parser


def _prepare(given: argparse.Namespace) -> None:
    host, port = address(given.server)
    sites = given.sites.split(",")
    configs = {site: f'site="{site}" data="{{data}}"' for site in sites}
    prepare(Federation(given.folder, host, port, configs, connection=given.connection))
    print(_NEXT.format(folder=given.folder, port=port, site=sites[0], connection=given.connection))


def _up(given: argparse.Namespace) -> None:
    if given.sites:
        sites = given.sites.split(",")
        check_sites(sites)
        data = {site: given.data / site for site in sites} if given.data else None
        for folder in (data or {}).values():
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder; --data must have a folder per site")
        daemons.up(given.folder, {site: f'site="{site}" data="{{data}}"' for site in sites}, _absolute(data))
        num_nodes = len(sites)
    else:
        num_nodes = given.nodes
        if num_nodes < 1:
            raise UserError(f"--nodes must be at least 1, got {num_nodes}")
        config = 'name="node-{k}" partition-id={k} num-partitions={num_nodes}'
        daemons.up(given.folder, {f"node-{k}": config.format(k=k, num_nodes=num_nodes) for k in range(num_nodes)})
    if num_nodes > (num_cores := os.cpu_count() or 1):
        _log.warning("%d SuperNodes share %d cores: rounds may take long, see docs/deployment.md", num_nodes, num_cores)
    print(f"{num_nodes} SuperNodes are online; run with engine=deployment, stop with python -m fedprox.deployment down")


def _absolute(data: dict[str, Path] | None) -> dict[str, Path] | None:
    return {site: folder.absolute() for site, folder in data.items()} if data else None


def _status(given: argparse.Namespace) -> None:
    print("\n".join(daemons.status(given.folder)))


def _down(given: argparse.Namespace) -> None:
    num_ended = daemons.down(given.folder)
    print(f"{num_ended} processes stopped" if num_ended else f"nothing runs in {given.folder}")


if __name__ == "__main__":
    sys.exit(ends_quietly(main))
