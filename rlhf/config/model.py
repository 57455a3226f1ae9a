"""Which checkpoint is trained, and how it is held in memory."""

from typing import Literal

from pydantic import Field

from rlhf.config.section import Section


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); the reference policy is the base with adapters off."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters; the update is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input. Above 0 the importance ratio of an on-policy step is no longer 1."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear layers get an adapter; "all-linear" leaves out the LM head."""


class ModelConfig(Section):
    """The policy: any Hugging Face causal language model."""

    path: str
    """A local folder, a hub id, or `embedded:smollm2-135m-instruct` (the demo model that a Python package carries)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute precision. The optimizer works on float32 master weights, or as optimizer.param_precision says."""
    attention: Literal["packed", "padded"] = "packed"
    """`packed`: no padding, each prompt forwarded once for all its completions. `padded`: the plain path, the
    oracle of the tests."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more compute."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    chat_template: str | None = None
    """A jinja file that replaces the tokenizer's chat template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. Off: only architectures that transformers ships."""
