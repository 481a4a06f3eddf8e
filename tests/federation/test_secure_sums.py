"""Secure sums of a round: the mean that follows from them, who is in it, clipping and bytes."""

import numpy as np
import pytest

from fedprox.channel.masking import Masked
from fedprox.federation.secure_sums import SecureSums

COHORT = [(client, 0) for client in (4, 7, 1, 9)] + [(7, 1)]  # client 7 was drawn twice
UPDATES = {draw: (np.array([0.5, -1.0, 0.25]) * (at + 1) / 5, at + 1) for at, draw in enumerate(COHORT)}


def sums(**settings) -> SecureSums:
    masked = Masked(**settings)
    return SecureSums(masked, masked.ring(15, 5), cohort=lambda _: COHORT)


@pytest.mark.parametrize("missing", [[], [(7, 0)], [(4, 0), (7, 1)]])
@pytest.mark.parametrize("masks", [True, False])
def test_the_mean_is_weighted_over_those_who_deliver(missing, masks):
    delivered = {draw: own for draw, own in UPDATES.items() if draw not in missing}
    expected = sum(n * u for u, n in delivered.values()) / sum(n for _, n in delivered.values())
    found = sums(masks=masks).mean(3, delivered)
    assert np.abs(found - expected).max() <= len(delivered) / 2 / sums().ring.scale / sum(
        n for _, n in delivered.values()
    )
    assert found.tolist() == sums(masks=not masks).mean(3, delivered).tolist()  # to the last bit


def test_values_beyond_the_clip_are_clipped_counted_and_warned_of_once(caplog):
    secure = sums(clip=0.5)
    delivered = {draw: UPDATES[draw] for draw in COHORT[2:]}  # -0.6; -0.8; 0.5, -1.0
    clipped = sum(n * np.clip(u, -0.5, 0.5) for u, n in delivered.values()) / 12
    assert secure.mean(1, delivered) == pytest.approx(clipped, abs=1e-6)
    assert secure.num_clipped == {(1, 0): 1, (9, 0): 1, (7, 1): 1}
    secure.mean(2, delivered)
    assert [record.getMessage() for record in caplog.records] == [
        "round 1: 3 values of 3 updates are beyond secure_aggregation.clip=0.5 and are clipped to it; raise it, or see "
        "the column num_clipped of clients.csv for this and later rounds"
    ]


def test_a_round_below_the_threshold_is_lost(caplog):
    assert sums().delivering(2, COHORT[:3]) == COHORT[:3]
    assert sums().delivering(2, COHORT[:2]) == []
    assert "round 2 is lost: 2 of 5 clients delivered, and the sum of masked updates needs 3" in caplog.text


def test_clients_vanish_with_a_probability_and_the_same_ones_each_time():
    secure = sums(dropouts=0.3, threshold=2)
    left = [secure.delivering(round_num, COHORT) for round_num in range(1, 201)]
    assert left == [secure.delivering(round_num, COHORT) for round_num in range(1, 201)]
    share = sum(map(len, left)) / 1000  # 0.7, and a little less because rounds of one client are lost
    assert share == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / 1000))


def test_bytes_are_those_of_keys_shares_and_of_the_vector_of_those_who_deliver():
    sent, received = sums().bytes_of(1, COHORT[:3], num_values=3)
    setup, vector = 64 + 4 * 148, 4 * 4 + 5 * 66  # (u, n): 4 numbers of 32 bits
    assert sent == {draw: setup + vector * (draw in COHORT[:3]) for draw in COHORT}
    assert received == 5 * 4 * (64 + 148)
    assert sums(masks=False).bytes_of(1, COHORT, num_values=3) == (dict.fromkeys(COHORT, 16), 0)
