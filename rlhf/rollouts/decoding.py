"""The decode loop: any Hugging Face decoder model, many rows, each prompt prefilled once, finished rows dropped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import FinishReason
from rlhf.rollouts.engine import Guidance
from rlhf.rollouts.sampling import draw, uniforms
from rlhf.rollouts.slab_cache import SlabCache

# tokens of one prefill forward: bounds its activations, far above what a decode step needs
PREFILL_TOKENS = 16384
SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(slots=True)
class Completion:
    """What was drawn for one row."""

    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"


def check_decodable(model: PreTrainedModel) -> None:
    """Raises ValueError for models whose layers keep something else than keys and values by position."""
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if layers - SUPPORTED_LAYERS:
        raise ValueError(
            f"{type(model).__name__} has layers {sorted(layers - SUPPORTED_LAYERS)}; the transformers engine decodes "
            f"{sorted(SUPPORTED_LAYERS)} only: set `engine.type: vllm`"
        )


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    stop_token_ids: frozenset[int],
    sampling: SamplingConfig,
    guidance: Guidance | None = None,
) -> list[Completion]:
    """One completion for each (prompt, seed), drawn together; equal prompts that stand side by side share a prefill.
    `guidance`: what the model's logits are changed by before a token is drawn.

    Row r's result is a function of (prompt r, seed r) and the weights; its neighbours change it by float rounding only.
    Raises FloatingPointError naming the row where the logits are not finite.
    """
    completions = [Completion() for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    device = model.device
    slots = max(lengths) + sampling.max_tokens - 1
    cache = SlabCache(model.config.get_text_config().num_hidden_layers, len(prompts), slots)
    _prefill(model, cache, prompts)
    # the last token of a prompt is the first decode step's input, so all logits come from one place
    token_B = torch.tensor([prompt[-1] for prompt in prompts], device=device)
    uniform_BT = torch.from_numpy(np.stack([uniforms(seed, sampling.max_tokens) for seed in seeds])).to(device)
    rows = list(range(len(prompts)))
    for step in range(sampling.max_tokens):
        positions = [lengths[row] - 1 + step for row in rows]
        position_B = torch.tensor(positions, device=device)
        cache.start_decode(position_B, max(positions) + 1)
        logits_BV = _next_logits(model, cache, token_B, position_B, guidance)
        drawn = draw(logits_BV, uniform_BT[:, step], sampling)
        is_running = []
        for row, token, logp in zip(rows, drawn.token_B.tolist(), drawn.logp_B.tolist(), strict=True):
            if not math.isfinite(logp):
                raise FloatingPointError(f"row {row}: the logits of token {step} are not finite")
            completions[row].token_ids.append(token)
            completions[row].logps.append(logp)
            is_running.append(token not in stop_token_ids)
            if token in stop_token_ids:
                completions[row].finish_reason = "stop"
        token_B = drawn.token_B
        if not any(is_running):
            break
        if not all(is_running) and step + 1 < sampling.max_tokens:
            order = cache.keep_rows(is_running)
            rows = [rows[index] for index in order]
            token_B, uniform_BT = token_B[order], uniform_BT[order]
    return completions


def _next_logits(
    model: PreTrainedModel, cache: SlabCache, token_B: torch.Tensor, position_B: torch.Tensor, guidance: Guidance | None
) -> torch.Tensor:
    """What follows one token a row is drawn from, (rows, vocabulary)."""
    inputs = dict(
        input_ids=token_B[:, None], position_ids=position_B[:, None], past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    if guidance is None:
        return model(**inputs).logits[:, -1]
    seen: list[torch.Tensor] = []
    # the model's own forward goes on to the head, with the scales and caps of its architecture
    handle = model.get_decoder().register_forward_hook(
        lambda _module, _arguments, output: seen.append(output.last_hidden_state[:, -1])
    )
    try:
        logits_BV = model(**inputs).logits[:, -1]
    finally:
        handle.remove()
    return guidance(seen[0], logits_BV)


def _prefill(model: PreTrainedModel, cache: SlabCache, prompts: Sequence[tuple[int, ...]]) -> None:
    """Write keys and values of all prompt tokens but the last, each run of equal prompts computed once."""
    first = 0
    while first < len(prompts):
        unique: list[tuple[int, ...]] = []
        source: list[int] = []
        longest = 0
        for prompt in prompts[first:]:
            if not unique or prompt != unique[-1]:
                if unique and max(longest, len(prompt)) * (len(unique) + 1) > PREFILL_TOKENS:
                    break
                unique.append(prompt)
                longest = max(longest, len(prompt))
            source.append(len(unique) - 1)
        if longest > 1:
            _prefill_batch(model, cache, unique, longest - 1, first, source)
        first += len(source)


def _prefill_batch(
    model: PreTrainedModel, cache: SlabCache, prompts: list[tuple[int, ...]], width: int, first: int, source: list[int]
) -> None:
    # padded on the right with an arbitrary id: causality keeps real tokens from seeing it, and the slots it leaves
    # behind lie beyond the row's position until a drawn token overwrites them
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt) - 1] = torch.tensor(prompt[:-1], dtype=torch.long)
    cache.start_prefill(first, torch.tensor(source, device=model.device))
    position_ids = torch.arange(width, device=model.device).expand(len(prompts), -1)
    model.base_model(input_ids=ids.to(model.device), position_ids=position_ids, past_key_values=cache, use_cache=True)
