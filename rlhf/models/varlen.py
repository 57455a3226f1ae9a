"""torch's varlen flash kernel for packed attention on CUDA: a segment's queries against its [prefix, own] keys."""

import inspect
from functools import lru_cache
from importlib.util import find_spec

import torch

from rlhf.models.attention_plan import AttentionPlan

# limits of the kernel
LARGEST_HEAD = 256
HEAD_MULTIPLE = 8


def is_usable(query_THD: torch.Tensor, key_TKD: torch.Tensor, value_TKD: torch.Tensor) -> bool:
    """Whether the kernel is there and computes these heads: CUDA, half precision, head sizes it has."""
    size = query_THD.shape[-1]
    return (
        query_THD.is_cuda
        and all(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in (query_THD, key_TKD, value_TKD))
        and query_THD.dtype == key_TKD.dtype == value_TKD.dtype
        and size == value_TKD.shape[-1]
        and size <= LARGEST_HEAD
        and size % HEAD_MULTIPLE == 0
        and _aligns_last_query_with_last_key(query_THD.device)
    )


def attention(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    plan: AttentionPlan,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """(T, H, D), differentiable. A query sees the last `window` keys, its own included; None: all up to its own."""
    return _call(
        query_THD.contiguous(),
        key_TKD.index_select(0, plan.key_index),
        value_TKD.index_select(0, plan.key_index),
        (plan.cumulative_queries, plan.cumulative_keys, plan.longest_query, plan.longest_key),
        scaling,
        window,
    )


def _call(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    lengths: tuple[torch.Tensor, torch.Tensor, int, int],
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    elif (groups := query_THD.shape[1] // key_TKD.shape[1]) > 1:
        key_TKD, value_TKD = (tensor.repeat_interleave(groups, 1) for tensor in (key_TKD, value_TKD))
    return varlen_attn(query_THD, key_TKD, value_TKD, *lengths, **options)


@lru_cache
def _aligns_last_query_with_last_key(device: torch.device) -> bool:
    """Whether the kernel exists and aligns its causal mask at the bottom right, as completions behind prompts need.

    Flash attention has done so since 2.1, but torch's documentation does not promise it; so it is asked: one query and
    two keys with equal scores give the mean of the two values (bottom right), or the first value (top left).
    """
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    if not {"scale", "window_size"} <= inspect.signature(varlen_attn).parameters.keys():
        return False
    with torch.no_grad(), torch.cuda.device(device):
        key = torch.zeros(2, 1, 64, dtype=torch.bfloat16, device=device)
        value = torch.ones_like(key)
        value[0] = 0
        lengths = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (1, 2))
        try:
            mean = _call(key[:1], key, value, (*lengths, 1, 2), 1.0, None)
        except RuntimeError:  # torch was built without the kernel, or not for this device
            return False
        return bool(torch.allclose(mean, torch.full_like(mean, 0.5)))
