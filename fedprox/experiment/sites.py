"""Experiments on real sites (dataset=sites in a federation): a node's answers, and the server's part before round 1."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from fedprox.config.instantiate import build
from fedprox.config.schema import Config, Target
from fedprox.data.facts import Facts
from fedprox.data.federated import FederatedData
from fedprox.data.sources.site_facts import FEWEST, Site, SiteError, SiteFacts, agree, federated, known
from fedprox.data.sources.site_facts import facts as facts_of_site
from fedprox.data.sources.sites import SiteFormat, read_site
from fedprox.engines.superlink import SuperLinkGrid
from fedprox.errors import UserError, one_line, printable, some_names
from fedprox.experiment.data import attack_of
from fedprox.federation.messages import task_of
from fedprox.federation.site_messages import SitesGrid, agreement_of, ask_facts, facts_reply, from_plain
from fedprox.storage import write_atomic

FACTS_FILE = "facts.json"
SHARE_CLASSES = "classes"  # the value of `share` in a node config that lets counts by class leave the site
NO_SKEW = "fedprox.data.feature_skew.none"
NodeConfig = Mapping[str, object]
_log = logging.getLogger("fedprox")


def check_sites(config: Config) -> None:
    """Raise UserError for settings that need all sites' examples in one place, or none of which has a meaning."""
    reason = "but with dataset=sites examples stay at their site"
    if config.evaluation.name == "clients":
        raise UserError(
            f"evaluation=clients compares the gradients of all clients' training examples in one process, {reason}; "
            "use evaluation=server, which measures the model on each site's held-out examples"
        )
    if config.evaluation.per_class:
        raise UserError(
            f"evaluation.per_class=true needs each class's test examples, {reason}, and so do the numbers of its "
            "classes; leave it out"
        )
    if (attack := attack_of(config)) and attack.changes_data:
        raise UserError(f"attack={type(attack).__name__} changes training examples, {reason}; use attack=sign_flip")
    if config.feature_skew.target != NO_SKEW:
        raise UserError(f"feature_skew changes the examples of all clients in one process, {reason}; leave it out")
    path = config.dataset.arguments.get("path")
    if config.is_deployment and path is not None:
        raise UserError(
            f"dataset.path={path} is for simulations: with engine=deployment every SuperNode names its own data in "
            "its node config; leave it out"
        )


def connect(config: Config, grid: SuperLinkGrid) -> tuple[Facts, SitesGrid]:
    """Return what the server knows of the sites' data, and an engine that sends what they agreed on.

    Args:
        config: The configuration, of dataset=sites.
        grid: Reaches the sites, whose names are the ids of clients 0, 1, ...

    Raises:
        UserError: If a site cannot tell about its data, or does not fit to the others; it names the site.
    """
    told = ask_facts(grid.ask, grid.sites, config.round_timeout)
    agreement = agree(told, config.dataset.arguments.get("classes"))
    facts = known(told, agreement)
    _log.info("sites %s: %s", ", ".join(facts.client_ids), facts)
    _log.info("%d classes: %s", len(agreement.classes), some_names(agreement.classes))
    if (cohort := config.clients_per_round or 0) > facts.num_clients:
        raise UserError(f"clients_per_round must be at most {facts.num_clients}, the number of sites, got {cohort}")
    return facts, SitesGrid(grid, told, agreement)


def write_facts(config: Config, flower_grid: Grid, folder: Path) -> None:
    """Ask a federation's sites about their data, log what they tell, and write it to facts.json.

    Args:
        config: The configuration, of dataset=sites.
        flower_grid: The grid that Flower gave the ServerApp.
        folder: Receives the file.

    Raises:
        UserError: If a site cannot tell about its data; it names the site.
    """
    nodes: SuperLinkGrid = build("engine", config.engine, SuperLinkGrid, flower_grid, config.num_clients)
    told = ask_facts(nodes.ask, nodes.sites, config.round_timeout)
    for site in told:
        counts = dict(zip(site.classes, site.counts, strict=True)) if site.counts else {}
        by_class = ", ".join(f"{printable(name)}: {count or f'0 to {FEWEST - 1}'}" for name, count in counts.items())
        sizes = f"{site.num_examples} training examples, {site.num_held_out} held out"
        _log.info("%s: %s; by class: %s", site.name, sizes, by_class or "not shared")
    write_atomic(folder / FACTS_FILE, json.dumps([asdict(site) for site in told]).encode())


def read_facts(folder: Path) -> list[SiteFacts]:
    """Return what `write_facts` has written."""
    return [from_plain(site) for site in json.loads((folder / FACTS_FILE).read_bytes())]


def tell_facts(config: Config, node_config: NodeConfig, message: Message) -> Message:
    """Return a node's answer to a query for facts.

    Args:
        config: The configuration, of dataset=sites.
        node_config: The node's: its `site`, its `data`, and perhaps share="classes".
        message: The query.

    Raises:
        SiteError: If the node has no such data. The line shows nothing of them.
    """
    site = _read(config, node_config)
    return facts_reply(message, _told(config, node_config, site))


def _told(config: Config, node_config: NodeConfig, site: Site) -> SiteFacts:
    normalise = bool(config.dataset.arguments.get("normalise", True))
    told = facts_of_site(site, normalise=normalise, with_counts=node_config.get("share") == SHARE_CLASSES)
    return replace(told, fingerprint=site.examples.fingerprint[:32])


def data_of_site(config: Config, node_config: NodeConfig, message: Message) -> FederatedData:
    """Return a node's data for a message: its site's examples, normalised as agreed, as the client of its task.

    Raises:
        SiteError: If the node has no such data. The line shows nothing of them.
    """
    site = _read(config, node_config)
    with _speaking_for(site.name):
        agreement = agreement_of(message, site.examples.features.shape[1:])
        return federated([site], agreement, task_of(message).client)


def _read(config: Config, node_config: NodeConfig) -> Site:
    """Return the data of a node's site."""
    name, place = (str(node_config.get(key, "")) for key in ("site", "data"))
    if not place:
        raise SiteError(
            f'site {name}: its SuperNode has no data; start it with --node-config \'site="{name}" data="<its folder>"\''
        )
    with _speaking_for(name):
        return read_site(name, Path(os.path.expanduser(place)), site_format(config.dataset))


def site_format(dataset: Target) -> SiteFormat:
    """Return how sites are read; a node's caches are where it has them, not where the server would."""
    names = {field.name for field in fields(SiteFormat)} - {"cache_dir"}
    return SiteFormat(**{name: value for name, value in dataset.arguments.items() if name in names})


@contextmanager
def _speaking_for(name: str) -> Iterator[None]:
    """Let only errors leave a site that show nothing of its data; others are for its own log."""
    try:
        yield
    except SiteError as error:
        line = str(error)
        raise SiteError(line if line.startswith(f"site {name}: ") else f"site {name}: {line}") from None
    except (UserError, OSError) as error:
        _log.error("%s", one_line(error))
        raise SiteError(f"site {name}: its data cannot be used; the log of its SuperNode has the reason") from None
