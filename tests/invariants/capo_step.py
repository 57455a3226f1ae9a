"""CAPO's mask and gradient in the last of some optimizer steps on the same 32 samples, split in any way."""

from pathlib import Path
from typing import Any

import torch

from rlhf.config.capo import CAPOConfig
from rlhf.trainers.capo import CurvatureMasked
from tests.invariants.one_step import ALL
from tests.tiny_runs import make_learner, make_samples, tiny_config


def capo_config(model: str, preset: str, budget: int, **curvature: Any) -> CAPOConfig:
    plain = tiny_config(
        model,
        batch={"steps": 4, "prompts_per_step": 8, "tokens_per_micro_batch": budget, "max_grad_norm": 1e9},
        guards={"ratio_tolerance": 1e9, "max_ungradable_share": 1.0},
    ).model_dump()
    return CAPOConfig.model_validate(plain | {"algorithm": {"preset": preset, "curvature": curvature}})


def capo_step(
    model: str, folder: Path, preset: str, budget: int, share: slice = ALL, steps: int = 2, **curvature: Any
) -> tuple[torch.Tensor, torch.Tensor, CurvatureMasked]:
    """(flat gradient of the masters, ids of the accepted tokens in ascending order, the algorithm). Ids are drawn from
    tens of thousands, so two masks with the same ids are the same mask."""
    config = capo_config(model, preset, budget, **curvature)
    learner = make_learner(config, folder)
    algorithm = CurvatureMasked(config.algorithm, 4)
    caught = []
    take = learner.optimizer.step

    def step() -> None:
        caught.append(torch.cat([master.grad.flatten() for master in learner.weights.masters]))
        take()

    learner.optimizer.step = step
    for number in range(1, steps + 1):
        learner.update(algorithm.prepare(make_samples()[share], learner), algorithm, number)
    taken = [ids[mask] for ids, mask in zip(algorithm.step.token_ids, algorithm.step.accepted, strict=True)]
    return caught[-1], torch.cat(taken).sort().values if taken else torch.empty(0, dtype=torch.long), algorithm


def accepted_share(algorithm: CurvatureMasked) -> float:
    return float(torch.cat(algorithm.step.accepted).float().mean())
