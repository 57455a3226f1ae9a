"""Launches that would go wrong in silence are refused before a model is loaded."""

import os

from accelerate import Accelerator
from accelerate.utils import DistributedType

REPLICATED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_HPU,
}


class LaunchError(RuntimeError):
    """The processes were started in a way in which they cannot work together; the message has the command."""


def check_launch(accelerator: Accelerator) -> None:
    """Raises LaunchError where processes would train alone, or where sharding is asked for."""
    check_processes(accelerator, "recipes/...")
    asked = _sharding_asked()
    if accelerator.distributed_type not in REPLICATED or asked:
        raise LaunchError(
            f"{asked or accelerator.distributed_type.value} was asked for, and the learner keeps the whole model on "
            "every rank: weights would not be sharded, and the memory plan would not hold. Launch with "
            "configs/accelerate/ddp.yaml, or train adapters (model.lora) if the model does not fit"
        )


def check_processes(accelerator: Accelerator, program: str) -> None:
    """Raises LaunchError where Accelerate does not see all the processes that were launched."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise LaunchError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}: each would work "
            f"alone. On CPU:\n  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 "
            f"--num_processes {launched} {program}"
        )


def _sharding_asked() -> str | None:
    """Accelerate leaves FSDP out on CPU without a word, so its environment is read too."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed ZeRO")):
        if os.environ.get(variable, "false").lower() == "true":
            return name
    return None
