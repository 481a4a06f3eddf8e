"""The precision of GPUs; torch's switches exist without a GPU, too."""

import pytest
import torch

from fedprox.solvers.precision import precision

SWITCHES = (torch.backends.cudnn, torch.backends.cuda.matmul)


def allowed() -> list[bool]:
    return [switch.allow_tf32 for switch in SWITCHES]


@pytest.fixture(autouse=True)
def _as_torch_has_it():
    before = allowed()
    yield
    for switch, is_allowed in zip(SWITCHES, before, strict=True):
        switch.allow_tf32 = is_allowed


def test_on_a_gpu_tf32_is_off_unless_precision_is_reduced():
    for switch in SWITCHES:
        switch.allow_tf32 = True
    with precision("cuda:1"):
        assert allowed() == [False, False]
        with precision(torch.device("cuda"), reduced=True):
            assert allowed() == [True, True]
        assert allowed() == [False, False]
    assert allowed() == [True, True]


def test_the_switches_are_restored_after_an_error():
    before = allowed()
    with pytest.raises(ArithmeticError), precision("cuda", reduced=not before[0]):
        raise ArithmeticError
    assert allowed() == before


def test_on_a_cpu_nothing_is_changed():
    torch.backends.cudnn.allow_tf32 = True
    with precision("cpu"):
        assert torch.backends.cudnn.allow_tf32
