"""Attention over a packed batch: every completion sees its prompt and itself, prompts see themselves.

Registered with transformers under `rlhf_packed`, so it works for any decoder that uses the attention interface. Sequences
of similar length are gathered into padded blocks and attended with batched matrix products, which use the CPU's matrix units
(fused CPU kernels are slow on short sequences). Only q, k and v are kept for the backward pass; scores are recomputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "rlhf_packed"
# sequences whose padded score blocks exceed this many elements per head are attended in several blocks
BLOCK_SCORES = 2**19
# a block may be padded to at most this multiple of its shortest member's queries
LENGTH_SPREAD = 1.5


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """R query spans padded to C, each with its key span padded to L; padding points at token 0 and is masked or dropped.

    `offset_R` is how many keys precede the first query: query i sees keys 0 .. offset + i.
    """

    query_RC: Tensor
    key_RL: Tensor
    offset_R: Tensor
    row_M: Tensor  # which of the R * C block rows are real queries ...
    token_M: Tensor  # ... and which tokens they are

    def to(self, device: torch.device | str) -> "AttentionBlock":
        tensors = (self.query_RC, self.key_RL, self.offset_R, self.row_M, self.token_M)
        return AttentionBlock(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the tokens of one packed batch attend to each other."""

    tokens: int
    blocks: tuple[AttentionBlock, ...]

    def to(self, device: torch.device | str) -> "AttentionPlan":
        return AttentionPlan(self.tokens, tuple(block.to(device) for block in self.blocks))


Span = tuple[int, int]


def build_plan(tokens: int, prompts: Sequence[Span], completions: Sequence[tuple[Span, Span]]) -> AttentionPlan:
    """Plan for prompt spans, and (prompt span, completion span) pairs; spans are [start, end) in the packed tokens."""
    rows: list[tuple[range, list[int], int]] = [(range(*span), list(range(*span)), 0) for span in prompts]
    for prompt, completion in completions:
        if completion[1] > completion[0]:
            keys = [*range(*prompt), *range(*completion)]
            rows.append((range(*completion), keys, prompt[1] - prompt[0]))
    rows.sort(key=lambda row: (len(row[0]), len(row[1])))
    blocks, current = [], []
    for row in rows:
        padded = (len(current) + 1) * len(row[0]) * max(len(r[1]) for r in [*current, row])
        if current and (padded > BLOCK_SCORES or len(row[0]) > LENGTH_SPREAD * len(current[0][0]) + 8):
            blocks.append(_block(current))
            current = []
        current.append(row)
    if current:
        blocks.append(_block(current))
    return AttentionPlan(tokens, tuple(blocks))


def _block(rows: list[tuple[range, list[int], int]]) -> AttentionBlock:
    width, keys = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    query = torch.tensor([[*row[0]] + [0] * (width - len(row[0])) for row in rows])
    key = torch.tensor([row[1] + [0] * (keys - len(row[1])) for row in rows])
    real = torch.tensor([[True] * len(row[0]) + [False] * (width - len(row[0])) for row in rows])
    return AttentionBlock(
        query, key, torch.tensor([row[2] for row in rows]), real.view(-1).nonzero()[:, 0], query[real]
    )


def _visible(block: AttentionBlock, window: int | None) -> Tensor:
    """(R, 1, C, L) mask: causal, within the sliding window where there is one."""
    query_position_RC = block.offset_R[:, None] + torch.arange(block.query_RC.shape[1], device=block.query_RC.device)
    key_position_L = torch.arange(block.key_RL.shape[1], device=block.key_RL.device)
    distance = query_position_RC[:, :, None] - key_position_L
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    return visible[:, None]


