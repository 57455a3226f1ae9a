"""What are the values of an episodic process: those of the best policy, of given ones, and NORA's optimistic critic?

They go backward from the last step, after which values are 0: `value_HS` has H + 1 rows, the last of zeros.
"""

from typing import NamedTuple

import numpy as np

from rlhf.algorithms.tabular.mdp import Array, EpisodicMDP
from rlhf.algorithms.tabular.pair_statistics import EmpiricalModel


class EpisodicValues(NamedTuple):
    """`value_HS` (H + 1, S) and `q_HSA`."""

    value_HS: Array
    q_HSA: Array


def optimal_values(mdp: EpisodicMDP) -> EpisodicValues:
    """V* and Q* by backward induction."""
    horizon, states, actions = mdp.shape
    value_HS, q_HSA = np.zeros((horizon + 1, states)), np.zeros((horizon, states, actions))
    for h in reversed(range(horizon)):
        q_HSA[h] = mdp.reward_HSA[h] + mdp.transition_HSAS[h] @ value_HS[h + 1]
        value_HS[h] = q_HSA[h].max(1)
    return EpisodicValues(value_HS, q_HSA)


def start_values(mdp: EpisodicMDP, policy_BHSA: Array) -> Array:
    """V^pi of state 0 at the first step for each of B policies, (B,)."""
    horizon, states, actions = mdp.shape
    value_BS = np.zeros((len(policy_BHSA), states))
    for h in reversed(range(horizon)):
        future_BK = value_BS @ mdp.transition_HSAS[h].reshape(states * actions, states).T
        q_BSA = mdp.reward_HSA[h] + future_BK.reshape(-1, states, actions)
        value_BS = (policy_BHSA[:, h] * q_BSA).sum(-1)
    return value_BS[:, 0]


def critic(
    model: EmpiricalModel, *, beta: float, value_max: float, is_optimistic: bool, policy_HSA: Array | None = None
) -> EpisodicValues:
    """The critic on all data so far, f_h = clip(r + P V_{h+1} + value_max sqrt(beta / N), 0, value_max).

    Where it is optimistic this is the largest element of the confidence set, relaxed to a box of value_max^2 beta a
    pair, and pairs never visited are worth `value_max`; else there is no bonus and such pairs are worth 0. V = max_a f,
    so that it targets Q* whatever the policy; with `policy_HSA` V = sum_a pi f, the target Q^pi.
    """
    horizon, states, actions = model.reward_SA.shape
    bonus_HSA = np.zeros_like(model.reward_SA)
    if is_optimistic:
        bonus_HSA = np.where(model.visits_SA == 0, np.inf, value_max * np.sqrt(beta / np.maximum(1, model.visits_SA)))
    upper_HSA = model.reward_SA + bonus_HSA
    value_HS, f_HSA = np.zeros((horizon + 1, states)), np.zeros((horizon, states, actions))
    for h in reversed(range(horizon)):
        f_HSA[h] = np.clip(upper_HSA[h] + model.transition_SAS[h] @ value_HS[h + 1], 0, value_max)
        value_HS[h] = f_HSA[h].max(1) if policy_HSA is None else (policy_HSA[h] * f_HSA[h]).sum(1)
    return EpisodicValues(value_HS, f_HSA)
