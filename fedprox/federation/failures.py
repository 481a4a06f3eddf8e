"""Failure policy for clients that raise, diverge or are late, and for models that are not finite."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType

from fedprox.errors import RunStopped
from fedprox.federation.messages import Engine, client_of, draw_of, is_late, late
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.results import Round
from fedprox.strategies.arrays import to_numpy
from fedprox.strategies.updates import arrays_of, metrics_of

STOP, DROP, CONTINUE = "stop", "drop", "continue"
_log = logging.getLogger("fedprox")


@dataclass
class FailurePolicy:
    """What a run does about failures.

    Attributes:
        on_client_error: "stop" or "drop", if a client raises or its process dies repeatedly.
        on_divergence: "stop", "drop" or "continue", if numbers are nan or infinite.
        round_timeout: Seconds after which a round ends with the replies it has; None for no limit.
        on_timeout: "stop" or "drop", if clients have not replied by then.
    """

    on_client_error: str = STOP
    on_divergence: str = STOP
    round_timeout: float | None = None
    on_timeout: str = STOP
    _has_warned: bool = False

    def filtering(self, grid: Engine, round_num: int) -> "FailureFilter":
        """Return an engine for one round, which starts now, that returns only the replies that count."""
        return FailureFilter(self, grid, round_num)

    def check_aggregate(self, round_num: int, strategy: PlannedStrategy, arrays: ArrayRecord | None) -> None:
        """Raise RunStopped if a strategy that is not ours made a model that is not finite from updates that are."""
        if self.on_divergence != STOP or arrays is None or strategy.is_ours:
            return
        if not all(np.isfinite(to_numpy(array)).all() for array in arrays.values()):
            raise RunStopped(
                f"round {round_num}: {strategy.name} made a model that is nan or infinite from finite updates; "
                "change the strategy's settings, or set on_divergence=continue",
                "diverged",
            )

    def check(self, outcome: Round) -> None:
        """Raise RunStopped, or warn once if on_divergence=drop, if the global model's loss is nan or infinite.

        Call it after the round is recorded.
        """
        if self.on_divergence == CONTINUE or outcome.test is None:
            return
        federation = outcome.test.federation
        losses = {"test loss": outcome.test.loss} | ({"training loss": federation.train_loss} if federation else {})
        for name, loss in losses.items():
            if loss is not None and not isfinite(loss):
                line = f"round {outcome.round_num}: the global model's {name} is {loss}"
                if self.on_divergence == STOP:
                    raise RunStopped(f"{line}; {_CALMER if outcome.round_num else _INITIAL}", "diverged")
                if not self._has_warned:
                    _log.warning("%s", line)
                self._has_warned = True


_INITIAL = "this is the initial model, before any training: fix model.init, the model or the data"
_CALMER = "lower learning_rate, or set on_divergence=drop or continue"


class FailureFilter:
    """An engine for one round that leaves out, or stops the run for, clients that failed, diverged or are late."""

    def __init__(self, policy: FailurePolicy, grid: Engine, round_num: int) -> None:
        """Start the round's clock."""
        self._policy, self._grid, self._round = policy, grid, round_num
        self._until = inf if policy.round_timeout is None else time.monotonic() + policy.round_timeout

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies that count, in the order of their messages.

        Args:
            messages: To any clients.
            timeout: Not used; the round's own counts.

        Raises:
            RunStopped: If a client failed, diverged or is late, and the policy is "stop".
        """
        left = None if self._until == inf else max(0.0, self._until - time.monotonic())
        received = self._grid.send_and_receive(messages, timeout=left)
        by_draw = {(reply.metadata.src_node_id, reply.metadata.group_id): reply for reply in received}
        asked = [(message.metadata.dst_node_id, message.metadata.group_id) for message in messages]
        replies = [by_draw.get(draw) or late(message) for draw, message in zip(asked, messages, strict=True)]
        replies = self._without(replies, is_late, self._report_late)
        replies = self._without(replies, Message.has_error, self._report_failed)
        if self._policy.on_divergence == CONTINUE:
            return replies
        return self._without(replies, diverges, self._report_diverged)

    def _without(
        self, replies: list[Message], is_out: Callable[[Message], bool], report: Callable[[list[Message], int], None]
    ) -> list[Message]:
        """Return the replies that are not out, after reporting those that are."""
        out = [reply for reply in replies if is_out(reply)]
        if out:
            report(out, len(replies))
        return [reply for reply in replies if reply not in out] if out else replies

    def _report_late(self, out: list[Message], num_asked: int) -> None:
        limit = f"round_timeout={self._policy.round_timeout:g}"
        line = f"round {self._round}: {_named(out, num_asked)} did not answer within {limit} s"
        if self._policy.on_timeout == STOP:
            raise RunStopped(f"{line}; increase it, or set on_timeout=drop")
        _log.warning("%s; left out", line)

    def _report_failed(self, out: list[Message], num_asked: int) -> None:
        first = f"round {self._round}: client {_name(out[0])}: {out[0].error.reason}"
        others = f"; {len(out) - 1} more of the {num_asked} clients failed" if len(out) > 1 else ""
        if self._policy.on_client_error == STOP:
            raise RunStopped(f"{first}{others}; fix it, or set on_client_error=drop")
        if self._round == 1 and 1 < len(out) == num_asked:  # the model or the data must be wrong
            raise RunStopped(f"{first}; all {num_asked} clients of the first round failed")
        for reply in out:
            _log.warning("round %d: client %s is left out: %s", self._round, _name(reply), reply.error.reason)

    def _report_diverged(self, out: list[Message], num_asked: int) -> None:
        line = f"round {self._round}: the updates of {_named(out, num_asked)} are nan or infinite"
        if self._policy.on_divergence == STOP:
            raise RunStopped(f"{line}; {_CALMER}", "diverged")
        _log.warning("%s; left out", line)


def diverges(reply: Message) -> bool:
    """Return whether an update is not finite.

    Training loss and drift, a norm over all parameters, show that; arrays are only read if drift is missing. What a
    client measured is no update: the mean over all clients is checked.
    """
    if reply.metadata.message_type == MessageType.EVALUATE:
        return False
    metrics = metrics_of(reply)
    if not all(isfinite(metrics[name]) for name in ("train-loss", "drift") if name in metrics):
        return True
    if "drift" in metrics:
        return False
    return not all(np.isfinite(array).all() for array in arrays_of(reply).values() if array.dtype.kind == "f")


def _name(reply: Message) -> str:
    """Return "3", or "3 (draw 2)" for a client that was drawn before in the round; "3 at a" if site a is late."""
    draw = draw_of(reply)
    site = f" at {reply.error.reason}" if is_late(reply) and reply.error.reason else ""
    return f"{client_of(reply)}{site} (draw {draw + 1})" if draw else f"{client_of(reply)}{site}"


def _named(replies: Sequence[Message], num_asked: int) -> str:
    """Return how many clients and which, such as "3 of 10 clients (3, 5 and 8)"; the first client is 0."""
    *first, last = map(_name, replies)
    names = f"{', '.join(first)} and {last}" if first else f"client {last}"
    return f"{len(replies)} of {num_asked} clients ({names})"
