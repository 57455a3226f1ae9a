"""The key-value cache of the decode loop and the attention that reads it, plugged into transformers' own interfaces.

Every row owns a slab of slots, and slot i holds position i: whatever the lengths of the prompts, a mask needs nothing
but positions, so it comes from lengths and never from token ids, and sliding windows need no special case.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "rlhf_slab"


@dataclass
class _Step:
    """What the forward that is running writes: some rows' prompts (prefill), or one token of every row (decode)."""

    rows: int
    slots: int
    # prefill: rows [first, last) take over the keys of `source`, one prompt for all its samples
    first: int = 0
    last: int = 0
    source: torch.Tensor | None = None
    # decode: the position of each row's token, and how many slots are in use over all rows
    position_B: torch.Tensor | None = None
    used: int = 0
    slot_by_heads: dict[int, torch.Tensor] = field(default_factory=dict)

    def slot_index(self, heads: int) -> torch.Tensor:
        """Index of each (row, head)'s slot in a (rows * heads * slots, head_dim) view of a slab."""
        if heads not in self.slot_by_heads:
            assert self.position_B is not None
            device = self.position_B.device
            row_head_BK = torch.arange(self.rows, device=device)[:, None] * heads + torch.arange(heads, device=device)
            self.slot_by_heads[heads] = (row_head_BK * self.slots + self.position_B[:, None]).flatten()
        return self.slot_by_heads[heads]


class SlabLayer(CacheLayerMixin):
    """One layer's slabs: keys (rows, heads, slots, head_dim) and values likewise, allocated at the first write."""

    def __init__(self, step: _Step) -> None:
        super().__init__()
        self.step = step

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # zeros, not empty: an unwritten slot has attention weight 0, and 0 * NaN is NaN
        def slab(states: torch.Tensor) -> torch.Tensor:
            return states.new_zeros(self.step.rows, states.shape[1], self.step.slots, states.shape[3])

        self.keys, self.values = slab(key_states), slab(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self.step
        if step.source is not None:
            length = key_states.shape[2]
            self.keys[step.first : step.last, :, :length] = key_states[step.source]
            self.values[step.first : step.last, :, :length] = value_states[step.source]
            return key_states, value_states
        return _write(self.keys, key_states, step), _write(self.values, value_states, step)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self.step.source is not None else self.step.used), 0

    def get_seq_length(self) -> int:
        return 0 if self.step.source is not None else self.step.used - 1

    def get_max_length(self) -> int:
        return self.step.slots


def _write(slab: torch.Tensor, states_BK1D: torch.Tensor, step: _Step) -> torch.Tensor:
    heads, head_dim = slab.shape[1], slab.shape[3]
    slab.view(-1, head_dim).index_copy_(0, step.slot_index(heads), states_BK1D.reshape(-1, head_dim))
    return slab[: step.rows, :, : step.used]


class SlabCache(Cache):
    """A cache of `rows` completions with `slots` positions each, for a model of `layers` attention layers."""

    def __init__(self, layers: int, rows: int, slots: int) -> None:
        self.step = _Step(rows, slots)
        super().__init__(layers=[SlabLayer(self.step) for _ in range(layers)])

    def start_prefill(self, first: int, source: torch.Tensor) -> None:
        """The next forward holds prompts; row `first + i` of the cache takes over prompt `source[i]` of them."""
        self.step.first, self.step.last, self.step.source = first, first + len(source), source

    def start_decode(self, position_B: torch.Tensor, used: int) -> None:
        """The next forward holds one token a row, at `position_B`; `used` is the largest position plus 1."""
        self.step.source, self.step.position_B, self.step.used = None, position_B, used
        self.step.slot_by_heads.clear()

    def get_query_offset(self, layer_idx: int = 0) -> int | torch.Tensor:
        # the mask functions of transformers work on broadcast indices, so an offset a row gives a mask a row
        if self.step.source is not None or self.step.position_B is None:
            return 0
        return self.step.position_B

    def keep_rows(self, is_kept_B: list[bool]) -> list[int]:
        """Drop rows; the order of the kept rows changes. Returns the old index of each new row.

        The last rows move into the holes, so what is copied is at most what is dropped.
        """
        kept = sum(is_kept_B)
        holes = [row for row in range(kept) if not is_kept_B[row]]
        movers = [row for row in range(kept, len(is_kept_B)) if is_kept_B[row]]
        order = list(range(kept))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if holes:
            for layer in self.layers:
                for slab in (layer.keys, layer.values):
                    slab[holes, :, : self.step.used] = slab[movers, :, : self.step.used]
        self.step.rows = kept
        return order


def slab_attention(
    module: torch.nn.Module,
    query_BHQD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one token a row over its slab; grouped query heads fold into the query axis, nothing is repeated.

    A prefill (more than one query) goes to transformers' SDPA. Raises NotImplementedError for soft-capped scores and
    attention sinks, which neither path computes.
    """
    for unsupported in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(unsupported) is not None:
            raise NotImplementedError(
                f"{type(module).__name__} uses {unsupported!r}, which the transformers engine does not compute: "
                "set `engine.type: vllm`"
            )
    batch, heads, queries, _ = query_BHQD.shape
    if queries > 1:
        return sdpa_attention_forward(
            module, query_BHQD, key_BKSD, value_BKSD, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    groups = key_BKSD.shape[1]
    query_BKRD = query_BHQD.reshape(batch, groups, heads // groups, -1)
    out_BKRD = F.scaled_dot_product_attention(query_BKRD, key_BKSD, value_BKSD, attn_mask=attention_mask, scale=scaling)
    return out_BKRD.reshape(batch, 1, heads, -1), None


def slab_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **kwargs: object,
) -> torch.Tensor | None:
    """Additive mask (batch, 1, 1, kv_length) of a decode step, each row at its own position; prefill: SDPA's mask."""
    if not isinstance(q_offset, torch.Tensor):
        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, device=device, dtype=dtype, **kwargs
        )
    assert mask_function is not None
    row = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    slot = torch.arange(kv_length, device=device)[None, None, None, :]
    is_seen = mask_function(row, head, q_offset[:, None, None, None], slot)
    is_seen = is_seen.expand(batch_size, 1, 1, kv_length)
    return torch.zeros(is_seen.shape, dtype=dtype, device=device).masked_fill_(~is_seen, -torch.inf)


AttentionInterface.register(ATTENTION, slab_attention)
AttentionMaskInterface.register(ATTENTION, slab_mask)
