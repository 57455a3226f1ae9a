"""The plain way to log-probs, and the oracle of the packed one: padded rows, the model's own forward, full logits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from rlhf.models.head import TokenStatistics
from rlhf.models.packing import PackedBatch


def standard_attention(config: object) -> str | None:
    """The plain path's attention: eager where scores are capped, as sdpa cannot cap them, else transformers' choice."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None else None


@contextmanager
def using_attention(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Run a model with another attention implementation for a while."""
    usual = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def plain_statistics(model: PreTrainedModel, batch: PackedBatch, temperature: float) -> TokenStatistics:
    """Statistics of the batch's targets by ordinary autograd, with extras.

    Rows are padded on the right and masked by their lengths, never by token ids. A batch without targets runs one dummy
    token.
    """
    device = batch.target_N.device
    present = [s for s in batch.sequences if s.completion_ids]
    rows = [(s.prompt_ids + s.completion_ids, [len(s.prompt_ids) - 1 + p for p in s.target_positions]) for s in present]
    rows = rows or [((0,), [])]
    longest = max(len(ids) for ids, _ in rows)
    input_ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    is_token_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    predicted_from: list[int] = []
    for row, (ids, places) in enumerate(rows):
        input_ids_BS[row, : len(ids)] = torch.tensor(ids)
        is_token_BS[row, : len(ids)] = 1
        predicted_from += [row * longest + place for place in places]
    logits_BSV = model(input_ids=input_ids_BS.to(device), attention_mask=is_token_BS.to(device), use_cache=False).logits
    index_N = torch.tensor(predicted_from, dtype=torch.long, device=device)
    logits_NV = logits_BSV.flatten(0, 1).index_select(0, index_N)
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logp_NV = (logits_NV / temperature).log_softmax(-1)
    p_NV = logp_NV.exp()
    return TokenStatistics(
        logp_NV.gather(1, batch.target_N[:, None]).squeeze(1),
        -(p_NV * logp_NV).sum(-1),
        p_NV.detach().square().sum(-1),
        p_NV.detach().amax(-1),
    )
