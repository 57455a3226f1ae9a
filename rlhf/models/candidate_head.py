"""Log-probs of a few candidate tokens at each position, for losses that compare whole distributions.

Tokens are visited in blocks, as in the streamed head, and computed again in the backward pass: a tokens x vocabulary
tensor never exists. N positions, n of one block, m candidates, D hidden size, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from rlhf.models.head import HeadSettings
from rlhf.models.precision import accumulation_dtype

BLOCK_ROWS = 256


class CandidateStatistics(NamedTuple):
    """`logp_Nm`: differentiable. `entropy_N`: of the whole distribution, in nats, without gradient."""

    logp_Nm: torch.Tensor
    entropy_N: torch.Tensor


class Candidates(NamedTuple):
    """The likeliest tokens of each position, the taken one in place 0. `id_Nm`; `logp_Nm`, -inf where a likely token
    is the taken one, which has its place already."""

    id_Nm: torch.Tensor
    logp_Nm: torch.Tensor


def candidate_statistics(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    id_Nm: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    settings: HeadSettings | None = None,
) -> CandidateStatistics:
    """Log-probs of `id_Nm`, differentiable in hidden states, weight and bias.

    Raises ValueError when shapes do not fit together.
    """
    if id_Nm.dim() != 2 or len(id_Nm) != len(hidden_ND):
        raise ValueError(f"{len(hidden_ND)} hidden states but candidates of shape {tuple(id_Nm.shape)}: give (N, m)")
    settings = settings or HeadSettings()

    def visit(hidden_nD: torch.Tensor, id_nm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp_nV = _log_softmax(hidden_nD, weight_VD, bias_V, settings)
        with torch.no_grad():
            entropy_n = -(logp_nV.exp() * logp_nV).sum(-1)
        return logp_nV.gather(1, id_nm), entropy_n

    blocks = list(zip(hidden_ND.split(BLOCK_ROWS), id_Nm.split(BLOCK_ROWS), strict=True))
    parts = [checkpoint(visit, *block, use_reentrant=False) if torch.is_grad_enabled() else visit(*block)
             for block in blocks]  # fmt: skip
    return CandidateStatistics(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))


@torch.no_grad()
def likely_candidates(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    taken_N: torch.Tensor,
    count: int,
    *,
    bias_V: torch.Tensor | None = None,
    settings: HeadSettings | None = None,
) -> Candidates:
    """The `count` likeliest tokens of each position and the taken one, `count` + 1 places.

    Raises ValueError for a count that is not between 1 and the vocabulary.
    """
    if not 1 <= count <= len(weight_VD):
        raise ValueError(f"{count} candidates of a vocabulary of {len(weight_VD)}: choose from 1 to its size")
    settings, ids, logps = settings or HeadSettings(), [], []
    for hidden_nD, taken_n in zip(hidden_ND.split(BLOCK_ROWS), taken_N.split(BLOCK_ROWS), strict=True):
        logp_nV = _log_softmax(hidden_nD, weight_VD, bias_V, settings)
        logp_nm, id_nm = logp_nV.topk(count, dim=-1)
        is_taken_nm = id_nm == taken_n[:, None]
        ids.append(torch.cat([taken_n[:, None], id_nm], dim=1))
        logps.append(torch.cat([logp_nV.gather(1, taken_n[:, None]), logp_nm.masked_fill(is_taken_nm, -torch.inf)], 1))
    return Candidates(torch.cat(ids), torch.cat(logps))


def _log_softmax(
    hidden_nD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, settings: HeadSettings
) -> torch.Tensor:
    logits_nV = torch.nn.functional.linear(hidden_nD.to(weight_VD.dtype), weight_VD, bias_V)
    logits_nV = logits_nV.to(accumulation_dtype(weight_VD.dtype)) * settings.logit_scale
    if settings.logit_softcap is not None:
        logits_nV = settings.logit_softcap * (logits_nV / settings.logit_softcap).tanh()
    return (logits_nV / settings.temperature).log_softmax(-1)
