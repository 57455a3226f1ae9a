"""A frozen tiny model, the critic that guides it, and the engine that draws from both."""

from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.models.loading import load_policy
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.trainers.build_critic import make_critic
from rlhf.trainers.decode_time_guidance import DecodeTimeGuidance
from rlhf.trainers.logit_matching import follow_critic
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.learner import Learner

PLAIN = {"optimizer": {"type": "adamw"}, "engine": {"type": "transformers"}}
"""Sections in place of those that train a policy."""


def make_guided(
    config: OptimisticActorCriticConfig, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[Learner, DecodeTimeGuidance, TransformersEngine]:
    """As `run` puts them together."""
    accelerator = Accelerator(cpu=True)
    policy = load_policy(config.model, temperature=config.sampling.temperature).eval().requires_grad_(False)
    critic = make_critic(config, policy, policy, accelerator)
    learner = Learner(policy, config, accelerator, NonFiniteGuard(config.guards, folder), policy, critic)
    algorithm = follow_critic(config.algorithm, config.sampling.samples_per_prompt)
    engine = TransformersEngine(
        config.model.path, config=config.engine, tokenizer=tokenizer, dtype=torch.float32, device="cpu"
    )
    return learner, algorithm, engine
