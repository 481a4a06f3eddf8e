"""Checks of a configuration against this machine, and against the functions and classes that its groups name."""

import os

from fedprox.config.instantiate import check_target
from fedprox.config.schema import SEVERAL, TARGETS, Config
from fedprox.errors import UserError


def check_targets(config: Config) -> None:
    """Raise UserError unless the function or class that each group names accepts the group's keys."""
    for group in TARGETS:
        check_target(group, getattr(config, group))
    for group in SEVERAL:
        for name, target in getattr(config, group).items():
            check_target(f"{group}.{name}", target)


def check_machine(config: Config) -> None:
    """Raise UserError if this machine does not have the GPUs or CPUs that the configuration asks for."""
    device = config.server_device
    if device.startswith("cuda"):
        import torch  # here: most refused commands do not need it

        if not torch.cuda.is_available():
            raise UserError(f"server_device={device} needs a GPU, but torch finds none; use server_device=cpu")
        if (torch.device(device).index or 0) >= (num_gpus := torch.cuda.device_count()):
            raise UserError(f"server_device must be below cuda:{num_gpus}: torch finds {num_gpus} GPUs, got {device}")
        if config.mixed_precision and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                "mixed_precision=true needs a GPU that computes in bfloat16, such as an A100 or a later one; use "
                "mixed_precision=false"
            )
    if config.engine.arguments.get("address", "") is None:  # Ray on this machine
        import torch

        available = {"num_cpus": os.cpu_count() or 1, "num_gpus": torch.cuda.device_count()}
        for name, most in available.items():
            if (asked := getattr(config.client_resources, name)) > most:
                raise UserError(
                    f"client_resources.{name} must be at most {most}, which is what this machine has, got {asked:g}; "
                    "lower it, or use engine=local"
                )
