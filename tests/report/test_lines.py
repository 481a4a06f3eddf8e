"""Colours, dashes and markers of lines."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fedprox.report.lines import lines_of
from fedprox.report.style import PALETTE
from fedprox.report.summary import read_runs


@pytest.fixture
def looks(tmp_path, write_run):
    """Return a function from algorithms and their mu to their looks."""

    def look(mu_of):
        for number, (algorithm, mu) in enumerate(mu_of.items()):
            write_run(tmp_path / str(number), [0.1], algorithm=algorithm, mu=mu)
        return lines_of(read_runs([tmp_path]))

    return look


def proximal(*mus, name="FedProx"):
    return {f"{name} (mu = {mu:g})": mu for mu in mus}


def lightness(colour):
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))  # of grey, as in a print without colours


def test_the_look_of_fedavg_is_reserved(looks):
    without = looks(proximal(0, 1))
    assert PALETTE[0] not in {look.colour for look in without.values()}
    assert "s" not in {look.marker for look in without.values()}


def test_lines_differ_without_their_colours(looks):
    found = looks({"FedAvg": 0, **{f"Mine{number:02d}": 0 for number in range(27)}})
    assert len({(look.dashes, look.marker) for look in found.values()}) == 28
    assert not {look.dashes for look in found.values()} & {":", "dotted"}  # which means that some runs have ended
    assert not {look.marker for look in found.values()} & {"o", "^"}  # a branch, a loss that leaves the view


def test_colours_are_darker_the_larger_mu_and_order_is_by_number(looks):
    found = looks({"FedAvg": 0, **proximal(10, 0.001, 1, 0)})
    shades = [lightness(found[f"FedProx (mu = {mu})"].colour) for mu in ("0", "0.001", "1", "10")]
    assert shades == sorted(shades, reverse=True)
    assert min(np.diff(shades[::-1])) > 0.05
    assert found["FedAvg"].colour == PALETTE[0]


def test_each_family_has_its_own_colours_and_the_others_keep_the_palettes(looks):
    found = looks({"Krum": 0, **proximal(0, 1, 2), **proximal(0, 1, 2, name="FedDANE")})
    assert len({look.colour for look in found.values()}) == 7
    assert found["Krum"].colour == PALETTE[3]


def test_two_values_of_mu_have_the_palettes_colours_which_differ_more(looks):
    assert [look.colour for look in looks(proximal(3, 4)).values()] == [*PALETTE[1:3]]
