"""A random language model of two layers and 64 tokens, and completions of a language whose rewards are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.config.optimistic_actor_critic import OptimisticActorCriticConfig
from rlhf.data.types import Prompt, Sample
from tests.trainers.tiny_critics import optimistic_config

VOCABULARY, STOP, LONGEST = 64, 2, 8


def save_tiny_language(folder: Path) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2,
        eos_token_id=STOP, bos_token_id=1, pad_token_id=STOP,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def sentences(count: int = 8, *, seed: int = 0, version: int = 0) -> list[Sample]:
    """Completions of one to six tokens, some cut off; token 7 first pays 1."""
    generator = torch.Generator().manual_seed(1_000 * seed + version)
    found = []
    for index in range(count):
        length = 1 + int(torch.randint(6, (), generator=generator))
        ids = tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())
        ids = ((7,) if index % 4 == 0 else ids[:1]) + ids[1:]
        prompt = Prompt(f"p:{index // 4}", (3 + index // 4, 5), "text")
        reason = "length" if index % 3 == 2 else "stop"
        logps = (-4.0,) * length
        found.append(Sample(prompt, index % 4, ids, logps, reason, version, 0, reward=float(ids[0] == 7)))
    return found


def token_config(model: str, /, preset: str = "nora_token", **algorithm: Any) -> OptimisticActorCriticConfig:
    """Preset `nora_token` with few candidates, so that most tokens are none."""
    ensemble = {"members": 4, "updates": 4, "episodes": 8, "candidates": 5, **algorithm.pop("ensemble", {})}
    switch = {"features": 8, "nats": 1e-3, "min_steps": 1, **algorithm.pop("switch", {})}
    settings = {"preset": preset, "ensemble": ensemble, "switch": switch, **algorithm}
    return optimistic_config(
        model, algorithm=settings, sampling={"samples_per_prompt": 4, "max_tokens": LONGEST},
        batch={"steps": 8, "prompts_per_step": 2, "tokens_per_micro_batch": 64, "max_grad_norm": 1e9},
    )  # fmt: skip


def as_of(samples: list[Sample], version: int) -> list[Sample]:
    return [replace(sample, policy_version=version) for sample in samples]
