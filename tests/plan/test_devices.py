"""The clients' devices: what is drawn, what is read, and how many steps fit into a time."""

import numpy as np
import pytest

from fedprox.errors import UserError
from fedprox.plan.devices import Devices, drawn_speeds, read_speeds
from fedprox.plan.plan import ClientTask


def drawn(num_clients: int = 2000, sigma: float = 1.0, bandwidth: float | None = 1e6, seed: int = 0, **more):
    settings = {"seconds_per_step": 2.0, "bandwidth": bandwidth, "sigma": sigma, "seed": seed}
    return drawn_speeds(num_clients, **settings, **more)


def test_speeds_and_bandwidths_are_lognormal_and_independent_of_each_other():
    speeds = drawn()
    z = np.log(speeds.seconds_per_step / 2.0), np.log(speeds.bandwidth / 1e6)
    for each in z:  # the mean of 2,000 has a standard error of 0.022, their standard deviation one of 0.016
        assert abs(each.mean()) < 0.08
        assert abs(each.std() - 1.0) < 0.06
    assert abs(np.corrcoef(z)[0, 1]) < 0.08


def test_speeds_follow_from_seed_and_repetition_and_more_clients_leave_the_first_ones_as_they_are():
    first = drawn(5).seconds_per_step.tolist()
    assert drawn(9).seconds_per_step[:5].tolist() == first
    others = [drawn(5, seed=1), drawn(5, repetition=1)]
    assert all(each.seconds_per_step.tolist() != first for each in others)


def test_without_a_spread_all_devices_are_alike_and_without_a_bandwidth_communication_takes_no_time():
    speeds = drawn(3, sigma=0.0, bandwidth=None)
    assert speeds.seconds_per_step.tolist() == [2.0] * 3
    assert speeds.devices(1000).transfer_s.tolist() == [0.0] * 3


def test_a_task_takes_its_transfer_and_its_steps():
    devices = Devices(np.array([0.5, 2.0]), np.array([3.0, 1.0]))
    assert [devices.seconds(ClientTask(client, 1, 4, False, ())) for client in (0, 1)] == [3 + 2.0, 1 + 8.0]


@pytest.mark.parametrize(
    ("seconds", "per_step", "transfer_s", "steps"),
    [
        (10.0, 3.0, 0.0, 3),  # floor(10 / 3)
        (10.0, 3.0, 1.0, 3),  # floor(9 / 3)
        (10.0, 3.0, 1.1, 2),
        (0.3, 0.1, 0.0, 3),  # 0.3 / 0.1 is 2.9999999999999996
        (1.0, 2.0, 0.0, 0),
        (1.0, 0.1, 5.0, 0),  # the model has not even arrived
    ],
)
def test_the_steps_within_a_time_are_whole_steps_after_the_transfer(seconds, per_step, transfer_s, steps):
    assert Devices(np.array([per_step]), np.array([transfer_s])).steps_within(seconds, 0) == steps


def test_a_table_gives_each_client_its_row_whatever_their_order(tmp_path):
    (tmp_path / "a.csv").write_text("client,seconds_per_step,bandwidth\n1,0.5,10\n7,9,9\n0,2,40\n")
    speeds = read_speeds(tmp_path / "a.csv", 2)  # it may have more clients
    assert (speeds.seconds_per_step.tolist(), speeds.bandwidth.tolist()) == ([2.0, 0.5], [40.0, 10.0])
    assert speeds.devices(80).transfer_s.tolist() == [2.0, 8.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("client,seconds_per_step\n0,1\n", "2 of the 3 clients have no row, the first of them 1"),
        ("client,seconds_per_step\n0,1\n1,1\n2,1\n1,2\n", "client 1 has two rows"),
        ("client,speed\n0,1\n1,1\n2,1\n", "it lacks the column seconds_per_step"),
        ("name,seconds_per_step\na,1\n", "it lacks the column client"),
        ("client,seconds_per_step\n0,1\n1,0\n2,1\n", "seconds_per_step of client 1 must be finite, at least 1e-9"),
        ("client,seconds_per_step\n0,1\n1,nan\n2,1\n", "seconds_per_step of client 1 must be finite, at least 1e-9"),
        ("client,seconds_per_step,bandwidth\n0,1,5\n1,1,\n2,1,5\n", "bandwidth of client 1 must be finite, at least 1"),
        ("client,seconds_per_step\n0\n1,1\n2,1\n", "seconds_per_step of client 0 must be finite"),
        ("client,seconds_per_step\nx,1\n", "invalid literal"),
        ("", "3 of the 3 clients have no row"),
    ],
)
def test_a_table_that_does_not_give_every_client_a_speed_is_refused_in_one_line(tmp_path, text, reason):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=r"^devices\.path=.*a\.csv cannot be used: ") as told:
        read_speeds(tmp_path / "a.csv", 3)
    assert reason in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot be used: No such file or directory; give a \.csv with the columns client, from 0 to 2"
    ):
        read_speeds(tmp_path / "none.csv", 3)
