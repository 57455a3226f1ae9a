"""How the ranks of a run share the model: what `accelerate launch --config_file configs/accelerate/...` asked for."""

from collections.abc import Mapping
from typing import Literal

from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.config.stage import StageConfig

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


def launch_environment(sharding: Sharding) -> dict[str, str]:
    """The variables that `sharding_from_environment` reads, as `accelerate launch` sets them."""
    if sharding == "ddp":
        return {}
    if sharding == "fsdp2":
        return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    return {
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": sharding[4],
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu" if sharding.endswith("offload") else "none",
    }  # fmt: skip


def sharding_problems(config: RecipeConfig | StageConfig, sharding: Sharding) -> list[str]:
    """What this recipe cannot do with a model that is divided over ranks, with the remedies."""
    if sharding == "ddp":
        return []
    if isinstance(config, StageConfig):
        return [
            f"this stage runs on TRL's trainer and exports the weights of one rank, and {sharding} divides weights or "
            "what trains them: use configs/accelerate/ddp.yaml"
        ]
    problems, algorithm = [], config.algorithm
    if config.optimizer.type in ("muon", "adamw_8bit"):
        is_muon = config.optimizer.type == "muon"
        reason = "needs whole matrices" if is_muon else "has state that cannot be saved in shards"
        problems.append(
            f"optimizer.type {config.optimizer.type} {reason}, and {sharding} divides them over ranks: use auon, "
            "frugal or adabelief (with state_dtype: 8bit for a small state), or configs/accelerate/ddp.yaml"
        )
    if not algorithm.trains_policy:
        problems.append(
            f"algorithm.actor.kind implicit trains no weights, so {sharding} has none to divide, and every rank's "
            "engine holds the whole model anyway: use configs/accelerate/ddp.yaml"
        )
    if isinstance(algorithm, OptimisticConfig) and (
        algorithm.ensemble.target == "policy"
        or (algorithm.actor.kind, algorithm.actor.reset) == ("logit_match", "none")
    ):
        problems.append(
            f"preset {algorithm.preset} reads the policy at states of which ranks have different numbers, and under "
            f"{sharding} all ranks have to read at once: choose another preset, or configs/accelerate/ddp.yaml"
        )
    return problems


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1")
