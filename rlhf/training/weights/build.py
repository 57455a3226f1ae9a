"""Who keeps the weights of a model that is trained: whole on every rank, in FSDP2's shards, or in ZeRO's partitions."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rlhf.config.model import ModelConfig
from rlhf.config.sharding import Sharding
from rlhf.models.loading import load_policy
from rlhf.models.policy import Policy
from rlhf.training.weights.fsdp2 import Fsdp2Weights, shard
from rlhf.training.weights.master import BuildOptimizer, MasterWeights
from rlhf.training.weights.zero import ZeroWeights

Weights = MasterWeights | ZeroWeights
"""Both have the same methods; see `MasterWeights`."""


def load_trained_policy(
    config: ModelConfig, accelerator: Accelerator, sharding: Sharding, *, copies: bool = True, temperature: float = 1.0,
    seed: int = 0,
) -> Policy:  # fmt: skip
    """A policy on the rank's device, ready for `make_weights`. `copies`: the optimizer wants float32 masters.

    Under FSDP2 it is sharded already; where masters are wanted the shards are those, in float32, and computed with in
    `config.dtype`.
    """
    if sharding != "fsdp2":
        return load_policy(config, temperature=temperature, seed=seed).to(accelerator.device)
    compute = getattr(torch, config.dtype)
    # adapters are float32 beside a base in its own precision: nothing of either is cast
    has_float_masters = copies and config.lora is None and compute != torch.float32
    stored = config.model_copy(update={"dtype": "float32"}) if has_float_masters else config
    policy = load_policy(stored, temperature=temperature, seed=seed)
    policy.causal_lm.config.dtype = compute  # what a checkpoint of it will say
    shard(policy, accelerator.device, compute if has_float_masters else None)
    return policy


def load_frozen_policy(
    config: ModelConfig, accelerator: Accelerator, sharding: Sharding, *, temperature: float
) -> Policy:
    """A policy without gradients, e.g. the reference: in shards where what is trained is."""
    policy = load_policy(config, temperature=temperature)
    policy.requires_grad_(False).eval()
    if sharding in ("fsdp2", "zero3", "zero3_offload"):
        shard(policy, accelerator.device)
        return policy
    return policy.to(accelerator.device)


def make_weights(
    policy: Policy, named: dict[str, nn.Parameter], build: BuildOptimizer, accelerator: Accelerator,
    sharding: Sharding, *, copies: bool = True,
) -> Weights:  # fmt: skip
    """The keeper of the parameters `named` of a policy of `load_trained_policy`, and their optimizer. Collective."""
    if sharding == "ddp":
        return MasterWeights(policy, named, build, copies)
    if sharding == "fsdp2":
        return Fsdp2Weights(policy, named, build)
    return ZeroWeights(policy, named, build, zero_section(accelerator))


def zero_section(accelerator: Accelerator) -> dict[str, Any]:
    """DeepSpeed's section `zero_optimization`, as Accelerate has put it together from its configuration."""
    return dict(accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"])
