"""What one step of many tokens does at many states: the whole batch's step, and the mean step of each sequence.

A token's own shift says nothing of how steps add up or cancel. Here one dense step dW of the LM head is judged at every
state, also exactly: the KL divergence and the objective's change that it would cause if only the LM head moved.

Shapes: N tokens, D hidden size (one more with a bias), V vocabulary, S groups; n tokens and b vocabulary rows of a
block; M the accepted tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.curvature import Fisher, objective_shift, policy_shift, slope_and_curvature
from rlhf.algorithms.moment_stream import MomentStream, StepBlock
from rlhf.algorithms.output_head import OutputHead, Rows, check_length, chunk_sizes, output_head, scores_
from rlhf.algorithms.softmax_moments import logit_change
from rlhf.algorithms.step_models import StepModel


class StepShifts(NamedTuple):
    """Per state, float32 (float64 for float64 inputs); a batch's shifts are the means over its tokens.

    `objective_N`: m_H. `sampled_policy_N`, `exact_policy_N`: m_F with the Fisher matrix of the sampled action and with
    the exact one. `kl_N`: KL(p || p_new), exact. `objective_change_N`: A rho (p_new(a) / p(a) - 1), exact.
    `delta_N`, `variance_N`: u_a - E_p[u] and Var_p[u]. `logp_N`: log p of the action before the step.
    """

    objective_N: Tensor
    sampled_policy_N: Tensor
    exact_policy_N: Tensor
    kl_N: Tensor
    objective_change_N: Tensor
    delta_N: Tensor
    variance_N: Tensor
    logp_N: Tensor


class GroupShifts(NamedTuple):
    """Mean shifts of each group's step at the group's own tokens, (S,); 0 for a group without tokens."""

    objective_S: Tensor
    policy_S: Tensor


@torch.no_grad()
def step_shifts(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    actions_N: Tensor,
    advantages_N: Tensor,
    delta_weight_VD: Tensor,
    *,
    ratio_N: Tensor | None = None,
    objective_slope_N: Tensor | None = None,
    objective_curvature_N: Tensor | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    bias_V: Tensor | None = None,
    delta_bias_V: Tensor | None = None,
    token_chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> StepShifts:
    """The shifts of the step W + dW (the learning rate included) at every state. Arguments as in `token_shifts`.

    A softcap is taken to first order in the step, as in `token_shifts`, also in the two exact columns.

    Raises ValueError where shapes, ids or settings do not fit together.
    """
    head = output_head(
        hidden_ND,
        weight_VD,
        actions_N,
        bias_V=bias_V,
        temperature=temperature,
        logit_softcap=logit_softcap,
        logit_scale=logit_scale,
    )
    if tuple(delta_weight_VD.shape) != tuple(weight_VD.shape):
        raise ValueError(f"step of shape {tuple(delta_weight_VD.shape)} for a weight of {tuple(weight_VD.shape)}")
    check_length(head.vocabulary, delta_bias_V=delta_bias_V)
    if bias_V is None and delta_bias_V is not None:
        raise ValueError("delta_bias_V is given, but the head has no bias: give bias_V too")
    surrogate_N, _ = slope_and_curvature(len(hidden_ND), advantages_N, ratio_N, None, None, head.dtype)
    slope_N, curvature_N = slope_and_curvature(
        len(hidden_ND), advantages_N, ratio_N, objective_slope_N, objective_curvature_N, head.dtype
    )
    if bias_V is not None and delta_bias_V is None:
        delta_bias_V = torch.zeros_like(bias_V)
    step = Rows(delta_weight_VD, delta_bias_V, head.dtype)
    chunks = chunk_sizes(hidden_ND.device, token_chunk, vocab_chunk)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        stream = MomentStream(head, hidden_ND, actions_N, chunks, with_excess=True)
        for columns in stream.columns():
            weight_bD, step_block = head.weight[columns], StepBlock(fixed_bD=step[columns], has_own=False)
            for rows in stream.token_blocks():
                stream.visit(rows, columns, weight_bD, step_block)
    change = logit_change(stream.moments)
    first_N, second_N = objective_shift(slope_N, curvature_N, change.delta_N, change.variance_N)
    return StepShifts(
        objective_N=first_N + second_N,
        sampled_policy_N=policy_shift(change.delta_N, change.variance_N, "sampled"),
        exact_policy_N=policy_shift(change.delta_N, change.variance_N, "exact"),
        kl_N=change.kl_N,
        objective_change_N=surrogate_N * torch.expm1(change.delta_N - change.kl_N),
        delta_N=change.delta_N,
        variance_N=change.variance_N,
        logp_N=change.logp_N,
    )


@torch.no_grad()
def mean_step_shifts(
    accepted_N: Tensor,
    group_N: Tensor,
    groups: int,
    *,
    head: OutputHead,
    model: StepModel,
    hidden_ND: Tensor,
    actions_N: Tensor,
    slope_N: Tensor,
    curvature_N: Tensor,
    log_normalizer_N: Tensor,
    lr: float,
    fisher: Fisher = "sampled",
    token_weight_N: Tensor | None = None,
    token_chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> GroupShifts:
    """For each group, the shifts of the one step that its accepted tokens take together, at those tokens.

    `group_N`: the group of each token, in [0, groups). The step's gradient is the mean over the group's accepted
    tokens, or their sum weighted by `token_weight_N`. `slope_N`, `curvature_N`: phi' and phi'' (advantage * ratio for
    the surrogate). `log_normalizer_N`: from `token_shifts`. Costs about four products of N V D.

    With everything but the first three bound (functools.partial), this is what `trust_region.accept` calls.
    """
    chosen_M = accepted_N.nonzero()[:, 0]
    chosen_M = chosen_M[group_N[chosen_M].argsort(stable=True)]
    count_S = torch.bincount(group_N[chosen_M], minlength=groups)
    ends = count_S.cumsum(0).tolist()
    spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]
    group_M, slope_M, curvature_M = group_N[chosen_M], slope_N[chosen_M], curvature_N[chosen_M]
    share_M = 1 / count_S.to(slope_M.dtype)[group_M] if token_weight_N is None else token_weight_N[chosen_M]
    own_M, log_normalizer_M = share_M * slope_M, log_normalizer_N[chosen_M]
    chunks = chunk_sizes(hidden_ND.device, token_chunk, vocab_chunk)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        stream = MomentStream(head, hidden_ND[chosen_M], actions_N[chosen_M], chunks)
        for columns in stream.columns():
            weight_bD = head.weight[columns]
            for span in spans:
                gradient_bD = _gradient_block(stream, span, columns, weight_bD, own_M, log_normalizer_M)
                step_bD = model.rows(gradient_bD, columns).mul_(lr)
                for rows in stream.token_blocks(span):
                    stream.visit(rows, columns, weight_bD, StepBlock(fixed_bD=step_bD, has_own=False))
    change = logit_change(stream.moments)
    first_M, second_M = objective_shift(slope_M, curvature_M, change.delta_N, change.variance_N)
    policy_M = policy_shift(change.delta_N, change.variance_N, fisher)
    zero_S, size_S = slope_M.new_zeros(groups), count_S.clamp_min(1)
    return GroupShifts(
        zero_S.index_add(0, group_M, first_M + second_M) / size_S, zero_S.index_add(0, group_M, policy_M) / size_S
    )


@torch.no_grad()
def proposed_step(
    head: OutputHead,
    model: StepModel,
    hidden_ND: Tensor,
    actions_N: Tensor,
    slope_N: Tensor,
    token_weight_N: Tensor,
    log_normalizer_N: Tensor,
    *,
    lr: float,
    token_chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> Tensor:
    """The dense step dW (V, D; a bias's in the last column) of the gradient sum_t token_weight * slope * d log p / dW.

    Tokens of weight 0 are not read, so a token that is not finite may be among them.
    """
    chosen_M = token_weight_N.nonzero()[:, 0]
    own_M = token_weight_N[chosen_M] * slope_N[chosen_M]
    chunks = chunk_sizes(hidden_ND.device, token_chunk, vocab_chunk)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        stream = MomentStream(head, hidden_ND[chosen_M], actions_N[chosen_M], chunks)
        step_VD = own_M.new_empty(head.vocabulary, head.width, dtype=head.dtype)
        for columns in stream.columns():
            gradient_bD = _gradient_block(
                stream, slice(0, len(chosen_M)), columns, head.weight[columns], own_M, log_normalizer_N[chosen_M]
            )
            step_VD[columns] = model.rows(gradient_bD, columns).mul_(lr)
    return step_VD


def _gradient_block(
    stream: MomentStream, span: slice, columns: slice, weight_bD: Tensor, own_N: Tensor, log_normalizer_N: Tensor
) -> Tensor:
    """Gradient by some rows of the weight of the sum over the tokens in `span` of own * log p of their actions."""
    gradient_bD = torch.zeros_like(weight_bD)
    for rows in stream.token_blocks(span):
        input_nD = stream.inputs(rows)
        logits_nb, slope_nb = stream.logits(input_nD, weight_bD)
        score_nb = scores_(logits_nb, log_normalizer_N[rows], stream.actions_N[rows] - columns.start)
        score_nb.mul_(own_N[rows, None])
        gradient_bD.addmm_((score_nb if slope_nb is None else score_nb.mul_(slope_nb)).t(), input_nD)
    return gradient_bD
