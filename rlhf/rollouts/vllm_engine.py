"""Completions by vLLM in this process, on CUDA or CPU, with weights updated in place."""

import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig, VllmEngineConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import EngineError, Request
from rlhf.rollouts.process_state import preserved_process_state
from rlhf.rollouts.stop_tokens import resolve_stop_token_ids
from rlhf.rollouts.vllm_cpu import adapt_vllm_to_cpu, forget_random_streams, import_vllm, packed_layers
from rlhf.rollouts.vllm_sampling import (
    CPU_BLOCK_SIZE,
    MAX_BATCHED_TOKENS,
    NonFiniteLogits,
    check_requests,
    make_sample,
    sampling_arguments,
)
from rlhf.rollouts.vllm_weights import load_in_place, tensors_by_hf_name
from rlhf.rollouts.weights import tensor_checksum

LOG_TAIL = 30

# read by vLLM when it is imported or when an engine starts
FORCED_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
DEFAULT_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would pin this process, learner included, to a part of the cores
    "VLLM_CONFIGURE_LOGGING": "0",  # its log goes to `log_file` and into errors; 1 sends it to the console instead
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """Implements `Engine` with `vllm.LLM` in this process.

    `model_path`: a folder or hub id. `max_model_len`: longest prompt + completion in tokens. `dtype`: precision of
    weights and compute. `seed`: of vLLM's global generators only; every sample has its own. `log_file`: vLLM's log is
    appended to it. Torch's default dtype, grad mode, threads and random states are afterwards as they were before.
    Raises ModuleNotFoundError or ImportError where vLLM is missing or of an untested version, EngineError where it does
    not start.
    """

    def __init__(
        self,
        model_path: str,
        *,
        config: VllmEngineConfig,
        max_model_len: int,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        seed: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        log_file: Path | None = None,
    ) -> None:
        os.environ.update(FORCED_ENVIRONMENT)
        for name, value in DEFAULT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.dtype = dtype
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.version = 0
        self._dead: str | None = None  # for good
        self._mixed: str | None = None  # until all weights are loaded
        self._log: deque[str] = deque(maxlen=LOG_TAIL)
        arguments: dict[str, Any] = {
            "model": model_path,
            "tokenizer": model_path,
            "skip_tokenizer_init": True,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "dtype": str(dtype).removeprefix("torch."),
            "seed": seed % 2**31,
            "max_model_len": max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": max(max_model_len, MAX_BATCHED_TOKENS),
            "enforce_eager": config.enforce_eager,
            "enable_prefix_caching": True,
            # a split prompt rewinds the sample's generator by a count of draws, which only CUDA generators have
            "enable_chunked_prefill": False,
            # neither default sampling settings nor stop tokens from the checkpoint
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "use_tqdm_on_load": False,
        }
        with preserved_process_state():
            self._llm = self._start(config, arguments, log_file)

    def _start(self, config: VllmEngineConfig, arguments: dict[str, Any], log_file: Path | None) -> Any:
        vllm = import_vllm()
        from vllm.platforms import current_platform

        self._handlers = _collect_log(self._log, log_file)
        if current_platform.is_cpu():
            adapt_vllm_to_cpu()
            arguments |= {
                "kv_cache_memory_bytes": int(config.cpu_kv_cache_gib * 2**30),
                "block_size": CPU_BLOCK_SIZE,
            }
        else:
            arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        self._owns_process_group = not torch.distributed.is_initialized()
        if not self._owns_process_group and torch.distributed.get_world_size() > 1:
            # one engine a rank on the rank's own device, in the process group that is there
            arguments["distributed_executor_backend"] = "external_launcher"
        try:
            return vllm.LLM(**arguments)
        except Exception as error:
            self._dead = "it did not start"
            raise self._error("vLLM did not start", error) from error

    def generate(
        self, requests: Sequence[Request], sampling: SamplingConfig, *, continues: bool = False
    ) -> list[Sample]:
        """See `Engine.generate`; the same requests in one batch give the same samples, another batch other rounding.

        Raises ValueError for a prompt that leaves no room for `max_tokens`, EngineError when the engine fails.
        """
        self._check_alive()
        if not requests:
            return []
        check_requests(requests, sampling, self.max_model_len)
        stop_token_ids = sorted(resolve_stop_token_ids(sampling.stop_token_ids, self.tokenizer))
        prompts = [{"prompt_token_ids": list(request.prompt.token_ids)} for request in requests]
        from vllm import SamplingParams

        parameters = [SamplingParams(**sampling_arguments(each, sampling, stop_token_ids)) for each in requests]
        try:
            # a prefix cached by an earlier call would change this call's rounding, and with it now and then a token;
            # the turns of dialogues are always called in the same order
            if not continues:
                self._llm.reset_prefix_cache()
            forget_random_streams()
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        except Exception as error:
            self._dead = "an earlier generation failed"
            raise self._error("vLLM failed while generating", error) from error
        return [self._sample(request, output.outputs[0]) for request, output in zip(requests, outputs, strict=True)]

    def _sample(self, request: Request, output: Any) -> Sample:
        token_ids = tuple(output.token_ids)
        logps = tuple(position[token].logprob for position, token in zip(output.logprobs, token_ids, strict=True))
        try:
            return make_sample(request, token_ids, logps, output.finish_reason, self.version, self.tokenizer)
        except NonFiniteLogits:
            self._mixed = "its weights hold NaN or infinity"
            raise
        except EngineError as error:
            raise EngineError(f"{error}\n{self._log_tail()}") from error

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Engine.load_weights`. Raises KeyError for missing parameters; after any error the engine refuses to
        generate until all weights are loaded."""
        self._check_alive(needs_weights=False)
        self._mixed = "a weight update broke off half-way"
        self._llm.apply_model(lambda model: load_in_place(model, weights))
        self._llm.reset_prefix_cache()
        self._mixed = None
        self.version = version

    def checksums(self) -> dict[str, str]:
        """See `Engine.checksums`; a tied LM head is reported under its own name too.

        Raises EngineError where a layer computes with a repacked copy of its weight, whose contents cannot be checked.
        """
        self._check_alive(needs_weights=False)

        def read(model: torch.nn.Module) -> dict[str, str]:
            packed = packed_layers(model)
            if packed:
                raise EngineError(
                    f"vLLM repacked {len(packed)} layers, e.g. {packed[:3]}: weight updates would not reach them"
                )
            return {name: tensor_checksum(tensor) for name, tensor in tensors_by_hf_name(model)}

        return self._llm.apply_model(read)[0]

    def close(self) -> None:
        """Free the engine; idempotent."""
        self._dead = "it is closed"
        if self._llm is not None:
            from vllm.distributed import destroy_distributed_environment, destroy_model_parallel

            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            destroy_model_parallel()
            if self._owns_process_group:
                destroy_distributed_environment()
        for handler in self._handlers:
            logging.getLogger("vllm").removeHandler(handler)
            handler.close()
        self._handlers = []

    def _check_alive(self, needs_weights: bool = True) -> None:
        reason = self._dead or (self._mixed if needs_weights else None)
        if reason is not None:
            raise EngineError(f"the vLLM engine cannot be used: {reason}")

    def _error(self, what: str, error: Exception) -> EngineError:
        return EngineError(f"{what}: {type(error).__name__}: {error}\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(["the last lines of its log:", *self._log]) if self._log else "its log is empty"


class _Tail(logging.Handler):
    """Keeps the last lines of a log in memory, for error messages."""

    def __init__(self, lines: deque[str]) -> None:
        super().__init__()
        self.lines = lines
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def _collect_log(lines: deque[str], log_file: Path | None) -> list[logging.Handler]:
    handlers: list[logging.Handler] = [_Tail(lines)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        handlers[-1].setFormatter(handlers[0].formatter)
    logger = logging.getLogger("vllm")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    return handlers
