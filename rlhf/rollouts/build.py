"""From configuration to a running engine."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.config.model import ModelConfig
from rlhf.config.rollouts import EngineConfig, ServerEngineConfig, TransformersEngineConfig
from rlhf.models.embedded import resolve_model_path
from rlhf.rollouts.engine import Engine
from rlhf.rollouts.server_engine import ServerEngine
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.rollouts.vllm_engine import VllmEngine


def build_engine(
    engine_config: EngineConfig,
    model_config: ModelConfig,
    *,
    longest_sequence: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    log_file: Path | None = None,
) -> Engine:
    """The engine that `engine_config.type` names, holding the checkpoint's weights as version 0. Servers hold what
    they were started with, until weights are loaded.

    `seed` must differ by rank; samples do not depend on it. `log_file` receives vLLM's log.
    `longest_sequence`: prompt plus completion tokens, in training and evaluation (config/rules.py).
    Raises ValueError where `engine.max_model_len` does not hold it.
    """
    dtype_name = model_config.dtype if engine_config.dtype == "auto" else engine_config.dtype
    dtype: torch.dtype = getattr(torch, dtype_name)
    if isinstance(engine_config, ServerEngineConfig):
        return ServerEngine(engine_config, dtype=dtype, tokenizer=tokenizer, longest_sequence=longest_sequence)
    path = resolve_model_path(model_config.path)
    if isinstance(engine_config, TransformersEngineConfig):
        return TransformersEngine(
            path,
            config=engine_config,
            tokenizer=tokenizer,
            dtype=dtype,
            revision=model_config.revision,
            trust_remote_code=model_config.trust_remote_code,
        )
    max_model_len = engine_config.max_model_len or longest_sequence
    if max_model_len < longest_sequence:
        raise ValueError(
            f"engine.max_model_len {max_model_len} is less than the longest prompt plus completion, "
            f"{longest_sequence} tokens: raise it or leave it out"
        )
    return VllmEngine(
        path,
        config=engine_config,
        max_model_len=max_model_len,
        tokenizer=tokenizer,
        dtype=dtype,
        seed=seed,
        revision=model_config.revision,
        trust_remote_code=model_config.trust_remote_code,
        log_file=log_file,
    )
