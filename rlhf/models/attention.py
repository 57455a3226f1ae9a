"""Attention over a packed batch, registered with transformers: exact, without padding the model's other layers.

Each bucket of the plan gathers its queries and keys by index and runs as batched matrix products (on CPU these use the
matrix units, which the fused kernel's backward pass does not). Only queries, keys and values are kept for the backward
pass, which computes scores again, so memory grows with the number of tokens. On CUDA in half precision the varlen flash
kernel is used instead.

Shapes: T tokens, H query heads, K key heads, G = H / K queries sharing a key head, D head size; a bucket has R pieces
of C queries and L keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from rlhf.models import varlen
from rlhf.models.attention_plan import AttentionPlan, Bucket
from rlhf.models.precision import matmul_dtype

NAME = "rlhf_packed"
# the forward keyword that carries the plan through the model
PLAN = "attention_plan"
# scores of one step, all heads
STEP_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class AttentionSettings:
    """Scores are scaling * q k, then softcap * tanh(scores / softcap); a query sees the last `window` keys, itself
    included."""

    scaling: float
    softcap: float | None = None
    window: int | None = None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function for query (1, H, T, D), key and value (1, K, T, D); returns (1, T, H, D).

    Raises ValueError for what it does not compute exactly: attention sinks, dropout, masks, other batches than the
    plan's.
    """
    plan: AttentionPlan | None = kwargs.get(PLAN)
    name = type(module).__name__
    if plan is None:
        raise ValueError(
            f"{name} called packed attention without a plan: the architecture does not pass keyword arguments on, or "
            "the model was called outside Policy.forward. Use `attention: padded` for this model"
        )
    problems = {
        "attention sinks (s_aux)": s_aux is not None or kwargs.get("sinks") is not None,
        f"dropout {dropout}: set the model's attention dropout to 0": dropout > 0,
        "an attention mask": attention_mask is not None,
        "bidirectional attention": kwargs.get("is_causal", getattr(module, "is_causal", True)) is False,
        f"a batch of {tuple(query.shape)} and keys of {tuple(key.shape)} for a plan of {plan.length} tokens": (
            query.shape[0] != 1 or query.shape[2] != plan.length or key.shape[2] != plan.length
        ),
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise ValueError(f"packed attention cannot run {name} with {'; '.join(found)}. Use `attention: padded`")
    settings = AttentionSettings(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sliding_window)
    device = value.device.type
    # under autocast rotary embeddings leave float32 queries and keys beside bfloat16 values
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query_THD, key_TKD, value_TKD = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    with torch.autocast(device, enabled=False):
        if softcap is None and varlen.is_usable(query_THD, key_TKD, value_TKD):
            return varlen.attention(query_THD, key_TKD, value_TKD, plan, settings.scaling, settings.window)[None], None
        return _PackedAttention.apply(query_THD, key_TKD, value_TKD, plan, settings)[None], None


AttentionInterface.register(NAME, packed_attention)
# the plan says who sees whom
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        value_TKD: torch.Tensor,
        plan: AttentionPlan,
        settings: AttentionSettings,
    ) -> torch.Tensor:
        ctx.save_for_backward(query_THD, key_TKD, value_TKD)
        ctx.plan, ctx.settings = plan, settings
        heads, dtype = query_THD.shape[1], query_THD.dtype
        query_THD, key_TKD, value_TKD = (_products(tensor) for tensor in (query_THD, key_TKD, value_TKD))
        flat = query_THD.new_empty(_slots(plan), heads, value_TKD.shape[-1])
        for step in _steps(plan, query_THD, key_TKD.shape[1]):
            probability, _ = _probabilities(step.queries(query_THD), step.keys(key_TKD), step, settings)
            step.store(flat, torch.bmm(probability, step.keys(value_TKD)))
            del probability  # not alive beside the next step's
        return flat.index_select(0, plan.slot_T).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_THD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan, settings = ctx.plan, ctx.settings
        dtype = gradient_THD.dtype
        query_THD, key_TKD, value_TKD, gradient_THD = (
            _products(tensor) for tensor in (*ctx.saved_tensors, gradient_THD)
        )
        # padded queries read this row: without a gradient they add nothing to keys and values
        gradient_THD = torch.cat([gradient_THD, gradient_THD.new_zeros(1, *gradient_THD.shape[1:])])
        flat = torch.empty(_slots(plan), *query_THD.shape[1:], dtype=query_THD.dtype, device=query_THD.device)
        # a prompt's keys gather gradients from all its completions, more than bfloat16 can add up
        sums = torch.promote_types(query_THD.dtype, torch.float32)
        by_key, by_value = (torch.zeros_like(tensor, dtype=sums) for tensor in (key_TKD, value_TKD))
        for step in _steps(plan, query_THD, key_TKD.shape[1]):
            by_query, by_keys, by_values = _gradients(
                step.queries(query_THD),
                step.keys(key_TKD),
                step.keys(value_TKD),
                step.queries(gradient_THD),
                step,
                settings,
            )
            step.store(flat, by_query)
            step.add(by_key, by_keys)
            step.add(by_value, by_values)
        return flat.index_select(0, plan.slot_T).to(dtype), by_key.to(dtype), by_value.to(dtype), None, None


