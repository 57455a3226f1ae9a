"""From a checkpoint to a policy and its tokenizer."""

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlhf.config.model import ModelConfig
from rlhf.models.attention import NAME as PACKED_ATTENTION
from rlhf.models.embedded import resolve_model_path
from rlhf.models.head import HeadSettings
from rlhf.models.lora import add_adapters
from rlhf.models.plain_path import standard_attention
from rlhf.models.policy import Policy
from rlhf.models.precision import cpu_has_bfloat16_matmul
from rlhf.models.self_check import UnsupportedArchitecture

# the names under which transformers' configs keep dropout rates of decoders
DROPOUTS = (
    "attention_dropout",
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
    "dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "embedding_dropout",
    "resid_dropout",
)
# layers whose tokens meet only in attention, which the plan describes
KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention"}
# architectures that multiply their logits by `logits_scaling`; the others, Granite's family, divide
MULTIPLIES_BY_LOGITS_SCALING = {"hyperclovax"}


def load_policy(config: ModelConfig, *, temperature: float = 1.0, seed: int = 0) -> Policy:
    """The policy on the CPU, in training mode, checked to compute what its architecture computes.

    `temperature`: of the log-probs, i.e. the sampling temperature. `seed`: for the adapters' first weights.
    The model's own dropout is set to 0: with it the importance ratio of an on-policy step would not be 1.
    Raises UnsupportedArchitecture where the packed path cannot run the model, ValueError for impossible settings.
    """
    path = resolve_model_path(config.path)
    source = dict(revision=config.revision, trust_remote_code=config.trust_remote_code)
    model_config = AutoConfig.from_pretrained(path, **source)
    _remove_dropout(model_config)
    is_packed = config.attention == "packed"
    if is_packed:
        _refuse_unknown_layers(model_config)
    model = AutoModelForCausalLM.from_pretrained(
        path,
        config=model_config,
        dtype=getattr(torch, config.dtype),
        attn_implementation=PACKED_ATTENTION if is_packed else standard_attention(model_config),
        **source,
    )
    keep_generation_config_saveable(model)
    if config.dtype == "bfloat16" and not torch.cuda.is_available() and not cpu_has_bfloat16_matmul():
        warnings.warn(
            "this CPU has no bfloat16 instructions (AVX512 or AMX): matrix products run about ten times slower "
            "than in float32. Set `dtype: float32` in the model section",
            stacklevel=2,
        )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora is not None:
        model = add_adapters(model, config.lora, seed)
    policy = Policy(model, head=head_settings(model_config, temperature), attention=config.attention)
    policy.train()
    policy.self_check()
    return policy


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with the configured chat template. A missing pad token is fine: masks come from
    lengths.

    Raises FileNotFoundError where the chat template's file is missing.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        resolve_model_path(config.path), revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if config.chat_template is not None:
        file = Path(config.chat_template)
        if not file.is_file():
            raise FileNotFoundError(f"model.chat_template: there is no file {file}; give the path of a jinja template")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    return tokenizer


def head_settings(model_config: Any, temperature: float = 1.0) -> HeadSettings:
    """How this architecture's logits are scaled and capped, where its config says so; what it does not say, the
    policy's self-check finds."""
    text = model_config.get_text_config()
    scale = getattr(text, "logit_scale", None)  # Cohere
    if scale is None and (scaling := getattr(text, "logits_scaling", None)) is not None:
        scale = scaling if text.model_type in MULTIPLIES_BY_LOGITS_SCALING else 1 / scaling
    return HeadSettings(
        temperature=temperature,
        logit_softcap=getattr(text, "final_logit_softcapping", None),
        logit_scale=1.0 if scale is None else float(scale),
    )


def _remove_dropout(model_config: Any) -> None:
    for part in {id(c): c for c in (model_config, model_config.get_text_config())}.values():
        for name in DROPOUTS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def _refuse_unknown_layers(model_config: Any) -> None:
    unknown = set(getattr(model_config.get_text_config(), "layer_types", None) or ()) - KNOWN_LAYER_TYPES
    if unknown:
        raise UnsupportedArchitecture(
            f"{model_config.model_type} has layers of type {', '.join(sorted(unknown))}, which packed batches do not "
            "support: set `attention: padded` in the model section"
        )


def keep_generation_config_saveable(model: Any) -> None:
    """Some published generation configs are invalid, and transformers refuses to save them: after the training, not
    before."""
    generation = model.generation_config
    if generation is None:
        return
    try:
        generation.validate(strict=True)
    except ValueError:
        ids = {name: getattr(generation, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ids)
