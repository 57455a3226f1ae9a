"""Tiny models with random weights, and a meter of torch's memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from benchmarks import head
from rlhf.models.packing import TrainingSequence

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
    # scores and logits capped, every other layer with a window that is shorter than the sequences
    "gemma2": lambda: Gemma2Config(
        **SIZES, head_dim=16, sliding_window=3, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
}


def save_checkpoint(config: PreTrainedConfig, folder: Path) -> str:
    """A checkpoint of `config` with weights large enough that every part of the model matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny checkpoint by family name, made once."""
    folders: dict[str, str] = {}

    def find(name: str) -> str:
        if name not in folders:
            folders[name] = save_checkpoint(CONFIGS[name](), tmp_path_factory.mktemp(name))
        return folders[name]

    return find


@pytest.fixture(scope="session")
def sequences() -> list[TrainingSequence]:
    """Groups of a shared prompt, one of them interleaved; lone prompts; completions of one and of no token; repeated
    eos."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 96, (count,), generator=generator).tolist())

    first, second, lone = draw(7), draw(4), draw(2)
    return [
        TrainingSequence(first, draw(9)),
        TrainingSequence(second, draw(5)),
        TrainingSequence(first, draw(1)),
        TrainingSequence(lone, draw(6)),
        TrainingSequence(second, ()),
        TrainingSequence(first, (*draw(2), 2, 2, 2)),  # the pad token as content
        TrainingSequence(second, draw(12)),
        TrainingSequence((5,), draw(1)),
    ]


@pytest.fixture(scope="session")
def peak_bytes() -> Callable[[Callable[[], Any]], int]:
    """The benchmarks' meter: most bytes that torch's CPU allocator held at once beyond what was there before."""
    return head.peak_bytes
