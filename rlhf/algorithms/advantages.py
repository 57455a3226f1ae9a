"""How much better than its baseline a completion was."""

import torch
from torch import Tensor


def group_normalised(reward_G: Tensor, epsilon: float) -> Tensor:
    """(r - mean) / (std + epsilon) within the samples of one prompt; std is the unbiased one (GRPO, arXiv
    2402.03300, section 4.1.2).

    A group of one sample has no spread: its advantage is 0.
    """
    centred_G = reward_G - reward_G.mean()
    if len(reward_G) < 2:
        return torch.zeros_like(reward_G)
    return centred_G / (reward_G.std() + epsilon)


def group_mean(reward_G: Tensor) -> Tensor:
    """r - mean within the samples of one prompt (Dr.GRPO, arXiv 2503.20783, section 3.2)."""
    return reward_G - reward_G.mean()


def leave_one_out(reward_G: Tensor) -> Tensor:
    """r minus the mean of the prompt's other samples (RLOO, arXiv 2402.14740, eq. 5); 0 for a group of one."""
    count = len(reward_G)
    if count < 2:
        return torch.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) * (count / (count - 1))


def batch_mean(reward_S: Tensor, mean: Tensor | float | None = None) -> Tensor:
    """r minus the mean over the whole batch (REINFORCE with a baseline, Williams 1992); `mean` is given where the
    batch spans ranks."""
    return reward_S - (reward_S.mean() if mean is None else mean)


def has_signal(reward_G: Tensor) -> bool:
    """Whether the rewards of a group differ at all; equal rewards give group-relative advantages of exactly 0."""
    return bool((reward_G != reward_G[0]).any())
