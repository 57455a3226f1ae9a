"""What vLLM is told for each completion, the same for the engine in this process and for servers."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import EngineError, Request

# below this vLLM rounds a temperature up without an error
SMALLEST_TEMPERATURE = 0.01
# tokens of one forward: a prompt is never split, since that would rewind the sample's random numbers
MAX_BATCHED_TOKENS = 8192
# the smallest block of vLLM's CPU attention; the default of 128 would share no prefix of a short prompt
CPU_BLOCK_SIZE = 32


class NonFiniteLogits(EngineError):
    """The weights hold NaN or infinity, or produce them; the message names the sample."""


def sampling_arguments(request: Request, sampling: SamplingConfig, stop_token_ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams`, every one explicit, of types that JSON has."""
    return {
        "n": 1,
        "seed": request.seed,
        "max_tokens": sampling.max_tokens,
        "min_tokens": 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop": None,
        "stop_token_ids": list(stop_token_ids),
        "ignore_eos": True,  # eos is among the stop tokens if it is to stop
        "logprobs": 0,
        "prompt_logprobs": None,
        "detokenize": False,
    }


def check_requests(requests: Sequence[Request], sampling: SamplingConfig, max_model_len: int) -> None:
    """Raises ValueError for what vLLM would change in silence or refuse in the middle of a batch."""
    if 0 < sampling.temperature < SMALLEST_TEMPERATURE:
        raise ValueError(
            f"temperature {sampling.temperature}: vLLM raises it to {SMALLEST_TEMPERATURE}; "
            "use 0 (greedy) or `engine.type: transformers`"
        )
    for request in requests:
        if len(request.prompt.token_ids) + sampling.max_tokens > max_model_len:
            raise ValueError(
                f"prompt {request.prompt.id!r} has {len(request.prompt.token_ids)} tokens; with max_tokens "
                f"{sampling.max_tokens} that exceeds the engine's max_model_len {max_model_len}: raise "
                "engine.max_model_len, or lower max_tokens or max_prompt_tokens"
            )


def make_sample(
    request: Request,
    token_ids: tuple[int, ...],
    logps: tuple[float, ...],
    finish_reason: str,
    version: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Sample:
    """A completion of vLLM as a sample. Raises NonFiniteLogits, or EngineError where it was not finished."""
    if not all(map(math.isfinite, logps)):
        raise NonFiniteLogits(
            f"sample {request.prompt.id}/{request.index}: the logits are not finite (weights of version {version})"
        )
    if finish_reason not in ("stop", "length"):
        raise EngineError(
            f"sample {request.prompt.id}/{request.index}: vLLM ended it with {finish_reason!r}, "
            f"after {len(token_ids)} tokens"
        )
    return Sample(
        prompt=request.prompt,
        index=request.index,
        completion_ids=token_ids,
        logps=logps,
        finish_reason=finish_reason,
        policy_version=version,
        seed=request.seed,
        text=tokenizer.decode(token_ids, skip_special_tokens=True),
    )
