"""Which finite decision processes are there to learn: two average-reward ones and a combination lock with a lure.

Suffixes in this folder: S states, A actions, H steps of an episode, P state-action pairs in row-major order (S A, or
H S A), M marks at which a learner's regret is read. Rewards are a fixed number of each pair, in [0, 1].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROW_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class TabularMDP:
    """A continuing decision process: `transition_SAS` (from, action, to) and `reward_SA`. Arrays are copied, read-only.

    Raises ValueError where shapes disagree, a number is not finite, a probability negative or a row's sum not 1.
    """

    transition_SAS: Array
    reward_SA: Array

    def __post_init__(self) -> None:
        transition, reward = _checked(self.transition_SAS, self.reward_SA, axes="SA")
        object.__setattr__(self, "transition_SAS", transition)
        object.__setattr__(self, "reward_SA", reward)

    @property
    def states(self) -> int:
        return self.reward_SA.shape[0]

    @property
    def actions(self) -> int:
        return self.reward_SA.shape[1]


@dataclass(frozen=True, slots=True)
class EpisodicMDP:
    """Episodes of H steps from state 0: `transition_HSAS` and `reward_HSA`. Arrays are copied, read-only.

    Raises ValueError as TabularMDP does.
    """

    transition_HSAS: Array
    reward_HSA: Array

    def __post_init__(self) -> None:
        transition, reward = _checked(self.transition_HSAS, self.reward_HSA, axes="HSA")
        object.__setattr__(self, "transition_HSAS", transition)
        object.__setattr__(self, "reward_HSA", reward)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, S, A)."""
        horizon, states, actions = self.reward_HSA.shape
        return horizon, states, actions


def two_state(leave: float = 0.1, fall: float = 0.3, comfort: float = 0.1) -> TabularMDP:
    """A comfortable state to leave for a better one, where the myopic action never leaves.

    Action 0 stays: for `comfort` in state 0; for 1 in state 1, from which it falls back with probability `fall`.
    Action 1 goes, for nothing: from state 0 with success `leave`, from state 1 always. J* = leave / (leave + fall) and
    V*(1) - V*(0) = 1 / (leave + fall) where that beats `comfort`.
    """
    transition_SAS = [[[1, 0], [1 - leave, leave]], [[fall, 1 - fall], [1, 0]]]
    return TabularMDP(np.array(transition_SAS), np.array([[comfort, 0], [1, 0]]))


def river_swim(states: int = 6) -> TabularMDP:
    """Swimming right (action 1) against a current for 1, or drifting left (action 0) for 0.005.

    The chain of Strehl and Littman ("An analysis of model-based interval estimation for MDPs", 2008) with rewards
    scaled to [0, 1]. Raises ValueError below two states.
    """
    if states < 2:
        raise ValueError(f"river_swim has {states} states: it needs at least 2, a left and a right end")
    transition_SAS, reward_SA = np.zeros((states, 2, states)), np.zeros((states, 2))
    last = states - 1
    for state in range(states):
        transition_SAS[state, 0, max(state - 1, 0)] = 1
        if 0 < state < last:
            transition_SAS[state, 1, state - 1 : state + 2] = 0.05, 0.6, 0.35
    transition_SAS[0, 1, :2] = 0.4, 0.6
    transition_SAS[last, 1, last - 1 :] = 0.4, 0.6
    reward_SA[0, 0], reward_SA[last, 1] = 0.005, 1
    return TabularMDP(transition_SAS, reward_SA)


def lock_code(horizon: int = 6, actions: int = 3, seed: int = 7) -> NDArray[np.int64]:
    """The action that opens each step of `combination_lock`, (H,)."""
    return np.random.default_rng(seed).integers(actions, size=horizon)


def combination_lock(
    horizon: int = 6, actions: int = 3, slip: float = 0.05, lure: float = 0.1, seed: int = 7
) -> EpisodicMDP:
    """A lock that opens by one sequence of actions, and pays `lure` at once for giving up at the first step.

    State 0 is good and 1 dead. The right action, `lock_code`, stays good but for `slip`; every other is fatal. The
    right action at the last step pays 1, a wrong one at the first step `lure`. Raises ValueError where nothing is to
    be found: fewer than two actions, or no step.
    """
    if actions < 2 or horizon < 1:
        raise ValueError(f"a lock of {actions} actions and {horizon} steps: it needs 2 actions and 1 step at least")
    code_H, steps_H = lock_code(horizon, actions, seed), np.arange(horizon)
    transition_HSAS, reward_HSA = np.zeros((horizon, 2, actions, 2)), np.zeros((horizon, 2, actions))
    transition_HSAS[..., 1] = 1
    transition_HSAS[steps_H, 0, code_H] = 1 - slip, slip
    reward_HSA[0, 0, np.arange(actions) != code_H[0]] = lure
    reward_HSA[-1, 0, code_H[-1]] = 1
    return EpisodicMDP(transition_HSAS, reward_HSA)


def half_right_policy(horizon: int = 6, actions: int = 3, seed: int = 7) -> Array:
    """The right action of `combination_lock` half of the time, else any; (H, 2, A). It covers the best policy."""
    policy_HSA = np.full((horizon, 2, actions), 0.5 / actions)
    policy_HSA[np.arange(horizon), :, lock_code(horizon, actions, seed)] += 0.5
    return policy_HSA


def cumulative_rows(probability: Array) -> list[list[float]]:
    """Cumulative sums along the last axis, one list a row, for drawing with `bisect.bisect(row, uniform)`.

    Rows end in exactly 1, so that no uniform number in [0, 1) falls beyond the last outcome of positive probability.
    """
    rows = probability.reshape(-1, probability.shape[-1]).cumsum(1)
    return (rows / rows[:, -1:]).tolist()


def _checked(transition: Array, reward: Array, axes: str) -> tuple[Array, Array]:
    transition, reward = np.array(transition, dtype=np.float64), np.array(reward, dtype=np.float64)
    wanted = (*reward.shape, reward.shape[-2]) if reward.ndim == len(axes) else None
    if transition.shape != wanted or 0 in transition.shape:
        raise ValueError(
            f"transition has shape {transition.shape} and reward {reward.shape}: they must be ({', '.join(axes)}, S) "
            f"and ({', '.join(axes)}), none empty"
        )
    for name, values in (("transition", transition), ("reward", reward)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} at {_first(~np.isfinite(values))} is not finite")
    if (transition < 0).any():
        raise ValueError(f"transition at {_first(transition < 0)} is negative: it must be a probability")
    sums = transition.sum(-1)
    if (off := np.abs(sums - 1) > ROW_TOLERANCE).any():
        place = _first(off)
        raise ValueError(f"transition probabilities of pair {place} sum to {sums[place]}: they must sum to 1")
    transition.flags.writeable = reward.flags.writeable = False
    return transition, reward


def _first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.argwhere(where)[0])
