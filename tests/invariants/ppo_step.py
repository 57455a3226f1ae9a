"""PPO on the tiny checkpoint: a learner with its critic, and the critic's step on samples that are split in any way."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rlhf.config.ppo import PPOConfig
from rlhf.data.types import Sample
from rlhf.models.loading import load_policy
from rlhf.models.packing import TrainingSequence
from rlhf.trainers.build_critic import make_critic
from rlhf.trainers.ppo import ActorCritic
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.learner import Learner
from tests.tiny_runs import make_samples, tiny_config

ALL = slice(0, 32)


def ppo_config(model: str, budget: int = 128, critic: dict[str, Any] | None = None, **changes: Any) -> PPOConfig:
    algorithm = {"critic": {"bounds": [-1.0, 2.0], **(critic or {})}, **changes.pop("algorithm", {})}
    batch = {"steps": 4, "prompts_per_step": 8, "tokens_per_micro_batch": budget, "max_grad_norm": 1e9}
    sections = {"algorithm": algorithm, "batch": batch, "guards": {"ratio_tolerance": 1e9}} | changes
    return tiny_config(model, schema=PPOConfig, **sections)


def make_actor_critic(config: PPOConfig, folder: Path) -> tuple[Learner, ActorCritic]:
    accelerator = Accelerator(cpu=True)
    policy = load_policy(config.model)
    critic = make_critic(config, policy, None, accelerator)
    learner = Learner(policy, config, accelerator, NonFiniteGuard(config.guards, folder), critic=critic)
    return learner, ActorCritic(config.algorithm, config.sampling.samples_per_prompt)


def sequences(samples: list[Sample]) -> list[TrainingSequence]:
    return [TrainingSequence(sample.prompt.token_ids, sample.completion_ids) for sample in samples]


def returns(samples: list[Sample]) -> list[list[float]]:
    return [[sample.reward] * len(sample.completion_ids) for sample in samples]


def weights_after_a_step(model: str, folder: Path, trunk: str, budget: int, share: slice = ALL) -> torch.Tensor:
    """The critic's weights, flat, after a step of plain SGD, which shows the gradient where Adam's first step hides
    it; `share`: this rank's samples."""
    critic = make_actor_critic(ppo_config(model, budget, {"trunk": trunk}), folder)[0].critic
    parameters = [*(critic.weights.masters if critic.weights else ()), *critic.head.parameters()]
    critic.optimizers, critic.peaks = {"all": torch.optim.SGD(parameters, lr=1.0)}, {"all": [1.0]}
    samples = make_samples()[share]
    critic.update(sequences(samples), returns(samples), critic.values(sequences(samples)))
    return torch.cat([tensor.flatten() for tensor in critic.state_tensors().values()])
