"""Steps that are formed id by id: Adam row by row, and any step on each token's k most likely ids only.

The released CAPO code predicts a token's step on the k ids of the largest logits, with the probabilities renormalised
on them, and keeps Adam moments of the head's rows that it has met. Here the action is always one of the ids, and the
moments are dense.

Shapes: N tokens, D hidden size (one more with a bias), V vocabulary; n tokens and K ids of a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.moment_stream import MomentStream
from rlhf.algorithms.output_head import OutputHead, scores_, slices
from rlhf.algorithms.softmax_moments import SoftmaxMoments, block_moments
from rlhf.algorithms.step_models import StepModel


class Support(NamedTuple):
    """The ids of some tokens: `rows` are the tokens, `ids` (n, K) or slice(0, V) for all ids of each.

    `logits_nK` are -inf where an id stands twice, `slope_nK` is their derivative by the head's output or None for 1,
    `column_n` the action's column, `input_nD` as in `OutputHead.inputs`.
    """

    rows: slice
    ids: Tensor | slice
    input_nD: Tensor
    logits_nK: Tensor
    slope_nK: Tensor | None
    column_n: Tensor


def supports(
    head: OutputHead, hidden_ND: Tensor, actions_N: Tensor, top_k: int | None, chunks: tuple[int, int]
) -> Iterator[Support]:
    """All tokens in blocks with their ids: the action and the `top_k` of the largest logits, or every id where None.

    Raises ValueError for a top_k below 1.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}: use None for the whole vocabulary")
    elements = chunks[0] * chunks[1]
    if top_k is None or top_k >= head.vocabulary:
        for rows in slices(len(hidden_ND), max(1, elements // head.vocabulary)):
            input_nD = head.inputs(hidden_ND[rows])
            columns = slices(head.vocabulary, chunks[1])
            logits_nV = torch.cat([input_nD @ head.weight[block].t() for block in columns], -1)
            slope_nV = head.cap_(logits_nV)
            yield Support(rows, slice(0, head.vocabulary), input_nD, logits_nV, slope_nV, actions_N[rows])
        return
    top_Nk = _largest(head, hidden_ND, actions_N, top_k, chunks)
    for rows in slices(len(hidden_ND), max(1, elements // ((top_k + 1) * head.width))):
        input_nD, action_n1 = head.inputs(hidden_ND[rows]), actions_N[rows, None]
        ids_nK = torch.cat([action_n1, top_Nk[rows]], 1)
        logits_nK = torch.einsum("nkd,nd->nk", head.weight[ids_nK], input_nD)
        slope_nK = head.cap_(logits_nK)
        logits_nK[:, 1:].masked_fill_(ids_nK[:, 1:] == action_n1, -torch.inf)
        yield Support(rows, ids_nK, input_nD, logits_nK, slope_nK, torch.zeros_like(action_n1[:, 0]))


def support_moments(
    head: OutputHead,
    model: StepModel,
    hidden_ND: Tensor,
    actions_N: Tensor,
    slope_N: Tensor,
    top_k: int | None,
    chunks: tuple[int, int],
) -> SoftmaxMoments:
    """Moments of the change that each token's own step makes to its logits; `slope_N` is its objective's by log p."""
    moments = SoftmaxMoments.empty(len(hidden_ND), slope_N)
    for support in supports(head, hidden_ND, actions_N, top_k, chunks):
        change_nK = _own_change(support, model, slope_N[support.rows], chunks[0] * chunks[1])
        here = moments[support.rows]
        block = block_moments(
            support.logits_nK,
            support.column_n,
            here.max_N,
            fixed_nb=change_nK,
            scale_nb=None,
            has_own=False,
        )
        here.merge_(block)
    return moments


@torch.no_grad()
def row_gradient_sums(
    head: OutputHead,
    hidden_ND: Tensor,
    actions_N: Tensor,
    slope_N: Tensor,
    accepted_N: Tensor,
    top_k: int | None,
    chunks: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """(sum_VD, count_V): for each row of the weight, the sum of the accepted tokens' gradients (of the objective) on
    their support, and in how many supports it is. Both are summed over ranks before `update_row_moments_` divides.
    A bias has the last column.
    """
    sum_VD = head.inputs(hidden_ND[:1]).new_zeros(head.vocabulary, head.width)
    count_V = sum_VD.new_zeros(head.vocabulary)
    hidden_ND, actions_N, slope_N = hidden_ND[accepted_N], actions_N[accepted_N], slope_N[accepted_N]
    for support in supports(head, hidden_ND, actions_N, top_k, chunks):
        gradient_nK = _logit_gradient(support, slope_N[support.rows])
        if isinstance(support.ids, slice):
            sum_VD.addmm_(gradient_nK.t(), support.input_nD)
            count_V += len(gradient_nK)
            continue
        is_first_nK = torch.ones_like(support.logits_nK)
        is_first_nK[:, 1:] = (support.ids[:, 1:] != support.ids[:, :1]).to(is_first_nK.dtype)
        ids = support.ids.flatten()
        sum_VD.index_add_(0, ids, (gradient_nK[..., None] * support.input_nD[:, None]).flatten(0, 1))
        count_V.index_add_(0, ids, is_first_nK.flatten())
    return sum_VD, count_V


def update_row_moments_(
    exp_avg_VD: Tensor,
    exp_avg_sq_VD: Tensor,
    sum_VD: Tensor,
    count_V: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:
    """One Adam update of the moments (of the loss's gradient) of the rows that were met, in place, once an optimizer
    step. A row that was in no support keeps its moments. The caller counts the step.

    A bias's moments are updated by a second call with its column: `moment_V[:, None]` and `sum_VD[:, -1:]`.
    """
    met_R = count_V.nonzero()[:, 0]
    gradient_RD = -sum_VD[met_R] / count_V[met_R, None]
    exp_avg_VD[met_R] = (exp_avg_VD[met_R] * betas[0] + gradient_RD * (1 - betas[0])).to(exp_avg_VD.dtype)
    square_RD = exp_avg_sq_VD[met_R] * betas[1] + gradient_RD.square() * (1 - betas[1])
    exp_avg_sq_VD[met_R] = square_RD.to(exp_avg_sq_VD.dtype)


def _largest(
    head: OutputHead, hidden_ND: Tensor, actions_N: Tensor, top_k: int, chunks: tuple[int, int]
) -> Tensor:
    """Ids of each token's `top_k` largest logits."""
    stream = MomentStream(head, hidden_ND, actions_N, chunks)
    value_Nk = hidden_ND.new_full((len(hidden_ND), top_k), -torch.inf, dtype=head.dtype)
    id_Nk = torch.zeros_like(value_Nk, dtype=torch.long)
    for columns in stream.columns():
        weight_bD = head.weight[columns]
        for rows in stream.token_blocks():
            logits_nb, _ = stream.logits(stream.inputs(rows), weight_bD)
            value, index = logits_nb.topk(min(top_k, logits_nb.shape[1]), sorted=False)
            value = torch.cat([value_Nk[rows], value], 1)
            ids = torch.cat([id_Nk[rows], index + columns.start], 1)
            value_Nk[rows], best = value.topk(top_k)
            id_Nk[rows] = ids.gather(1, best)
    return id_Nk


def _logit_gradient(support: Support, slope_n: Tensor) -> Tensor:
    """Gradient of each token's objective by the head's outputs on its support, (n, K)."""
    log_normalizer_n = support.logits_nK.logsumexp(1)
    gradient_nK = scores_(support.logits_nK.clone(), log_normalizer_n, support.column_n).mul_(slope_n[:, None])
    return gradient_nK if support.slope_nK is None else gradient_nK.mul_(support.slope_nK)


def _own_change(support: Support, model: StepModel, slope_n: Tensor, elements: int) -> Tensor:
    """u of each token's own step on its support, (n, K), with at most about `elements` entries of rows at once."""
    gradient_nK = _logit_gradient(support, slope_n)
    change_nK = torch.empty_like(gradient_nK)
    input_n1D = support.input_nD[:, None]
    for block in slices(change_nK.shape[1], max(1, elements // support.input_nD.numel())):
        ids = block if isinstance(support.ids, slice) else support.ids[:, block]
        step_nbD = model.rows(gradient_nK[:, block, None] * input_n1D, ids)
        change_nK[:, block] = torch.linalg.vecdot(step_nbD, input_n1D)
    return change_nK if support.slope_nK is None else change_nK.mul_(support.slope_nK)
