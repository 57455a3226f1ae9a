"""The gradient of one optimizer step on the same 32 samples, split in any way."""

from pathlib import Path
from typing import Any

import torch

from rlhf.config.grpo import GRPOConfig
from rlhf.models.packing import TrainingSequence, micro_batches
from rlhf.trainers.grpo import PolicyGradient
from tests.tiny_runs import make_learner, make_samples, tiny_config

ALL = slice(0, 32)


def one_step_config(model: str, preset: str, budget: int, attention: str, **changes: Any) -> GRPOConfig:
    return tiny_config(
        model,
        model={"path": model, "dtype": "float32", "attention": attention},
        algorithm={"preset": preset, "dynamic_sampling": {"max_refills": 0}, **changes},
        batch={"steps": 4, "prompts_per_step": 8, "tokens_per_micro_batch": budget, "max_grad_norm": 1e9},
        guards={"ratio_tolerance": 1e9},
    )


def one_step_gradient(
    model: str, folder: Path, preset: str, budget: int, attention: str = "packed", share: slice = ALL, **changes: Any
) -> torch.Tensor:
    """The masters' gradient, flat, as the optimizer gets it; `share`: this rank's samples."""
    config = one_step_config(model, preset, budget, attention, **changes)
    learner = make_learner(config, folder)
    caught = []
    learner.optimizer.step = lambda: caught.append(torch.cat([m.grad.flatten() for m in learner.weights.masters]))
    algorithm = PolicyGradient(config.algorithm, 4)
    learner.update(algorithm.prepare(make_samples()[share], learner), algorithm, 1)
    return caught[0]


def count_micro_batches(budget: int) -> int:
    """Into how many micro-batches the samples fall."""
    sequences = [TrainingSequence(s.prompt.token_ids, s.completion_ids) for s in make_samples()]
    return len(micro_batches(sequences, budget))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())