@dataclass(frozen=True)
class _Step:
    """Some pieces of a bucket: small enough to hold the scores of all heads; `slot` is their first place in the flat
    output."""

    bucket: Bucket
    rows: slice
    slot: int
    key_heads: int

    def queries(self, tensor_THD: torch.Tensor) -> torch.Tensor:
        """(R * K, G * C, D): the query heads that share a key head are rows of one product, so keys are not repeated.

        Padded queries read row T, or the last row of a tensor that has none.
        """
        index_RC = self.bucket.query_RC[self.rows].clamp(max=tensor_THD.shape[0] - 1)
        pieces, queries = index_RC.shape
        gathered = tensor_THD.index_select(0, index_RC.flatten())
        folded = gathered.view(pieces, queries, self.key_heads, -1, tensor_THD.shape[-1]).permute(0, 2, 3, 1, 4)
        return folded.reshape(pieces * self.key_heads, -1, tensor_THD.shape[-1])

    def keys(self, tensor_TKD: torch.Tensor) -> torch.Tensor:
        """(R * K, L, D)"""
        index_RL = self.bucket.key_RL[self.rows]
        gathered = tensor_TKD.index_select(0, index_RL.flatten()).view(*index_RL.shape, *tensor_TKD.shape[1:])
        return gathered.transpose(1, 2).reshape(-1, index_RL.shape[1], tensor_TKD.shape[-1])

    def store(self, flat: torch.Tensor, folded: torch.Tensor) -> None:
        """Write (R * K, G * C, D) to the step's slots of (slots, H, D)."""
        pieces, queries = self.bucket.query_RC[self.rows].shape
        width = folded.shape[-1]
        place = flat[self.slot : self.slot + pieces * queries].view(pieces, queries, self.key_heads, -1, width)
        place.copy_(folded.view(pieces, self.key_heads, -1, queries, width).permute(0, 3, 1, 2, 4))

    def add(self, total_TKD: torch.Tensor, folded: torch.Tensor) -> None:
        """Add (R * K, L, D) to the tokens it was gathered from."""
        index_RL = self.bucket.key_RL[self.rows]
        pieces, keys = index_RL.shape
        unfolded = folded.view(pieces, self.key_heads, keys, -1).transpose(1, 2)
        total_TKD.index_add_(
            0, index_RL.flatten(), unfolded.reshape(pieces * keys, *total_TKD.shape[1:]).to(total_TKD.dtype)
        )

    def hide(self, scores: torch.Tensor, window: int | None) -> None:
        """Overwrite the scores (R * K, G * C, L) of keys that a query must not see."""
        queries, keys = self.bucket.query_RC.shape[1], self.bucket.key_RL.shape[1]
        device = self.bucket.query_RC.device
        last_RC1 = (self.bucket.offset_R[self.rows, None] + torch.arange(queries, device=device)).unsqueeze(-1)
        first = self.bucket.seen_by_all if window is None else 0
        key_L = torch.arange(first, keys, device=device)
        hidden_RCL = key_L > last_RC1
        if window is not None:
            hidden_RCL |= key_L <= last_RC1 - window
        masked = scores.view(len(last_RC1), -1, queries, keys)[..., first:]
        # finite, as a padded query may see no key at all and must not become NaN
        masked.masked_fill_(hidden_RCL.unsqueeze(1), torch.finfo(scores.dtype).min)


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, step: _Step, settings: AttentionSettings
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax (R * K, G * C, L), and tanh(scores / softcap) where there is a softcap."""
    scores = torch.bmm(query, key.transpose(1, 2))
    tanh = None
    if settings.softcap is not None:
        tanh = scores.mul_(settings.scaling / settings.softcap).tanh_()
        scores = tanh * settings.softcap
    else:
        scores.mul_(settings.scaling)
    step.hide(scores, settings.window)
    return torch.softmax(scores, -1), tanh


def _gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gradient: torch.Tensor,
    step: _Step,
    settings: AttentionSettings,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of (query, key, value), from the gradient of the output; the scores are freed on return."""
    probability, tanh = _probabilities(query, key, step, settings)
    by_value = torch.bmm(probability.transpose(1, 2), gradient)
    by_score = torch._softmax_backward_data(
        torch.bmm(gradient, value.transpose(1, 2)), probability, -1, probability.dtype
    )
    if tanh is not None:
        by_score.mul_(tanh.square_().neg_().add_(1))
    by_score.mul_(settings.scaling)
    return torch.bmm(by_score, key), torch.bmm(by_score.transpose(1, 2), query), by_value


def _steps(plan: AttentionPlan, query_THD: torch.Tensor, key_heads: int) -> Iterator[_Step]:
    allowed = STEP_BYTES.get(query_THD.device.type, STEP_BYTES["cpu"]) // (
        query_THD.shape[1] * query_THD.dtype.itemsize
    )
    slot = 0
    for bucket in plan.buckets:
        pieces, queries = bucket.query_RC.shape
        at_once = max(1, allowed // (queries * bucket.key_RL.shape[1]))
        for first in range(0, pieces, at_once):
            rows = slice(first, min(first + at_once, pieces))
            yield _Step(bucket, rows, slot, key_heads)
            slot += (rows.stop - rows.start) * queries


def _slots(plan: AttentionPlan) -> int:
    return sum(bucket.query_RC.numel() for bucket in plan.buckets)


def _products(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(matmul_dtype(tensor))
