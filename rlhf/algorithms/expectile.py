"""What an ensemble of state values learns where actions cannot be enumerated, and the copy that its targets are of."""

import torch
from torch import Tensor


def expectile_loss(
    value_AK: Tensor, target_AK: Tensor, learns_AK: Tensor, expectile: float
) -> tuple[Tensor, Tensor]:
    """Sum of |expectile - 1{target < V}| (target - V)^2 over the actions and members that learn, and their number.

    At one half the mean is learned, towards 1 the best of the targets: an in-sample stand-in for the maximum over
    actions, which cannot be enumerated where an action is a stretch of text (implicit Q-learning, arXiv 2110.06169).
    `learns_AK`: bootstrap masks. Targets carry no gradient.
    """
    error_AK = target_AK.detach() - value_AK
    weight_AK = torch.where(error_AK < 0, 1 - expectile, expectile)
    return (learns_AK * weight_AK * error_AK.square()).sum(), learns_AK.sum()


@torch.no_grad()
def follow(target: torch.nn.Module, source: torch.nn.Module, rate: float) -> None:
    """Move the target's parameters by `rate` towards the source's (Polyak averaging)."""
    for kept, new in zip(target.parameters(), source.parameters(), strict=True):
        kept.lerp_(new, rate)
