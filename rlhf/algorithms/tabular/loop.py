"""LOOP: optimistic planning with rare switching for average reward (He, Zhong and Yang, arXiv 2404.12648, algorithm 1).

    at the start, and whenever the excess loss of the frozen hypothesis reaches its threshold: plan anew
    act greedily in it

so that the number of switches K, each of which costs up to sp(V*) of regret, grows with log T. The value-based version
with tabular hypotheses; its confidence set and planner are those of `average_reward_planning`. No relation to the
leave-one-out PPO of the same name (arXiv 2502.01600).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.algorithms.tabular.average_reward_planning import optimistic_plan, switch_threshold
from rlhf.algorithms.tabular.frozen_plans import follow_frozen_plans
from rlhf.algorithms.tabular.mdp import TabularMDP
from rlhf.algorithms.tabular.regret import LearningRecord


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`span`: sp(V*), which the algorithm is told. `beta`: squared radius of a pair's confidence box over span^2.

    Optimism is to hold with beta 0.5; 0.05 is faster and may lose it. `multiplier` (recalled from the paper, not
    verified): a hypothesis is dropped at this multiple of the radius. Raises ValueError as `switch_threshold` does.
    """

    span: float
    beta: float = 0.5
    multiplier: float = 4.0

    def __post_init__(self) -> None:
        switch_threshold(span=self.span, beta=self.beta, multiplier=self.multiplier)


def run_loop(
    mdp: TabularMDP, settings: LoopSettings, *, steps: int, seed: int, marks: Sequence[int] | None = None
) -> LearningRecord:
    """Learn for `steps` steps from state 0. Rewards must lie in [0, 1]: raises ValueError where one does not."""
    if mdp.reward_SA.min() < 0 or mdp.reward_SA.max() > 1:
        raise ValueError("LOOP's optimism about pairs never visited needs rewards in [0, 1]: scale them")
    return follow_frozen_plans(
        mdp,
        lambda model, start_S: optimistic_plan(model, span=settings.span, beta=settings.beta, start_S=start_S),
        steps=steps,
        seed=seed,
        excess_threshold=switch_threshold(span=settings.span, beta=settings.beta, multiplier=settings.multiplier),
        marks=marks,
    )
