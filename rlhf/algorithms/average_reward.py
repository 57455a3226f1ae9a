"""Reward per unit of work instead of per episode: the gain J, how it is estimated, and the loss that goes with it.

A stream of prompts is one long task. An action costs c units (an episode, a turn, a token), and the optimal values
solve Q(s, a) = r(s, a) - c(a) J + E V(s'), where behind a completion comes the next prompt (average-reward LOOP, arXiv
2404.12648; the semi-Markov form for prompt streams is derived, not from the paper). For independent prompts V is
anchored by E_x V(x) = 0 over prompts x, so that the value behind a completion is 0, and J is the root of
E_x V_J(x) = 0, which falls with slope -E[c].

Suffixes: A actions, K members, X prompts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.mdp_views import ActionView

GainUnit = Literal["episode", "turn", "token"]
ALARM_SHARE, ALARM_SWITCHES = 0.2, 3


@dataclass(frozen=True, slots=True)
class ActionCosts:
    """Units of an action: `per_episode` at a completion's last action, and `per_unit` for each of its tokens or turns.

    (1, 0) counts episodes: the ordinary episodic optimum, with J its mean reward. (0, 1) counts tokens, which learns a
    price of length and can shrink answers to nothing; an overhead `per_episode` bounds that.

    Raises ValueError for negative costs or none at all.
    """

    per_episode: float = 1.0
    per_unit: float = 0.0

    def __post_init__(self) -> None:
        if min(self.per_episode, self.per_unit) < 0 or not self.per_episode + self.per_unit > 0:
            raise ValueError(
                f"costs must be 0 or more and one of them above 0, got {self.per_episode} an episode and "
                f"{self.per_unit} a unit: reward per no work has no meaning"
            )

    def __call__(self, actions: ActionView, unit: GainUnit) -> Tensor:
        """(A,) float32. `unit` token counts an action's tokens, turn counts 1 an action, episode nothing."""
        units_A = {"token": actions.tokens_A, "turn": torch.ones_like(actions.state_A)}.get(unit, 0 * actions.state_A)
        return self.per_episode * actions.is_last_A.float() + self.per_unit * units_A.float()


def span_bound(unit: GainUnit, gain: float, longest: int) -> float:
    """The largest span of the optimal values with an outcome in [0, 1]: 1 for episodes, else 1 + J x the most units of
    an episode."""
    return 1.0 if unit == "episode" else 1.0 + gain * longest


def clip_span(value: Tensor, span: float, anchor: float = 0.0) -> Tensor:
    """Values within `span` of the anchor.

    The anchor is a mean of values, so the least is at or below it and the greatest at or above, each at most `span`
    away. Half the span to either side would cut correct values: episodes with outcomes 0 and 1 have V from -J to 1 - J.

    Raises ValueError for a span that is not above 0.
    """
    if not span > 0:
        raise ValueError(f"the span of the values must be above 0, got {span}")
    return value.clamp(anchor - span, anchor + span)


def differential_errors(
    q_AK: Tensor, end_value_SK: Tensor, reward_A: Tensor, cost_A: Tensor, gain_K: Tensor, actions: ActionView
) -> Tensor:
    """delta = r - c J_k + V_k(s') - Q_k(s, a), (A, K); gradient through Q alone.

    Each member has a gain of its own. `end_value_SK`: values of the slow copy, from `value_targets.end_values`: 0
    behind the end of an episode where prompts are independent (anchored). In a session the state behind a completion is
    the next prompt's.
    """
    target_AK = reward_A.unsqueeze(1) - cost_A.unsqueeze(1) * gain_K + end_value_SK[actions.next_state_A]
    return target_AK.detach() - q_AK


def anchored_gain(gain_K: Tensor, value_XK: Tensor, rate: float) -> Tensor:
    """J_k + rate mean_x V_k(x), without bonus (relative value iteration). V is anchored by this alone: never shift the
    network. The rate must be at most a tenth of the Polyak rate: J that moves faster than V runs away."""
    return gain_K + rate * value_XK.detach().mean(0)


def session_gain(gain_K: Tensor, error_AK: Tensor, rate: float) -> Tensor:
    """J_k + rate mean delta_k, where states go on over prompts and nothing is anchored."""
    return gain_K + rate * error_AK.detach().mean(0)


def newton_gain(gain_K: Tensor, value_XK: Tensor, cost_per_episode: float) -> Tensor:
    """J_k + mean_x V_k(x) / E[c]: Dinkelbach's step for the root of E_x V_J(x), whose slope is -E[c]. Once a switch.

    Raises ValueError for a mean cost that is not above 0.
    """
    if not cost_per_episode > 0:
        raise ValueError(f"the mean cost of an episode must be above 0, got {cost_per_episode}")
    return gain_K + value_XK.detach().mean(0) / cost_per_episode


@dataclass(slots=True)
class RenewalGain:
    """The gain of the policy that writes: mean reward over mean cost of its own episodes, by renewal-reward.

    Exponential means with `rate`, first batch as it is. Start anew at a switch: it is the gain of one policy.

    Raises ValueError for a rate outside (0, 1].
    """

    rate: float = 0.05
    reward: float = math.nan
    cost: float = math.nan

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"the rate of the renewal estimate must be in (0, 1], got {self.rate}")

    @property
    def gain(self) -> float:
        """NaN before the first episode."""
        return self.reward / self.cost

    def update(self, reward: float, cost: float) -> None:
        """Sums over a batch of episodes, of any size. Raises ValueError for a cost that is not above 0."""
        if not cost > 0:
            raise ValueError(f"the cost of a batch of episodes must be above 0, got {cost}")
        if math.isnan(self.reward):
            self.reward, self.cost = reward, cost
        else:
            self.reward += self.rate * (reward - self.reward)
            self.cost += self.rate * (cost - self.cost)

    def restart(self) -> None:
        self.reward = self.cost = math.nan

    def state_dict(self) -> dict[str, float]:
        return {"reward": self.reward, "cost": self.cost}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.reward, self.cost = state["reward"], state["cost"]


def gain_alarm(estimate: float, renewal: float, value_range: float, switches: int) -> bool:
    """Whether the learned gain and the renewal estimate differ by more than a fifth of the range, after three switches.
    A gain that is not finite is an alarm at any time; before the first episode there is none."""
    if not math.isfinite(estimate):
        return True
    return switches >= ALARM_SWITCHES and abs(estimate - renewal) > ALARM_SHARE * value_range


def most_optimistic_member(gain_K: Tensor, in_set_K: Tensor) -> int:
    """The member of the confidence set with the highest gain: LOOP's literal planning step.

    Raises ValueError for an empty set.
    """
    if not in_set_K.any():
        raise ValueError("no member is in the confidence set: the one with the least loss always is")
    return int(gain_K.masked_fill(~in_set_K, -torch.inf).argmax())
