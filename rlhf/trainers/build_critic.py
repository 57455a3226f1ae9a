"""The critic that a recipe's algorithm asks for."""

from accelerate import Accelerator

from rlhf.config.recipe import RecipeConfig
from rlhf.models.loading import load_policy
from rlhf.models.policy import Policy
from rlhf.training.critic_learner import CriticLearner


def make_critic(config: RecipeConfig, policy: Policy, accelerator: Accelerator) -> CriticLearner | None:
    """On a model of its own, or on the policy's states; None for algorithms without one."""
    settings = getattr(config.algorithm, "critic", None)
    if settings is None:
        return None
    trains_trunk = settings.trunk == "separate"
    trunk = load_policy(config.model, seed=config.run.seed).to(accelerator.device) if trains_trunk else policy
    return CriticLearner(trunk, config, settings, accelerator, trains_trunk=trains_trunk)
