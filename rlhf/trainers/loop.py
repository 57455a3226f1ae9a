"""LOOP (Local-fitted Optimization with OPtimism, arXiv 2404.12648): average reward, planned for rarely.

Policy, values and gain are frozen between exchanges, which cost up to the span of the values each. Departures from the
paper are those of the optimistic actor-critic (actions are chunks of text, information gain decides when to exchange),
and that the greedy policy of the plan is approached: the policy follows the plan's advantages for `policy_steps` steps
after an exchange, under a pull to the reference, and then stands still.
"""

from rlhf.config.loop import AverageRewardConfig
from rlhf.trainers.optimistic_actor_critic import OptimisticActorCritic
from rlhf.training.optimistic_critic import OptimisticCritic


class LOOP(OptimisticActorCritic):
    """The algorithm of `AverageRewardConfig`: advantages r - c J + V(next state) - V(state) of the planned member."""

    config: AverageRewardConfig

    def _policy_learns(self, critic: OptimisticCritic) -> bool:
        return critic.epoch > 0 and critic.controller.since_switch < self.config.policy_steps
