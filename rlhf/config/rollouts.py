"""How completions are sampled: the engine (by `type`) and the sampling settings, every one explicit."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.section import Section


class SamplingConfig(Section):
    """Sampling settings. Nothing is taken from the checkpoint's generation_config."""

    samples_per_prompt: int = Field(8, ge=1)
    """Completions per prompt (the group size)."""
    max_tokens: int = Field(256, ge=1)
    """Longest completion in tokens; with an environment, of one turn."""
    temperature: float = Field(1.0, ge=0)
    """Softmax temperature; 0 is greedy. The learner scores at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling. Training needs 1: the learner's log-probs have full support."""
    top_k: int = Field(0, ge=0)
    """Keep only the k most likely tokens; 0 is off. Training needs 0."""
    stop_token_ids: list[int] | None = None
    """Tokens that end a completion; none given: the tokenizer's eos and the chat template's end-of-turn."""


class TransformersEngineConfig(Section):
    """Batched decoding with the transformers model itself: deterministic, the reference for tests."""

    type: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the decoder; `auto`: the policy's."""
    max_rows: int = Field(128, ge=1)
    """Completions decoded at once."""


class VllmEngineConfig(Section):
    """vLLM in this process, on CUDA or CPU; weights are updated in place."""

    type: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engine; `auto`: the policy's."""
    max_model_len: int | None = Field(None, ge=8)
    """Prompt plus completion tokens; none given: the longest that training or evaluation can need."""
    max_num_seqs: int = Field(128, ge=1)
    """Completions decoded at once."""
    gpu_memory_utilization: float = Field(0.4, gt=0, lt=1)
    """Share of the GPU for the engine (weights and key-value cache)."""
    cpu_kv_cache_gib: float = Field(1.0, gt=0)
    """Key-value cache on CPU, in GiB."""
    enforce_eager: bool = True
    """No graph capture: starts in seconds. Turn off for long runs on GPU."""


EngineConfig = Annotated[TransformersEngineConfig | VllmEngineConfig, Field(discriminator="type")]
