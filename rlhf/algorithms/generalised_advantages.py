"""Advantages of tokens from a critic's values, and what the critic learns from (GAE, arXiv 1506.02438)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def generalised_advantages(
    reward_T: Sequence[float], value_T: Sequence[float], *, trace_decay: float, discount: float = 1.0
) -> tuple[float, ...]:
    """A_t = sum_k (discount trace_decay)^k delta_{t+k} with delta_t = r_t + discount V_{t+1} - V_t (eq. 16).

    `reward_T[t]` is paid for token t, `value_T[t]` is of the state before it. The episode ends with the last token:
    a completion that was cut off is not continued either, so nothing is added for what might have come.
    `trace_decay` 0 is one-step TD, 1 is the return minus the value. Raises ValueError where the lengths differ.
    """
    if len(reward_T) != len(value_T):
        raise ValueError(f"{len(reward_T)} rewards but {len(value_T)} values: one of each for every token")
    advantage, following, advantages = 0.0, 0.0, []
    for reward, value in zip(reversed(reward_T), reversed(value_T), strict=True):
        advantage = reward + discount * following - value + discount * trace_decay * advantage
        following = value
        advantages.append(advantage)
    return tuple(reversed(advantages))


def value_targets(
    reward_T: Sequence[float], value_T: Sequence[float], *, trace_decay: float, discount: float = 1.0
) -> tuple[float, ...]:
    """TD(lambda) returns: the advantages of that decay plus the values. 1 gives the discounted sums of rewards."""
    advantage_T = generalised_advantages(reward_T, value_T, trace_decay=trace_decay, discount=discount)
    return tuple(advantage + value for advantage, value in zip(advantage_T, value_T, strict=True))


def length_adaptive_decay(tokens: int, alpha: float) -> float:
    """lambda = 1 - 1 / (alpha tokens), at least 0: the decay reaches back over a share of the completion, however long
    it is (VAPO, arXiv 2504.05118, section 4.2)."""
    return max(0.0, 1 - 1 / (alpha * tokens)) if tokens else 0.0


def value_loss(value_N: Tensor, target_N: Tensor, old_value_N: Tensor, clip: float | None) -> Tensor:
    """(V - target)^2 / 2 of each token. With `clip` the larger of that and the loss of V kept within `clip` of its old
    value: PPO's published code has it (arXiv 2005.12729), and it is off by default in ours."""
    loss_N = (value_N - target_N).square()
    if clip is not None:
        kept_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
        loss_N = torch.maximum(loss_N, (kept_N - target_N).square())
    return loss_N / 2
