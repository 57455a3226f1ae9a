"""The model that is evaluated: an engine that holds its weights, adapters merged, and a hash that names it."""

import hashlib
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from eval.settings import EvalSettings
from rlhf.config.model import ModelConfig
from rlhf.data.seeds import derive_seed
from rlhf.models.embedded import resolve_model_path
from rlhf.models.loading import load_tokenizer
from rlhf.models.lora import merged_weights
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.engine import Engine

SUPPORTED_DTYPES = ("float32", "bfloat16")


def model_config(settings: EvalSettings) -> ModelConfig:
    """The model section that `settings` stand for, with `auto` precision resolved from the checkpoint."""
    dtype = settings.dtype
    if dtype == "auto":
        path = resolve_model_path(settings.model)
        own = AutoConfig.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        ).dtype
        name = str(own).removeprefix("torch.")
        # float16 checkpoints overflow in some architectures' activations; bfloat16 has float32's range
        dtype = name if name in SUPPORTED_DTYPES else "bfloat16"
    return ModelConfig(
        path=settings.model, revision=settings.revision, dtype=dtype, trust_remote_code=settings.trust_remote_code
    )


def load_eval_tokenizer(settings: EvalSettings) -> PreTrainedTokenizerBase:
    return load_tokenizer(
        ModelConfig(path=settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    )


def build_eval_engine(
    settings: EvalSettings, tokenizer: PreTrainedTokenizerBase, longest_sequence: int, rank: int, log_file: Path
) -> Engine:
    """An engine with the checkpoint's weights, plus the adapter where there is one."""
    config = model_config(settings)
    engine = build_engine(
        settings.engine_config,
        config,
        longest_sequence=longest_sequence,
        tokenizer=tokenizer,
        seed=derive_seed(settings.seed, "engine", rank) % 2**31,
        log_file=log_file,
    )
    if settings.peft is not None:
        base = AutoModelForCausalLM.from_pretrained(
            resolve_model_path(config.path),
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
        )
        engine.load_weights(merged_weights(PeftModel.from_pretrained(base, settings.peft)), version=1)
    return engine


def checkpoint_hash(path: str) -> str | None:
    """SHA-256 over names and contents of a local checkpoint's config and weights; None for a hub id, which its
    revision names."""
    folder = Path(resolve_model_path(path))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    files = [f for pattern in ("*config.json", "*.safetensors", "*.bin") for f in folder.glob(pattern)]
    for file in sorted(files):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
