"""A causal transformer of one block, small enough to learn a toy task in seconds."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TinyTransformer(nn.Module):
    """Maps token ids (B, L) to the states before token 0, 1, ..., L: (B, L + 1, width)."""

    def __init__(self, vocabulary: int, longest: int, width: int = 24) -> None:
        super().__init__()
        self.start, self.width = vocabulary, width
        self.embedding = nn.Embedding(vocabulary + 1, width)
        self.position = nn.Parameter(torch.randn(longest + 1, width) / 2)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, token_ids_BL: Tensor) -> Tensor:
        ids_BL = F.pad(token_ids_BL, (1, 0), value=self.start)
        hidden_BLd = self.embedding(ids_BL) + self.position[: ids_BL.shape[1]]
        query, key, value = self.attention_in(self.norms[0](hidden_BLd)).chunk(3, -1)
        score_BLL = query @ key.transpose(1, 2) / math.sqrt(self.width)
        future_LL = torch.ones(score_BLL.shape[1:], dtype=torch.bool).triu(1)
        mixed_BLd = score_BLL.masked_fill(future_LL, -torch.inf).softmax(-1) @ value
        hidden_BLd = hidden_BLd + self.attention_out(mixed_BLd)
        return self.norms[2](hidden_BLd + self.mlp(self.norms[1](hidden_BLd)))


class TinyPolicy(nn.Module):
    """Log-probs of the next token, (B, L + 1, vocabulary); uniform at first."""

    def __init__(self, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.trunk = TinyTransformer(vocabulary, longest)
        self.head = nn.Linear(self.trunk.width, vocabulary)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, token_ids_BL: Tensor) -> Tensor:
        return self.head(self.trunk(token_ids_BL)).log_softmax(-1)
