"""The critic that a recipe's algorithm asks for."""

from accelerate import Accelerator
from torch import Tensor

from rlhf.config.loop import AverageRewardConfig
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.config.ppo import ActorCriticConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.models.loading import load_policy
from rlhf.models.packing import PackedBatch
from rlhf.models.policy import Policy
from rlhf.training.algorithm import Critic
from rlhf.training.average_reward_critic import AverageRewardCritic
from rlhf.training.critic_learner import CriticLearner
from rlhf.training.optimistic_critic import OptimisticCritic


def make_critic(
    config: RecipeConfig, policy: Policy, reference: Policy | None, accelerator: Accelerator
) -> Critic | None:
    """On a model of its own, on the policy's states, or on the reference's (`reference`, or the base under LoRA); None
    for algorithms without one."""
    algorithm = config.algorithm
    if isinstance(algorithm, OptimisticConfig):
        hidden = policy.config.get_text_config().hidden_size

        def states_of(packed: PackedBatch) -> Tensor:
            return policy.reference_hidden(packed) if reference is None else reference.frozen_hidden(packed)

        kind = AverageRewardCritic if isinstance(algorithm, AverageRewardConfig) else OptimisticCritic
        return kind(states_of, hidden, config, algorithm, accelerator)
    if not isinstance(algorithm, ActorCriticConfig):
        return None
    trains_trunk = algorithm.critic.trunk == "separate"
    trunk = load_policy(config.model, seed=config.run.seed).to(accelerator.device) if trains_trunk else policy
    return CriticLearner(trunk, config, algorithm.critic, accelerator, trains_trunk=trains_trunk)
