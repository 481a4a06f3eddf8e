"""Client updates as Flower messages whose records are made only when they are read.

Making and reading records takes a third of a short round. Our own code reads an update directly by `arrays_of` and
`metrics_of`; for all other code it is an ordinary Flower message.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import DTypeLike, NDArray

from fedprox.strategies.arrays import only, to_numpy, to_record

Arrays = Mapping[str, NDArray[np.generic]]
Metrics = Mapping[str, Any]
_UNREAD = RecordDict()
_PERSONAL = "personal"  # the record with what a client keeps, behind the model that is sent
_VARIATE = "variate"  # the record with a control variate, behind the model, too


class LazyMessage(Message):
    """A Flower message whose content is made when it is first read.

    After that, the content counts, and may be changed as in any other message. A copy of this message, and what
    another process receives, is an ordinary message.
    """

    def __init__(self, *addressee: Any, **settings: Any) -> None:
        """Make a message without content; the arguments are those of `flwr.app.Message` after the content."""
        super().__init__(_UNREAD, *addressee, **settings)

    def make_content(self) -> RecordDict:
        """Make and return the content."""
        raise NotImplementedError

    @property
    def is_unread(self) -> bool:
        """Whether the content has not been read, and so cannot have been changed."""
        return self.__dict__["_content"] is _UNREAD

    @property
    def content(self) -> RecordDict:
        """The content, made now if it was not read before."""
        if self.is_unread:
            self.content = self.make_content()
        return super().content

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__["_content"] = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle and copy make an ordinary message."""
        return partial(Message, content=self.content, metadata=self.metadata), ()


class TrainReply(LazyMessage):
    """A client's reply to a train message.

    Attributes:
        params: w_k, a state dict of the model, on the device that computed it.
        metrics: Metrics that the client reports, such as num-examples.
        personal: The client's personal model or its velocity, if it keeps one; the server only holds it for the client.
        variate: The client's control variate (SCAFFOLD), if it sends one.
    """

    def __init__(
        self,
        message: Message,
        params: Mapping[str, torch.Tensor],
        metrics: Metrics,
        personal: Mapping[str, torch.Tensor] | None = None,
        variate: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Reply to a message."""
        super().__init__(reply_to=message)
        self.params, self.metrics, self.personal, self.variate = params, metrics, personal, variate

    @cached_property
    def arrays(self) -> Arrays:
        """w_k as arrays, copied from a GPU when they are first read."""
        return _on_cpu(self.params)

    def make_content(self) -> RecordDict:
        """Make and return the records of arrays and metrics."""
        content = RecordDict({"arrays": to_record(self.arrays), "metrics": MetricRecord({**self.metrics})})
        for name, more in ((_PERSONAL, self.personal), (_VARIATE, self.variate)):
            if more is not None:
                content[name] = to_record(_on_cpu(more))
        return content


def replace_arrays(reply: Message, arrays: Arrays) -> None:
    """Put another model into a reply."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        reply.params = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        reply.__dict__.pop("arrays", None)
        return
    new, content = to_record(arrays), reply.content
    old = only(ArrayRecord, content)
    reply.content = RecordDict({name: new if each is old else each for name, each in content.items()})


def take_personal(reply: Message) -> Arrays:
    """Remove what the client keeps, its personal model or its velocity, from a reply, and return it."""
    if isinstance(reply, TrainReply) and reply.is_unread and reply.personal is not None:
        model, reply.personal = _on_cpu(reply.personal), None
        return model
    return _taken(reply, _PERSONAL)


def take_variate(reply: Message) -> Arrays | None:
    """Remove the client's control variate from a reply, and return it; None if there is none."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        variate, reply.variate = reply.variate, None
        return None if variate is None else _on_cpu(variate)
    return _taken(reply, _VARIATE) if _VARIATE in reply.content else None


def _taken(reply: Message, record: str) -> Arrays:
    """Remove a record with arrays from a reply's content, and return the arrays."""
    content = dict(reply.content)
    taken = cast(ArrayRecord, content.pop(record))
    reply.content = RecordDict(content)
    return {name: to_numpy(array) for name, array in taken.items()}


def _on_cpu(params: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: value.cpu().numpy() for name, value in params.items()}


def arrays_of(reply: Message) -> Arrays:
    """Return the model in a reply, read-only."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        return reply.arrays
    return {name: to_numpy(array) for name, array in only(ArrayRecord, reply.content).items()}


def flat(model: Arrays, names: Sequence[str]) -> NDArray[np.float64]:
    """Return the arrays with these names, one after another, as a vector in float64."""
    return np.concatenate([np.asarray(model[name], dtype=np.float64).ravel() for name in names])


def with_values(model: Arrays, names: Sequence[str], values: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
    """Return a model whose arrays with these names have other values, as `flat` orders them, in their own dtypes."""
    made, at = dict(model), 0
    for name in names:
        array = model[name]
        made[name] = in_type(values[at : at + array.size].reshape(array.shape), array.dtype)
        at += array.size
    return made


def in_type(numbers: Any, dtype: DTypeLike) -> NDArray[np.generic]:
    """Return numbers with a dtype; if that is an integer type, rounded to the nearest."""
    return np.asarray(numbers if np.dtype(dtype).kind == "f" else np.rint(numbers), dtype=dtype)


def integers_of(reply: Message) -> dict[str, np.dtype[np.generic]]:
    """Return the names of the arrays in a reply that do not hold floats, with their dtypes; nothing leaves a GPU."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        arrays = {name: value for name, value in reply.params.items() if not value.is_floating_point()}
        return {name: value.cpu().numpy().dtype for name, value in arrays.items()}
    return {name: array.dtype for name, array in arrays_of(reply).items() if array.dtype.kind != "f"}


def on_gpu(replies: Sequence[Message]) -> list[Mapping[str, torch.Tensor]]:
    """Return the models in replies if all of them are still on one GPU; otherwise nothing."""
    models = [reply.params for reply in replies if isinstance(reply, TrainReply) and reply.is_unread]
    devices = {tensor.device for model in models for tensor in model.values()}
    is_one_gpu = len(devices) == 1 and next(iter(devices)).type == "cuda"
    return models if is_one_gpu and len(models) == len(replies) else []


def metrics_of(reply: Message) -> Metrics:
    """Return the metrics in a reply."""
    if isinstance(reply, TrainReply) and reply.is_unread:
        return reply.metrics
    return only(MetricRecord, reply.content)
