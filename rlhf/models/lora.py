"""Low-rank adapters through PEFT: made here, merged on a copy, saved as PEFT saves them."""

from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from rlhf.config.model import LoraConfig

ADAPTER = "default"
BASE = ".base_layer."


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Adapters in float32 on a frozen base in its own precision; drawn from `seed`, the global generator is left alone.

    Raises ValueError where the LM head would get an adapter: its weight is read directly by the streamed head.
    """
    targets = config.target_modules
    if targets != "all-linear" and {name.split(".")[-1] for name in targets} & {"lm_head", "embed_out"}:
        raise ValueError(f"lora.target_modules {targets}: the LM head cannot have an adapter, leave it out")
    peft_config = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, peft_config, adapter_name=ADAPTER, autocast_adapter_dtype=True)


def base_weights(
    model: PeftModel, state: Mapping[str, torch.Tensor] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF name, tensor) of the base without its adapters. `state`: see `merged_weights`."""
    for name, parameter in model.get_base_model().named_parameters():
        if ".lora_" not in name:
            yield name.replace(BASE, "."), (parameter if state is None else state[name]).detach()


def merged_weights(
    model: PeftModel, state: Mapping[str, torch.Tensor] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(HF name, tensor) of base + scaling * B A, each summed in float32 on a copy and cast to the base's precision.

    `state`: the base model's tensors by name, adapters included, where they are not to be read from the model.
    """
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    parameters = dict(base.named_parameters())
    values = parameters if state is None else state
    for name in parameters:
        if ".lora_" in name:
            continue
        tensor = values[name].detach()
        layer_name = name.rpartition(BASE)[0]
        if name.endswith(f"{BASE}weight") and ADAPTER in layers[layer_name].lora_A:
            layer = layers[layer_name]
            down, up = (values[f"{layer_name}.lora_{part}.{ADAPTER}.weight"].detach().float() for part in "AB")
            delta = layer.scaling[ADAPTER] * (up @ down)
            # GPT-2's layers hold their weight as (inputs, outputs)
            delta = delta.t() if layer.fan_in_fan_out else delta
            tensor = (tensor.float() + delta).to(tensor.dtype)
        yield name.replace(BASE, "."), tensor
