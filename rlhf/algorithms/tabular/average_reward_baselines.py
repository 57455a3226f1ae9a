"""What LOOP is compared with: planning without optimism, and differential Q-learning."""

from bisect import bisect
from collections.abc import Sequence

import numpy as np

from rlhf.algorithms.tabular.average_reward_planning import certainty_equivalent_plan
from rlhf.algorithms.tabular.frozen_plans import follow_frozen_plans, uniform_numbers
from rlhf.algorithms.tabular.mdp import TabularMDP, cumulative_rows
from rlhf.algorithms.tabular.regret import LearningRecord, check_marks
from rlhf.algorithms.tabular.relative_value_iteration import solve_average_reward


def run_greedy(
    mdp: TabularMDP, *, span: float, steps: int, seed: int, marks: Sequence[int] | None = None
) -> LearningRecord:
    """Act on the empirical model as if it were true, planning anew before steps 0, 1, 2, 4, 8, ...

    An ablation that must fail: it never tries what looks bad. Raises ValueError for a `span` not above 0.
    """
    doublings = [0, *(1 << power for power in range(max(0, steps - 1).bit_length()))]
    return follow_frozen_plans(
        mdp,
        lambda model, start_S: certainty_equivalent_plan(model, span=span, start_S=start_S),
        steps=steps, seed=seed, replan_before=doublings, marks=marks,
    )  # fmt: skip


def run_differential_q_learning(
    mdp: TabularMDP,
    *,
    steps: int,
    seed: int,
    exploration: float = 0.1,
    lr: float = 0.1,
    gain_ratio: float = 0.01,
    marks: Sequence[int] | None = None,
) -> LearningRecord:
    """Differential Q-learning with an epsilon-greedy behaviour (Wan, Naik and Sutton, arXiv 2006.16318).

    delta = r - J + max_a Q(s', a) - Q(s, a);  Q(s, a) += lr delta;  J += gain_ratio lr delta. Its policy is never
    frozen, so the record has no switches. Raises ValueError for settings out of range.
    """
    if not (0 <= exploration <= 1 and lr > 0 and gain_ratio > 0):
        raise ValueError(
            f"exploration {exploration}, lr {lr}, gain_ratio {gain_ratio}: exploration must be in [0, 1] and the rates "
            "above 0"
        )
    marks = check_marks(marks, steps)
    cost, rows = solve_average_reward(mdp).gap_SA.tolist(), cumulative_rows(mdp.transition_SAS)
    reward, actions = mdp.reward_SA.tolist(), mdp.actions
    q = np.zeros((mdp.states, actions)).tolist()
    uniforms = uniform_numbers(np.random.default_rng(seed))
    gain, state, regret = 0.0, 0, 0.0
    at_marks: list[float] = []
    next_mark = 0
    for step in range(1, steps + 1):
        row = q[state]
        best = max(row)
        if next(uniforms) < exploration or row.count(best) == actions:
            action = int(next(uniforms) * actions)
        else:
            action = row.index(best)
        next_state = bisect(rows[state * actions + action], next(uniforms))
        delta = reward[state][action] - gain + max(q[next_state]) - row[action]
        row[action] += lr * delta
        gain += gain_ratio * lr * delta
        regret += cost[state][action]
        state = next_state
        if step == marks[next_mark]:
            at_marks.append(regret)
            next_mark += 1
    return LearningRecord(marks, tuple(at_marks), ())


