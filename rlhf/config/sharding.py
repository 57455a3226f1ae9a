"""How the ranks of a run share the model: what `accelerate launch --config_file configs/accelerate/...` asked for."""

from collections.abc import Mapping
from typing import Literal

Sharding = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload"]


def sharding_from_environment(environment: Mapping[str, str]) -> Sharding:
    """The method that Accelerate's launcher names in its variables. It leaves FSDP out on CPU without a word, so what
    Accelerate made of them is not asked."""
    if _is_true(environment, "ACCELERATE_USE_FSDP"):
        return "fsdp2"
    if not _is_true(environment, "ACCELERATE_USE_DEEPSPEED"):
        return "ddp"
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    is_offloaded = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none"
    if stage == "3":
        return "zero3_offload" if is_offloaded else "zero3"
    return {"1": "zero1", "2": "zero2"}.get(stage, "ddp")


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")
