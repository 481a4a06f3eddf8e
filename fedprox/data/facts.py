"""What a server knows of its clients' data, from which plan and model are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedprox.data.federated import FederatedData, Integers, LabelledData


@dataclass(frozen=True)
class Facts:
    """Facts about all clients' data; at real sites the server has these, but none of the examples.

    Attributes:
        examples: Examples with the shape, type, number and names of classes, mean and std of the clients' own. In a
            simulation they are the clients' own; at real sites a few random ones, for trials of the model.
        sizes: Training examples of each client (n_k), shape (num_clients,).
        held_out_sizes: Examples that each client keeps for testing, shape (num_clients,).
        client_ids: The clients' unique names; empty if they are only numbers.
        num_tested: Number of examples on which a global model is tested.
        num_left_over: Number of training examples that no client holds.
        fingerprint: Returns hex digests, 32 characters each: "data" identifies the examples, "partition" their
            division; instead, "script" identifies the script of client=script. A function, because it takes seconds
            for gigabytes.
        has_test_set: Whether global models are tested on examples that no client holds.
        has_sizes: False if only the clients know their examples (client=script); then the sizes are 1.
    """

    examples: LabelledData
    sizes: Integers
    held_out_sizes: Integers
    client_ids: tuple[str, ...]
    num_tested: int
    num_left_over: int
    fingerprint: Callable[[], Mapping[str, str]]
    has_test_set: bool = False
    has_sizes: bool = True

    @classmethod
    def of(cls, data: FederatedData) -> "Facts":
        """Return the facts about data that this process holds."""
        return cls(
            examples=data.examples,
            sizes=data.train.sizes,
            held_out_sizes=data.held_out.sizes,
            client_ids=data.client_ids,
            num_tested=len(data.examples.test_labels) or len(data.held_out.indices),
            num_left_over=data.num_left_over,
            has_test_set=len(data.examples.test_labels) > 0,
            fingerprint=lambda: {"data": data.examples.fingerprint[:32], "partition": data.fingerprint[:32]},
        )

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.sizes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.examples.features.shape[1:]

    def __str__(self) -> str:
        """Return one line on how many examples the clients hold, and how many are left over."""
        sizes = self.sizes
        if not self.has_sizes:
            return f"{self.num_clients} clients, whose examples only their script knows"
        return (
            f"{self.num_clients} clients with {sizes.sum()} training examples "
            f"(min {sizes.min()}, mean {sizes.mean():.1f}, std {sizes.std():.1f}, max {sizes.max()}), "
            f"{self.held_out_sizes.sum()} held out, {self.num_left_over} left over; tested on {self.num_tested}"
        )
