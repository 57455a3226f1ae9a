"""The denominator of a loss from which tokens were rejected: token weights from the mask and the sequences' lengths."""

from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.aggregation import Denominator, StepTotals, token_weight

Counted = Literal["accepted", "original"]


def accepted_token_weights(
    accepted_N: Tensor,
    sequence_N: Tensor,
    length_S: Tensor,
    totals: StepTotals,
    *,
    denominator: Denominator,
    counted: Counted,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight of each token in the step's loss, 0 for a rejected one.

    counted: whether `denominator` (aggregation.py) divides by the accepted tokens or by all tokens of the completions;
    "constant" divides by neither. With "accepted" the survivors of a sequence weigh more than before; a sequence
    without any still counts as a sequence, and adds 0 (GRPO in the released CAPO code).

    `length_S`: completion tokens of this micro-batch's sequences. `totals`: sequences and tokens of the whole optimizer
    step over all ranks; with counted="accepted" its tokens are the accepted ones.

    Raises ValueError for an unknown `counted`.
    """
    if counted == "accepted":
        count_S = torch.zeros_like(length_S).index_add(0, sequence_N, accepted_N.to(length_S.dtype))
    elif counted == "original":
        count_S = length_S
    else:
        raise ValueError(f"unknown counted {counted!r}: choose accepted or original")
    weights = [token_weight(length, totals, denominator, max_tokens) for length in count_S.tolist()]
    weight_S = torch.tensor(weights, dtype=dtype, device=accepted_N.device)
    return weight_S[sequence_N] * accepted_N.to(dtype)
