"""Values of states by an ensemble that disagrees where it has seen little: small heads on fixed hidden states."""

import math

import torch
from torch import Tensor, nn

from rlhf.data.seeds import derive_seed


class ValueEnsemble(nn.Module):
    """hidden states (N, D) to values (N, K) in float32.

    V_k(h) = low + (high - low) sigmoid(f_k(h)) + prior_scale (high - low) p_k(h), where f_k and p_k are networks of one
    hidden layer on the normalised state. p_k is random and never trained (randomised priors, arXiv 1806.03335): f_k
    learns to undo it where there are targets, so that members agree there and only there. Without priors (and
    bootstrapped targets) members collapse onto each other, and their spread says nothing.

    Values can leave the bounds by the prior: clip them where they are used. Weights are a function of `seed`; the
    state dict holds the priors.
    """

    def __init__(
        self, hidden: int, *, members: int = 10, width: int = 64, bounds: tuple[float, float] = (0.0, 1.0),
        prior_scale: float = 0.3, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bounds, self.prior_scale = bounds, prior_scale
        generator = torch.Generator().manual_seed(derive_seed(seed, "value ensemble") % 2**63)

        def draw(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        self.first_KDW = nn.Parameter(draw(members, hidden, width, scale=1 / math.sqrt(hidden)))
        self.offset_KW = nn.Parameter(draw(members, width, scale=0.1))
        # the learned part begins near the middle of the bounds
        self.last_KW = nn.Parameter(draw(members, width, scale=0.1 / math.sqrt(width)))
        self.last_K = nn.Parameter(torch.zeros(members))
        self.register_buffer("prior_first_KDW", draw(members, hidden, width, scale=1 / math.sqrt(hidden)))
        self.register_buffer("prior_offset_KW", draw(members, width, scale=0.1))
        self.register_buffer("prior_last_KW", draw(members, width, scale=1 / math.sqrt(width)))

    @property
    def members(self) -> int:
        return len(self.last_K)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        state_ND = nn.functional.layer_norm(hidden_ND.float(), hidden_ND.shape[-1:])
        score_NK = _two_layers(state_ND, self.first_KDW, self.offset_KW, self.last_KW) + self.last_K
        low, high = self.bounds
        value_NK = low + (high - low) * torch.sigmoid(score_NK)
        if self.prior_scale:
            prior_NK = _two_layers(state_ND, self.prior_first_KDW, self.prior_offset_KW, self.prior_last_KW)
            value_NK = value_NK + self.prior_scale * (high - low) * prior_NK
        return value_NK


def _two_layers(state_ND: Tensor, first_KDW: Tensor, offset_KW: Tensor, last_KW: Tensor) -> Tensor:
    layer_NKW = torch.relu(torch.einsum("nd,kdw->nkw", state_ND, first_KDW) + offset_KW)
    return torch.einsum("nkw,kw->nk", layer_NKW, last_KW)
