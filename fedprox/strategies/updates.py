"""A client's update as a Flower message, whose records are made only when somebody reads them.

To make and read records takes a third of a short round. Our own strategies, and whoever counts what clients did, read
an update as it is by `arrays_of` and `metrics_of`; all other code meets an ordinary Flower message.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedprox.strategies.arrays import only, to_numpy, to_record

Arrays = Mapping[str, NDArray[np.generic]]
Metrics = Mapping[str, Any]
_UNREAD = RecordDict()


class LazyMessage(Message):
    """A Flower message whose content is made when somebody first reads it.

    From then on the content counts, which may be changed like any other message's. A copy, or what another process
    gets, is an ordinary message.
    """

    def __init__(self, *addressee: Any, **settings: Any) -> None:
        """Make a message without content yet; see `flwr.app.Message` for whom it is."""
        super().__init__(_UNREAD, *addressee, **settings)

    def make_content(self) -> RecordDict:
        """Return the content."""
        raise NotImplementedError

    @property
    def is_unread(self) -> bool:
        """Whether nobody has read the content, so that nobody can have changed it."""
        return self.__dict__["_content"] is _UNREAD

    @property
    def content(self) -> RecordDict:
        """The content."""
        if self.is_unread:
            self.content = self.make_content()
        return super().content

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__["_content"] = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make the ordinary message."""
        return partial(Message, content=self.content, metadata=self.metadata), ()


class TrainReply(LazyMessage):
    """A client's reply to a train message.

    Attributes:
        arrays: w_k, a state dict of the model.
        metrics: What the client reports, such as num-examples.
    """

    def __init__(self, message: Message, arrays: Arrays, metrics: Metrics) -> None:
        """Reply to a message."""
        super().__init__(reply_to=message)
        self.arrays, self.metrics = arrays, metrics

    def make_content(self) -> RecordDict:
        """Return the records that carry arrays and metrics."""
        return RecordDict({"arrays": to_record(self.arrays), "metrics": MetricRecord({**self.metrics})})


def arrays_of(reply: Message) -> Arrays:
    """Return the model that a reply carries, read-only."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        return reply.arrays
    return {name: to_numpy(array) for name, array in only(ArrayRecord, reply.content).items()}


def metrics_of(reply: Message) -> Metrics:
    """Return the metrics that a reply carries."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        return reply.metrics
    return only(MetricRecord, reply.content)
