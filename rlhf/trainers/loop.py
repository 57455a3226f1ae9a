"""LOOP (Local-fitted Optimization with OPtimism, arXiv 2404.12648): average reward, planned for rarely.

Policy, values and gain are frozen between exchanges, which cost up to the span of the values each. Departures from the
paper are those of the optimistic actor-critic, and that the greedy policy of the plan is approached: the policy follows
the plan for `actor.steps` steps after an exchange, under a pull to the reference, and then stands still. What is its
own is in its critic (`rlhf/training/critics/average_reward.py`); the actors are shared.
"""

from rlhf.config.loop import AverageRewardConfig
from rlhf.trainers.logit_matching import follow_critic
from rlhf.trainers.optimistic_actor_critic import OptimisticActorCritic


def follow_plan(config: AverageRewardConfig, samples_per_prompt: int) -> OptimisticActorCritic:
    """The actor of `AverageRewardConfig`: advantages r - c J + V(next state) - V(state), or values of tokens."""
    return follow_critic(config, samples_per_prompt)
