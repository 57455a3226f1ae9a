"""How does a learner act on a plan that stays frozen until data refute it, and what does that cost?"""

import math
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rlhf.algorithms.tabular.mdp import Array, TabularMDP, cumulative_rows
from rlhf.algorithms.tabular.pair_statistics import EmpiricalModel, PairStatistics
from rlhf.algorithms.tabular.regret import LearningRecord, Switch, check_marks
from rlhf.algorithms.tabular.relative_value_iteration import GainBias, solve_average_reward

Planner = Callable[[EmpiricalModel, Array | None], GainBias]
"""From the empirical model and the V of the plan before (None at first) to a plan."""

TIE = 1e-9
OPTIMISM_TOLERANCE = 1e-3
"""A plan's gain may fall this much short of J* before it counts as a violation: plans are solved to 1e-5."""


def follow_frozen_plans(
    mdp: TabularMDP,
    planner: Planner,
    *,
    steps: int,
    seed: int,
    excess_threshold: float = math.inf,
    replan_before: Iterable[int] = (0,),
    marks: Sequence[int] | None = None,
) -> LearningRecord:
    """Act greedily on the plan for `steps` steps from state 0, ties at random, planning anew where it is due.

    Due: before the steps in `replan_before` (increasing, 0 first), and after a visit that brings its pair's excess loss
    to `excess_threshold`; only the visited pair's can have grown. Raises ValueError for `marks` out of order.
    """
    marks = check_marks(marks, steps)
    truth = solve_average_reward(mdp)
    cost, reward = truth.gap_SA.ravel().tolist(), mdp.reward_SA.ravel().tolist()
    rows = cumulative_rows(mdp.transition_SAS)
    statistics = PairStatistics(mdp.states * mdp.actions, mdp.states)
    generator = np.random.default_rng(seed)
    uniforms, ties = uniform_numbers(generator), uniform_numbers(np.random.default_rng([seed, 1]))
    due, next_marks = iter(replan_before), iter(marks)
    next_due, next_mark = next(due, steps), next(next_marks)
    plan: GainBias | None = None
    is_refuted, state, regret = False, 0, 0.0
    at_marks: list[float] = []
    switches: list[Switch] = []
    for step in range(steps):
        if is_refuted or step == next_due:
            if step == next_due:
                next_due = next(due, steps)
            model = statistics.model(mdp.states, mdp.actions)
            plan = planner(model, None if plan is None else plan.value_S)
            statistics.freeze(plan.q_SA + plan.gain, np.tile(plan.value_S, (mdp.states * mdp.actions, 1)))
            greedy = greedy_pairs(plan.q_SA)
            switches.append(Switch(step, plan.gain, plan.gain >= truth.gain - OPTIMISM_TOLERANCE))
        best = greedy[state]
        pair = best[0] if len(best) == 1 else best[int(next(ties) * len(best))]
        next_state = bisect(rows[pair], next(uniforms))
        is_refuted = statistics.record(pair, reward[pair], next_state) >= excess_threshold
        regret += cost[pair]
        state = next_state
        if step + 1 == next_mark:
            at_marks.append(regret)
            next_mark = next(next_marks, steps + 1)
    return LearningRecord(marks, tuple(at_marks), tuple(switches))


def greedy_pairs(q_SA: Array) -> list[list[int]]:
    """For each state its pairs, numbered row by row, with the largest Q."""
    is_best_SA = q_SA >= q_SA.max(1, keepdims=True) - TIE
    actions = q_SA.shape[1]
    return [[state * actions + int(a) for a in np.flatnonzero(row)] for state, row in enumerate(is_best_SA)]


def uniform_numbers(generator: np.random.Generator, block: int = 4096) -> Iterator[float]:
    """Numbers in [0, 1) without end; drawn in blocks, since a call of the generator costs more than a step."""
    while True:
        yield from generator.random(block).tolist()
