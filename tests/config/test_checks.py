"""Checks of a configuration against this machine and the targets of groups."""

import os
from contextlib import nullcontext

import pytest
import torch

from fedprox.config.checks import check_machine, check_targets
from fedprox.config.compose import compose
from fedprox.config.schema import TARGETS
from fedprox.errors import UserError
from tests.settings import config_of

DIGITS = ("dataset=digits", "num_clients=10")


def check(*overrides: str) -> None:
    check_machine(compose([*DIGITS, *overrides]))


def test_resources_are_compared_with_this_machine_only_if_ray_runs_on_it():
    most, gpus = os.cpu_count(), torch.cuda.device_count()
    too_many = f"client_resources.num_cpus={most + 1}"
    check("engine=ray", f"client_resources.num_cpus={most}")
    check("engine=ray", "client_resources.num_cpus=0.5")
    check("engine=ray", "engine.address='head:6379'", too_many)  # a cluster may have more than this machine
    check("engine=local", too_many)  # which ignores them
    with pytest.raises(UserError, match=r"^client_resources\.num_cpus must be at most .*engine=local"):
        check("engine=ray", too_many)
    with pytest.raises(UserError, match=r"^client_resources\.num_gpus must be at most"):
        check("engine=ray", "client_resources.num_cpus=1", f"client_resources.num_gpus={gpus + 0.5}")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_is_refused_if_there_is_none(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"^server_device={device} needs a GPU.*server_device=cpu"):
        check("engine=local", f"server_device={device}")


def test_a_gpu_number_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check("engine=local", "server_device='cuda:1'")
    with pytest.raises(UserError, match="torch finds 2 GPUs"):
        check("engine=local", "server_device='cuda:2'")


@pytest.mark.parametrize("is_supported", [True, False])
def test_mixed_precision_needs_a_gpu_with_bfloat16(monkeypatch, is_supported):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: is_supported)
    check("engine=local", "server_device=cuda")
    with nullcontext() if is_supported else pytest.raises(UserError, match="computes in bfloat16"):
        check("engine=local", "server_device=cuda", "mixed_precision=true")


@pytest.mark.parametrize("group", TARGETS)
def test_every_group_is_checked(group):
    node = compose(DIGITS).plain()[group]
    with pytest.raises(UserError, match=rf"^{group}\.no_such_key is unknown"):
        check_targets(config_of(*DIGITS, **{group: {**node, "no_such_key": 1}}))
