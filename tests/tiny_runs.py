"""A whole run in seconds: a tiny random Llama with a real tokenizer, the transformers engine, generated sums."""

from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlhf.config.grpo import GRPOConfig
from rlhf.data.types import Prompt, Sample
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import load_policy
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.learner import Learner

EVEN_TOKENS = Path(__file__).with_name("even_tokens.py")


def save_tiny_model(folder: Path, **sizes: int) -> str:
    """A two-layer Llama with the demo model's tokenizer; weights are the same every time. `sizes` as in LlamaConfig."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path("embedded:smollm2-135m-instruct"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.2, eos_token_id=2, bos_token_id=1,
        pad_token_id=2, **({"hidden_size": 32, "intermediate_size": 48} | sizes),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_config(path: str, /, schema: type[GRPOConfig] = GRPOConfig, **changes) -> GRPOConfig:
    """A configuration of a few seconds; `changes` replace whole sections."""
    sections = {
        "run": {"folder": str(Path(path).parent / "runs"), "name": "tiny"},
        "model": {"path": path, "dtype": "float32"},
        "data": {"type": "arithmetic", "level": 2, "max_prompt_tokens": 64},
        "rewards": {"functions": [{"type": "callable", "path": f"{EVEN_TOKENS}:even_share"}]},
        "engine": {"type": "transformers"},
        "sampling": {"samples_per_prompt": 4, "max_tokens": 8},
        "batch": {"steps": 4, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
        "optimizer": {"type": "adamw", "lr": 1e-3},
        "evaluation": {"prompts": 0},
        "guards": {"max_ungradable_share": 1.0},
        "tracking": {"show_completions_every": 0},
        "checkpoint": {"every": 1},
    }
    return schema.model_validate(sections | changes)


def make_samples(groups: int = 8, size: int = 4) -> list[Sample]:
    """Graded samples with ragged lengths: an empty completion, a truncated group, an equal-reward group, eos inside."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 40_000, (count,), generator=generator).tolist())

    samples = []
    for group in range(groups):
        prompt = Prompt(f"p:{group}", ids(3 + group), "text")
        for index in range(size):
            length = (group * 3 + index * 5) % 9
            completion = ids(length)[:-1] + ((2,) if length else ())
            reward = 0.5 if group == 1 else float(torch.rand((), generator=generator))
            logps = tuple((-10 - torch.rand(length, generator=generator)).tolist())
            reason = "length" if group == 2 else "stop"
            samples.append(Sample(prompt, index, completion, logps, reason, 0, 0, rewards={}, reward=reward))
    return samples


def make_learner(config: GRPOConfig, folder: Path) -> Learner:
    return Learner(load_policy(config.model), config, Accelerator(cpu=True), NonFiniteGuard(config.guards, folder))
