"""What TRL's in-process vLLM needs to work on CPU at all, and to be a fair opponent there.

1. TRL cannot ask vLLM for eager execution, and compiling takes minutes, nor for a precision: `LLM` gets both.
2. On CPU, vLLM packs the weights of linear layers and empties the originals, so that TRL's push (`load_weights`, one
   parameter at a time) fails with "'Parameter' object has no attribute 'weight_loader'". With plain weights it works.
   vLLM's own reload would leave the packed copy of a tied LM head with the old weights.
3. Starting vLLM changes torch's thread number, default dtype and random states; TRL gets them back.
"""

import functools
import importlib
from typing import Any

import torch


def adapt_trl_to_cpu(dtype: str) -> None:
    """Apply the three changes; `dtype` is the engine's precision. Call before a trainer with `use_vllm` is built."""
    from rlhf.rollouts.process_state import preserved_process_state

    layer_utils = importlib.import_module("vllm.model_executor.layers.utils")
    layer_utils.dispatch_cpu_unquantized_gemm = _keep_plain_weights
    generation = importlib.import_module("trl.generation.vllm_generation")
    start = generation.LLM

    @functools.wraps(start)
    def start_eagerly(**arguments: Any) -> Any:
        with preserved_process_state():
            return start(**arguments, enforce_eager=True, dtype=dtype)

    generation.LLM = start_eagerly


def _keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear
