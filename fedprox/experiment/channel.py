"""Assembly of the channel from the configuration: who attacks, and how updates are compressed."""

import logging
import math
from fnmatch import fnmatchcase

from flwr.app import ArrayRecord

from fedprox.channel.codecs import Codec, Float32, Quantise
from fedprox.config.schema import Config, Update
from fedprox.errors import UserError
from fedprox.experiment.data import attack_of, attackers
from fedprox.federation.channel import Channel, Layout
from fedprox.federation.contribution import Contribution
from fedprox.federation.secure_sums import SecureSums

_log = logging.getLogger("fedprox")
_MEDIANS = ("Median", "TrimmedMean", "FedMedian", "FedTrimmedAvg")


def channel(
    config: Config,
    num_clients: int,
    arrays: ArrayRecord,
    layout: Layout,
    contribution: Contribution | None = None,
    secure: SecureSums | None = None,
) -> Channel:
    """Return what happens to updates on their way to the server.

    Raises:
        UserError: If nothing would travel.
    """
    attack, update = attack_of(config), config.update
    if not (attack or update.count_bytes or contribution or secure):
        return Channel()
    if update.count_bytes and config.strategy.name == "FedDane":
        raise UserError(
            "update= counts and compresses models, but with strategy=feddane gradients travel, too; use update=none or "
            "another strategy"
        )
    shared = [name for name in layout.trained if name not in layout.local]
    names = [name for name in shared if update.names is None or any(fnmatchcase(name, own) for own in update.names)]
    if not names:
        known = ", ".join(shared)
        raise UserError(f"update.names={update.names} names no trained parameter; the model has {known}")
    if codec := codec_of(update):
        codec.num_sent(sum(math.prod(arrays[name].shape) for name in names))
    _warn_of_medians(config.strategy.name, update)
    return Channel(
        names,
        kept=[name for name in shared if name not in names],
        buffers=[name for name in layout.buffers if name not in layout.local],
        local=layout.local,
        codec=codec,
        feeds_back=update.error_feedback,
        attack=attack,
        is_malicious=attackers(config, attack, num_clients) if attack else None,
        contribution=contribution,
        secure=secure,
        seed=config.seed,
        repetition=config.repeat_num,
    )


def codec_of(update: Update) -> Codec | None:
    """Return how updates are compressed; None if bytes are not counted."""
    if not update.count_bytes:
        return None
    values = Quantise(**update.quantise.model_dump()) if update.quantise else Float32()
    return Codec(values, update.top_k.fraction if update.top_k else None)


def _warn_of_medians(strategy: str, update: Update) -> None:
    """Warn of a rule by coordinate behind a codec that makes most of them 0."""
    is_sparse = bool(update.top_k and update.top_k.fraction < 0.5)
    is_coarse = bool(update.quantise and update.quantise.scale == "norm" and update.quantise.bits < 8)
    if strategy in _MEDIANS and (is_sparse or is_coarse):
        _log.warning(
            "most values of an update compressed like this are 0, and so is their median: with strategy=%s the model "
            "hardly moves; use a rule by distances, such as strategy=multi_krum, or update.quantise.scale=max",
            strategy,
        )