class _PackedAttention(torch.autograd.Function):
    """q (T, H, D), k and v (T, K, D) with H a multiple of K -> (T, H, D)."""

    @staticmethod
    def forward(ctx, q, k, v, plan: AttentionPlan, scaling: float, window: int | None, softcap: float | None):
        out = torch.empty_like(q)
        for block in plan.blocks:
            _, probability, _, values = _attend(q, k, v, block, scaling, window, softcap)
            result = _ungroup(probability @ values, q.shape[1])
            out.index_copy_(0, block.token_M, result[block.row_M])
        ctx.save_for_backward(q, k, v, out)
        ctx.settings = (plan, scaling, window, softcap)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, out = ctx.saved_tensors
        plan, scaling, window, softcap = ctx.settings
        # prompts' keys collect gradients from many completions: summed in float32
        accumulate = torch.promote_types(q.dtype, torch.float32)
        grad_q = torch.empty_like(q)
        grad_k = torch.zeros(k.shape, dtype=accumulate, device=k.device)
        grad_v = torch.zeros_like(grad_k)
        row_sum = (grad_out.to(accumulate) * out.to(accumulate)).sum(-1, keepdim=True).to(q.dtype)
        groups = k.shape[1]
        for block in plan.blocks:
            queries, probability, keys, values = _attend(q, k, v, block, scaling, window, None if softcap is None else softcap)
            real = torch.zeros(block.query_RC.numel(), 1, 1, dtype=q.dtype, device=q.device)
            real[block.row_M] = 1
            grad_block = grad_out.index_select(0, block.query_RC.view(-1)) * real
            upstream = _group(grad_block, block.query_RC.shape, groups)
            total = _group(row_sum.index_select(0, block.query_RC.view(-1)) * real, block.query_RC.shape, groups)
            grad_scores = probability * (upstream @ values.transpose(-1, -2) - total)
            if softcap is not None:
                raw = queries @ keys.transpose(-1, -2) * scaling
                grad_scores = grad_scores * (1 - (raw / softcap).tanh().square())
            grad_scores = grad_scores * scaling
            block_q = _ungroup(grad_scores @ keys, q.shape[1])
            grad_q.index_copy_(0, block.token_M, block_q[block.row_M])
            key_index = block.key_RL.view(-1)
            for target, gradient in ((grad_k, grad_scores.transpose(-1, -2) @ queries), (grad_v, probability.transpose(-1, -2) @ upstream)):
                flat = gradient.transpose(1, 2).reshape(len(key_index), groups, -1)
                target.index_add_(0, key_index, flat.to(accumulate))
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _attend(q, k, v, block, scaling, window, softcap):
    """(queries (R, K, G*C, D), probability (R, K, G*C, L), keys, values (R, K, L, D)); query heads of a group are rows."""
    groups = k.shape[1]
    queries = _group(q.index_select(0, block.query_RC.view(-1)), block.query_RC.shape, groups)
    rows, length = block.key_RL.shape
    index = block.key_RL.view(-1)
    keys = k.index_select(0, index).view(rows, length, groups, -1).transpose(1, 2)
    values = v.index_select(0, index).view(rows, length, groups, -1).transpose(1, 2)
    scores = queries @ keys.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    visible = _visible(block, window).repeat(1, 1, q.shape[1] // groups, 1)
    scores.masked_fill_(~visible, torch.finfo(scores.dtype).min)
    return queries, torch.softmax(scores, -1), keys, values


def _group(rows: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """(R*C, H, D) -> (R, K, G*C, D)."""
    count, width = shape
    heads = rows.shape[1]
    grouped = rows.view(count, width, groups, heads // groups, -1).permute(0, 2, 3, 1, 4)
    return grouped.reshape(count, groups, heads // groups * width, -1)


def _ungroup(grouped: Tensor, heads: int) -> Tensor:
    """(R, K, G*C, D) -> (R*C, H, D)."""
    count, groups, _, depth = grouped.shape
    split = grouped.view(count, groups, heads // groups, -1, depth).permute(0, 3, 1, 2, 4)
    return split.reshape(-1, heads, depth)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed_plan: AttentionPlan | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, H, T, D) queries, (1, K, T, D) keys and values -> (1, T, H, D).

    Raises ValueError where no plan reached the layer, or for attention dropout and attention sinks.
    """
    if packed_plan is None:
        raise ValueError(
            f"{type(module).__name__} did not pass `packed_plan` on to its attention: set model.attention: padded for this architecture"
        )
    if dropout or kwargs.get("s_aux") is not None:
        raise ValueError("packed attention has no dropout and no attention sinks: set model.attention: padded")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    return _PackedAttention.apply(q, k, v, packed_plan, scaling, sliding_window, softcap)[None], None


def register() -> None:
    """Make `attn_implementation="rlhf_packed"` known to transformers; no mask tensor is built for it."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
