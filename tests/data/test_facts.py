import numpy as np

from fedprox.data.facts import Facts
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData


def divided(num_tests: int) -> FederatedData:
    """Return clients with 3 and 1 training examples and 0 and 2 held-out ones of 8 examples with shape (2,)."""
    features, labels = np.zeros((8, 2), np.float32), np.array([0, 1] * 4)
    examples = LabelledData(features, labels, features[:num_tests], labels[:num_tests], 2, 0.0, 1.0)
    return FederatedData(examples, ClientIndex.from_lists([[0, 1, 2], [3]]), ClientIndex.from_lists([[], [4, 5]]))


def test_facts_of_data_count_what_clients_train_on_hold_out_and_leave():
    facts = Facts.of(divided(num_tests=0))
    assert facts.sizes.tolist() == [3, 1]
    assert facts.held_out_sizes.tolist() == [0, 2]
    assert (facts.num_clients, facts.num_left_over, facts.num_tested, facts.input_shape) == (2, 2, 2, (2,))


def test_a_test_set_takes_the_place_of_held_out_examples():
    assert Facts.of(divided(num_tests=5)).num_tested == 5


def test_a_line_says_how_many_examples_clients_have():
    assert str(Facts.of(divided(num_tests=0))) == (
        "2 clients with 4 training examples (min 1, mean 2.0, std 1.0, max 3), 2 held out, 2 left over; tested on 2"
    )


def test_the_fingerprint_tells_examples_from_their_division():
    data = divided(num_tests=0)
    other = FederatedData(data.examples, data.held_out, data.train)
    one, two = Facts.of(data).fingerprint(), Facts.of(other).fingerprint()
    assert one["data"] == two["data"]
    assert one["partition"] != two["partition"]
