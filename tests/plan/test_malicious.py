import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprox.plan.malicious import malicious_clients


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_share_of_clients_attacks_and_a_smaller_share_is_a_subset(num_clients, one, other, seed):
    few, many = (malicious_clients(num_clients, share, seed) for share in sorted((one, other)))
    assert few.sum() == round(min(one, other) * num_clients)
    assert not (few & ~many).any()


def test_attackers_follow_from_seed_and_repetition():
    drawn = [malicious_clients(100, 0.2, *ids) for ids in ((0,), (0,), (1,), (0, 1))]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[3])
