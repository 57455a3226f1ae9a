"""VPO's gradient in an optimizer step on the same samples, split in any way, and by autograd through the whole loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms.preference import vpo_loss
from rlhf.config.vpo import VPOConfig
from rlhf.data.pairs import build_pairs
from rlhf.data.types import REFERENCE, Sample
from rlhf.models.loading import load_policy
from rlhf.models.plain_path import using_attention
from rlhf.models.policy import Policy
from rlhf.trainers.vpo import ValueIncentivised
from rlhf.training.learner import Learner
from tests.tiny_runs import make_learner, make_samples, tiny_config

SETTINGS = {
    "vpo online": {"calibration": "ref", "alpha": 0.5, "labels": "soft_bt", "reward_temperature": 0.3},
    "vpo with a floor": {"calibration": "ref", "alpha": 0.5, "log_ratio_floor": -0.05, "pairs": {"strategy": "all"}},
    "vpo token mean": {"calibration": "chosen", "alpha": 2.0, "sign": -1, "value_reduction": "token_mean"},
    "xpo": {"preset": "xpo", "alpha": 0.3},
    "dpo": {"preset": "dpo", "label_smoothing": 0.1},
    "ipo": {"preset": "ipo", "pairs": {"strategy": "one"}},
}


def vpo_config(model: str, budget: int, algorithm: dict[str, Any]) -> VPOConfig:
    plain = tiny_config(
        model,
        batch={"steps": 4, "prompts_per_step": 8, "tokens_per_micro_batch": budget, "max_grad_norm": 1e9},
        guards={"ratio_tolerance": 1e9, "max_ungradable_share": 1.0},
    ).model_dump()
    return VPOConfig.model_validate(plain | {"algorithm": algorithm})


def groups_with_references() -> list[list[Sample]]:
    """Eight prompts' graded samples; two completions of the reference for all but the second prompt, and one more for
    the third: a flat mean over completions is another one than the mean over prompts."""
    samples, groups = make_samples(), []
    for start in range(0, len(samples), 4):
        group = samples[start : start + 4]
        drawn = [] if start == 4 else samples[start + 1 : start + (4 if start == 8 else 3)]
        drawn = [replace(s, index=-1 - place, policy_version=REFERENCE) for place, s in enumerate(drawn)]
        groups.append(group + [s for s in drawn if s.completion_ids])
    return groups


def make_vpo_learner(config: VPOConfig, folder: Path) -> Learner:
    """With a reference that is not the policy."""
    learner = make_learner(config, folder)
    learner.reference = load_policy(config.model).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in learner.reference.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return learner


def vpo_gradient(
    model: str, folder: Path, settings: dict[str, Any], budget: int, groups: slice = slice(0, 8)
) -> tuple[Tensor, dict[str, float]]:
    """(flat gradient of the masters, metrics)."""
    config = vpo_config(model, budget, settings)
    learner = make_vpo_learner(config, folder)
    algorithm, caught = ValueIncentivised(config.algorithm, 4), []
    learner.optimizer.step = lambda: caught.append(torch.cat([m.grad.flatten() for m in learner.weights.masters]))
    samples = [sample for group in groups_with_references()[groups] for sample in group]
    metrics = learner.update(algorithm.prepare(samples, learner), algorithm, 1)
    return caught[0], metrics


def autograd_gradient(model: str, folder: Path, settings: dict[str, Any]) -> tuple[Tensor, float]:
    """(flat gradient, loss): `vpo_loss` of all groups at once, by autograd through the model."""
    config = vpo_config(model, 1, settings)
    learner, algorithm = make_vpo_learner(config, folder), config.algorithm
    chosen, rejected, weights, gaps, calibration, prompts = [], [], [], [], [], []
    for number, group in enumerate(groups_with_references()):
        own = [sample for sample in group if not sample.is_of_reference]
        pairs = build_pairs(own, algorithm.pairs.strategy, seed=0, max_pairs=algorithm.pairs.max_per_prompt).pairs
        chosen += [pair.chosen for pair in pairs]
        rejected += [pair.rejected for pair in pairs]
        weights += [pair.weight for pair in pairs]
        gaps += [pair.reward_gap / algorithm.reward_temperature for pair in pairs]
        drawn = [sample for sample in group if sample.is_of_reference]
        if algorithm.calibration == "chosen":
            drawn = list({pair.chosen.id: pair.chosen for pair in pairs}.values())
        calibration += drawn
        prompts += [number] * len(drawn)

    def logps(policy: Policy, samples: list[Sample]) -> Tensor:
        return torch.stack([_logp(policy, sample) for sample in samples])

    policy, reference = learner.policy.eval(), learner.reference
    loss, _ = vpo_loss(
        logps(policy, chosen), logps(policy, rejected), logps(reference, chosen), logps(reference, rejected),
        logps(policy, calibration), logps(reference, calibration), beta=algorithm.beta, alpha=algorithm.alpha,
        sign=algorithm.direction, labels=algorithm.labels, loss_type=algorithm.loss_type,
        label_smoothing=algorithm.label_smoothing, reward_gap_P=torch.tensor(gaps, dtype=torch.float64),
        pair_weight_P=torch.tensor(weights), cal_prompt_C=torch.tensor(prompts),
        log_ratio_floor=algorithm.log_ratio_floor, value_reduction=algorithm.value_reduction,
        cal_tokens_C=torch.tensor([len(sample.completion_ids) for sample in calibration]),
    )  # fmt: skip
    gradients = torch.autograd.grad(loss, learner.weights.masters)
    return torch.cat([gradient.flatten() for gradient in gradients]), float(loss.detach())


def _logp(policy: Policy, sample: Sample) -> Tensor:
    """The plain way: logits of one sequence, a softmax, a sum."""
    ids = torch.tensor([[*sample.prompt.token_ids, *sample.completion_ids]])
    with using_attention(policy.causal_lm, "sdpa"):
        logits_1TV = policy.causal_lm(input_ids=ids).logits.double()
    start = len(sample.prompt.token_ids) - 1
    logp_TV = torch.log_softmax(logits_1TV[0, start:-1], -1)
    return logp_TV.gather(1, torch.tensor(sample.completion_ids)[:, None]).sum()
