"""Dropout whose masks are a function of the key."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from fedprox.solvers.dropout import (
    SeededDropout,
    _scrambled,
    _scrambled_words,
    dropout_keys,
    first_key,
    seed_dropout,
)


def layer(p: float = 0.3, key: int = 7, *, by_channel: bool = False) -> SeededDropout:
    made = SeededDropout(p, by_channel=by_channel)
    made.key.fill_(key)
    return made


def test_kept_entries_are_divided_by_their_probability_and_the_share_of_dropped_ones_is_p():
    x = torch.full((400, 500), 2.0)
    dropped = layer(0.3)(x)
    assert dropped.unique().tolist() == [0.0, pytest.approx(2 / 0.7)]
    # 200,000 draws: the standard deviation of the share is sqrt(0.3 * 0.7 / 200,000) = 0.001.
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)


def test_entries_are_dropped_independently_of_their_neighbours_of_other_keys_and_of_other_calls():
    x = torch.ones(400, 500)
    first = layer(0.5)
    mask, later = first(x) > 0, first(x) > 0
    pairs = [(mask[:-1], mask[1:]), (mask[:, :-1], mask[:, 1:]), (mask, later), (mask, layer(0.5, key=8)(x) > 0)]
    for one, other in pairs:
        assert (one & other).double().mean().item() == pytest.approx(0.25, abs=0.005)


def test_the_same_key_gives_the_same_masks_call_by_call():
    x, made = torch.ones(5, 6), layer()
    masks = made(x), made(x)
    made.begin_step()
    assert torch.equal(made(x), masks[0])
    assert torch.equal(made(x), masks[1])
    assert not torch.equal(*masks)


def test_a_shorter_batch_has_the_beginning_of_the_longer_ones_mask():
    # So padding a batch changes nothing for the examples that count.
    x = torch.ones(5, 6)
    assert torch.equal(layer()(x)[:3], layer()(x[:3]))


def test_by_channel_all_positions_of_a_channel_are_dropped_together():
    dropped = layer(0.5, by_channel=True)(torch.ones(20, 30, 4, 4)).flatten(2)
    assert torch.equal(dropped.amin(2), dropped.amax(2))
    assert 0.4 < (dropped == 0).double().mean() < 0.6


def test_a_probability_of_0_or_1_and_evaluation_mode():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert layer(0.0)(x) is x
    assert layer().eval()(x) is x
    assert torch.equal(layer(1.0)(x).abs(), torch.zeros(4, 5))


def test_the_gradient_is_that_of_the_kept_entries():
    x = torch.ones(4, 5, requires_grad=True)
    dropped = layer()(x)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


def test_side_by_side_each_client_has_the_mask_of_its_own_key():
    x, model = torch.ones(2, 3, 4), nn.Sequential(layer())
    keys = torch.tensor([5, 6], dtype=torch.int32)
    together = vmap(lambda key, inputs: functional_call(model, {"0.key": key}, (inputs,)))(keys, x)
    for at, key in enumerate((5, 6)):
        assert torch.equal(together[at], layer(key=key)(x[at]))


def test_only_torchs_own_layers_are_replaced_and_the_state_dict_stays():
    class Own(nn.Dropout):
        pass

    shared = nn.Dropout(0.1)
    model = nn.Sequential(shared, nn.Linear(2, 2), nn.Sequential(nn.Dropout2d(0.2), shared), Own(), nn.AlphaDropout())
    before = copy.deepcopy(model.state_dict())
    assert seed_dropout(model) == ["0", "2.0"]
    assert model[2][1] is model[0]
    assert (model[0].p, model[0].by_channel, model[2][0].p, model[2][0].by_channel) == (0.1, False, 0.2, True)
    assert (type(model[3]), type(model[4])) == (Own, nn.AlphaDropout)
    assert model.state_dict().keys() == before.keys()


def test_keys_differ_between_steps_layers_and_seeds_and_do_not_depend_on_their_number():
    one, other = (dropout_keys(first_key((0, 0, 3, client)), np.arange(50), 4) for client in (1, 2))
    assert (one.shape, one.dtype) == ((50, 4), np.int32)
    assert len(np.unique([one, other])) == 400
    assert np.array_equal(dropout_keys(first_key((0, 0, 3, 1)), np.arange(5, 25), 3), one[5:25, :3])
    both = dropout_keys(np.array([first_key((0, 0, 3, client)) for client in (2, 1)]), np.array([7, 8]), 4)
    assert np.array_equal(both, [other[7], one[8]])


def test_numpy_and_torch_scramble_alike_and_no_two_numbers_become_the_same():
    words = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    scrambled = _scrambled_words(words)
    assert np.array_equal(_scrambled(torch.from_numpy(words.view(np.int32))).numpy().view(np.uint32), scrambled)
    assert len(np.unique(scrambled)) == len(np.unique(words))
