"""The same samples give the same gradient, however they are split into micro-batches, packed or padded, for every
preset."""

import pytest
import torch

from rlhf.config.algorithm import PRESETS
from rlhf.trainers.grpo import PolicyGradient
from tests.tiny_runs import make_learner, make_samples, save_tiny_model, tiny_config

SPLITS = [(16, "packed"), (64, "packed"), (10_000, "padded"), (16, "padded")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def gradient(model, tmp_path, algorithm: dict, budget: int, attention: str) -> torch.Tensor:
    """The master gradient of one optimizer step, caught before clipping and the update."""
    config = tiny_config(
        model,
        model={"path": model, "dtype": "float32", "attention": attention},
        algorithm=algorithm,
        batch={"steps": 4, "prompts_per_step": 8, "tokens_per_micro_batch": budget, "max_grad_norm": 1e9},
        guards={"ratio_tolerance": 1e9},
    )
    learner = make_learner(config, tmp_path)
    caught = []
    step = learner.optimizer.step
    learner.optimizer.step = lambda: (
        caught.append(torch.cat([m.grad.flatten() for m in learner.weights.masters])) or step()
    )
    policy_gradient = PolicyGradient(config.algorithm, 4)
    batch, _ = policy_gradient.prepare(make_samples(), learner)
    learner.update(batch, policy_gradient, 1)
    return caught[0]


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets(model, tmp_path, preset):
    algorithm = {"preset": preset, "dynamic_sampling": {"max_refills": 0}}
    whole = gradient(model, tmp_path, algorithm, 10_000, "packed")
    assert float(whole.norm()) > 0
    for budget, attention in SPLITS:
        other = gradient(model, tmp_path, algorithm, budget, attention)
        assert float((other - whole).norm() / whole.norm()) < 1e-5, (budget, attention)


@pytest.mark.slow
def test_entropy_bonus_and_dropped_groups(model, tmp_path):
    """Forwarding groups without a signal changes nothing: their advantage is exactly 0."""
    base = gradient(model, tmp_path, {"preset": "grpo"}, 10_000, "packed")
    # a bonus too small to see forces all groups to be forwarded
    kept = gradient(model, tmp_path, {"preset": "grpo", "entropy_coefficient": 1e-12}, 10_000, "packed")
    assert float((kept - base).norm() / base.norm()) < 1e-5
