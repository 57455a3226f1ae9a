"""The value of a state as a number: a linear head on hidden states, bounded where the range of returns is known."""

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """hidden states (N, D) to values (N,) in float32.

    `bounds`: values are low + (high - low) sigmoid(w h + b), and so never leave the range of returns: unbounded heads
    are reported as a main instability of critics (BPCO, arXiv 2608.23566). None: w h + b. The head begins at the middle
    of its bounds, or at 0, for every state.
    """

    def __init__(self, hidden: int, bounds: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.bounds = bounds
        self.linear = nn.Linear(hidden, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        score_N = self.linear(hidden_ND.float())[:, 0]
        if self.bounds is None:
            return score_N
        low, high = self.bounds
        return low + (high - low) * torch.sigmoid(score_N)
