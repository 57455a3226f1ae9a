"""The optimistic actor-critic and LOOP on the tiny checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rlhf.config.loop import LOOPConfig
from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.data.episodes import Episode
from rlhf.data.types import Prompt, Sample
from rlhf.models.loading import load_policy
from rlhf.models.packing import TrainingSequence
from rlhf.trainers.build_critic import make_critic
from rlhf.trainers.logit_matching import follow_critic
from rlhf.trainers.optimistic_actor_critic import OptimisticActorCritic
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.learner import Learner
from tests.tiny_runs import tiny_config


def optimistic_config(
    model: str, schema: type[OptimisticActorCriticConfig] = OptimisticActorCriticConfig, **changes: Any
) -> OptimisticActorCriticConfig:
    """Chunks of three tokens; `changes` replace whole sections, of `algorithm` single fields."""
    given = changes.pop("algorithm", {})
    views = {} if "preset" in given else {"actions": {"chunk_tokens": 3, "bounds": [0.0, 1.0]}}
    algorithm = {
        **views,
        "ensemble": {"updates": 4, "episodes": 16, "members": 4},
        "switch": {"features": 8, "nats": 1e-3, "min_steps": 1},
        **given,
    }
    batch = {"steps": 4, "prompts_per_step": 8, "tokens_per_micro_batch": 128, "max_grad_norm": 1e9}
    sections = {"algorithm": algorithm, "batch": batch, "guards": {"ratio_tolerance": 1e9}} | changes
    return tiny_config(model, schema=schema, **sections)


def loop_config(model: str, **changes: Any) -> LOOPConfig:
    return optimistic_config(model, LOOPConfig, **changes)


def make_with_critic(config: OptimisticActorCriticConfig, folder: Path) -> tuple[Learner, OptimisticActorCritic]:
    accelerator = Accelerator(cpu=True)
    policy, reference = load_policy(config.model), load_policy(config.model).eval().requires_grad_(False)
    critic = make_critic(config, policy, reference, accelerator)
    learner = Learner(policy, config, accelerator, NonFiniteGuard(config.guards, folder), reference, critic)
    return learner, follow_critic(config.algorithm, config.sampling.samples_per_prompt)


def completion_of(sequence: TrainingSequence) -> Sample:
    """A graded sample of these ids."""
    prompt, ids = Prompt("p", sequence.prompt_ids, "text"), sequence.completion_ids
    return Sample(prompt, 0, ids, (-1.0,) * len(ids), "stop", 0, 0, reward=0.5)


def next_step(samples: list[Sample]) -> list[Sample]:
    """The same completions, as though the next policy had written them."""
    return [replace(sample, policy_version=sample.policy_version + 1) for sample in samples]


def weights_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in module.state_dict().values()])


def record_batches(critic: OptimisticCritic, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The ids of the episodes of each batch that is drawn from now on."""
    drawn: list[tuple[str, ...]] = []
    batch = critic.memory.batch

    def recorded(*arguments: Any) -> list[Episode]:
        found = batch(*arguments)
        drawn.append(tuple(episode.id for episode in found))
        return found

    monkeypatch.setattr(critic.memory, "batch", recorded)
    return drawn
