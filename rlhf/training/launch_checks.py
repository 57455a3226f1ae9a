"""Launches that would go wrong in silence are refused before a model is loaded."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from transformers.integrations import unset_hf_deepspeed_config

from rlhf.config.sharding import Sharding
from rlhf.training.collectives import is_distributed

REPLICATED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_HPU,
}


ZERO_INIT = "ACCELERATE_DEEPSPEED_ZERO3_INIT"
EXPECTED_RANKS = "RLHF_RANKS"
"""Set by launch/*.sh. A launcher that silently runs one process sets no WORLD_SIZE that would show it."""
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""NCCL gives up after 10 minutes otherwise: less than a rank may wait while the main one looks for its servers
(`engine.retry_for_s`) or writes a large checkpoint. A rank that has died is noticed by the launcher at once."""


class LaunchError(RuntimeError):
    """The processes were started in a way in which they cannot work together; the message has the command."""


def start_accelerator(sharding: Sharding, **settings: Any) -> Accelerator:
    """Accelerate, with the process group that the launch asks for. Without a GPU the ranks are CPU processes, which
    Accelerate does not find out by itself: it would start as many runs of one process."""
    on_cpu = not torch.cuda.is_available()
    group = InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)
    if sharding.startswith("zero"):
        if os.environ.get(ZERO_INIT) == "true":
            raise LaunchError(
                "zero3_init_flag: true would divide a model while it is loaded, and a policy is checked whole before: "
                "set it to false, or use configs/accelerate/fsdp2.yaml for models that do not fit a device once in "
                "their own precision"
            )
        os.environ[ZERO_INIT] = "false"  # where the variable is missing Accelerate takes it for true
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            import deepspeed

            # an extension for gloo that is built by a compiler for minutes, and that it does without
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            group = InitProcessGroupKwargs(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        accelerator = Accelerator(**settings, kwargs_handlers=[group])
        # transformers takes the settings that Accelerate leaves it for a wish to divide models while it loads them
        unset_hf_deepspeed_config()
        accelerator.state.deepspeed_plugin.dschf = None
        return accelerator
    return Accelerator(**settings, **cpu_ranks(), kwargs_handlers=[group])


def cpu_ranks() -> dict[str, bool]:
    """What Accelerate must be told where there are several ranks and no GPU."""
    if torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    # read by Accelerate in other places than its argument too
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    return {"cpu": True}


def check_launch(accelerator: Accelerator, sharding: Sharding) -> None:
    """Raises LaunchError where processes would train alone, or where what was asked for is not what runs."""
    check_processes(accelerator, "recipes/...")
    if sharding == "ddp" and accelerator.distributed_type not in REPLICATED:
        raise LaunchError(
            f"{accelerator.distributed_type.value} was asked for, which no trainer here knows: launch with one of "
            "configs/accelerate/ (ddp, fsdp2, zero1, zero2, zero3)"
        )
    if sharding == "fsdp2" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError("FSDP is there in version 2 only: set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml")
    if sharding != "ddp" and not is_distributed():
        raise LaunchError(f"{sharding} divides a model over ranks, and there is one: launch with --num_processes")


def check_processes(accelerator: Accelerator, program: str) -> None:
    """Raises LaunchError where Accelerate does not see all the processes that were launched, or where they are more or
    fewer than `launch/*.sh` asked for."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise LaunchError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}: each would work "
            f"alone. On CPU:\n  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 "
            f"--num_processes {launched} {program}"
        )
    expected = int(os.environ.get(EXPECTED_RANKS) or launched)
    if expected != launched:
        raise LaunchError(
            f"{expected} ranks were asked for ({EXPECTED_RANKS}) and {launched} run: the launcher left some out, or "
            f"the variable is of another run. Start with launch/single_node.sh or launch/multi_node.sh, or unset it"
        )
