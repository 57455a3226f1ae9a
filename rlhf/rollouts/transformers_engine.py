"""Completions by the transformers model itself: repeatable to the bit, and the reference for other engines."""

from collections.abc import Iterable, Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig
from rlhf.data.types import Sample
from rlhf.rollouts.decoding import Completion, check_decodable, decode
from rlhf.rollouts.engine import EngineError, Guidance, Request
from rlhf.rollouts.slab_cache import ATTENTION
from rlhf.rollouts.stop_tokens import resolve_stop_token_ids
from rlhf.rollouts.weights import tensor_checksum

CLOSED = "it is closed"


class TransformersEngine:
    """Implements `GuidedEngine` with its own copy of the model, so that a weight sync is a real one.

    `model_path`: a folder or hub id. `dtype`: precision of weights and compute. `device`: none given, the current CUDA
    device, else the CPU. `revision` and `trust_remote_code` mean what they mean in `ModelConfig`.
    Raises ValueError for an architecture that keeps other state than keys and values.
    """

    def __init__(
        self,
        model_path: str,
        *,
        config: TransformersEngineConfig,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if device is None:
            device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        self.config = config
        self.dtype = dtype
        self.tokenizer = tokenizer
        self.version = 0
        self.guidance: Guidance | None = None
        model = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=dtype,
            attn_implementation=ATTENTION,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        check_decodable(model)
        self.model = model.to(device).eval().requires_grad_(False)
        self._unusable: str | None = None

    def generate(
        self, requests: Sequence[Request], sampling: SamplingConfig, *, continues: bool = False
    ) -> list[Sample]:
        """See `Engine.generate`; bitwise repeatable for the same requests. Nothing is cached between calls.

        Raises EngineError after `close`, after a weight update that failed, and for non-finite logits; ValueError for a
        prompt that leaves no room for `max_tokens`.
        """
        if self._unusable is not None:
            raise EngineError(f"the transformers engine cannot be used: {self._unusable}")
        self._check_lengths(requests, sampling)
        stop_token_ids = resolve_stop_token_ids(sampling.stop_token_ids, self.tokenizer)
        # samples of one prompt side by side, so that they share a prefill even where a chunk ends
        first_seen: dict[tuple[int, ...], int] = {}
        for request in requests:
            first_seen.setdefault(request.prompt.token_ids, len(first_seen))
        order = sorted(range(len(requests)), key=lambda index: first_seen[requests[index].prompt.token_ids])
        samples: dict[int, Sample] = {}
        for start in range(0, len(order), self.config.max_rows):
            chunk = order[start : start + self.config.max_rows]
            completions = self._decode([requests[index] for index in chunk], stop_token_ids, sampling)
            for index, completion in zip(chunk, completions, strict=True):
                samples[index] = self._sample(requests[index], completion)
        return [samples[index] for index in range(len(requests))]

    def _decode(
        self, requests: list[Request], stop_token_ids: frozenset[int], sampling: SamplingConfig
    ) -> list[Completion]:
        prompts = [request.prompt.token_ids for request in requests]
        seeds = [request.seed for request in requests]
        try:
            return decode(self.model, prompts, seeds, stop_token_ids, sampling, self.guidance)
        except FloatingPointError as error:
            ids = ", ".join(f"{request.prompt.id}/{request.index}" for request in requests[:8])
            raise EngineError(
                f"{error} (weights of version {self.version}, rows in order: {ids}, ...): "
                "the weights, or what guides them, hold NaN or infinity"
            ) from error

    def _sample(self, request: Request, completion: Completion) -> Sample:
        return Sample(
            prompt=request.prompt,
            index=request.index,
            completion_ids=tuple(completion.token_ids),
            logps=tuple(completion.logps),
            finish_reason=completion.finish_reason,
            policy_version=self.version,
            seed=request.seed,
            text=self.tokenizer.decode(completion.token_ids, skip_special_tokens=True),
        )

    def _check_lengths(self, requests: Sequence[Request], sampling: SamplingConfig) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for request in requests:
            if limit is not None and len(request.prompt.token_ids) + sampling.max_tokens > limit:
                raise ValueError(
                    f"prompt {request.prompt.id!r} has {len(request.prompt.token_ids)} tokens; with max_tokens "
                    f"{sampling.max_tokens} that exceeds the model's {limit} positions: "
                    "lower max_tokens or max_prompt_tokens"
                )

    def guide(self, guidance: Guidance | None, version: int) -> None:
        """See `GuidedEngine.guide`; it stays when weights are loaded."""
        if self._unusable == CLOSED:
            raise EngineError(f"the transformers engine cannot be used: {CLOSED}")
        self.guidance, self.version = guidance, version

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Engine.load_weights`. A tied weight may come under either or both of its names.

        Raises KeyError for unknown or missing names, ValueError for another shape; the engine then holds mixed weights
        and refuses to generate until all weights are loaded. Raises EngineError after `close`.
        """
        if self._unusable == CLOSED:
            raise EngineError(f"the transformers engine cannot be used: {CLOSED}")
        self._unusable = "a weight update broke off half-way"
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        missing = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for name, tensor in weights:
            if name not in parameters:
                raise KeyError(f"the engine's model has no parameter {name!r}; it has e.g. {sorted(parameters)[:3]}")
            target = parameters[name]
            if target.shape != tensor.shape:
                raise ValueError(
                    f"parameter {name!r}: the engine has {tuple(target.shape)}, given {tuple(tensor.shape)}"
                )
            target.copy_(tensor)
            missing.pop(id(target), None)
        if missing:
            names = sorted(missing.values())
            raise KeyError(
                f"{len(names)} parameters were not given, e.g. {names[:3]}: all weights must be replaced together"
            )
        self._unusable = None
        self.version = version

    def checksums(self) -> dict[str, str]:
        """See `Engine.checksums`; a tied weight appears under both of its names."""
        return {
            name: tensor_checksum(parameter) for name, parameter in self.model.named_parameters(remove_duplicate=False)
        }

    def close(self) -> None:
        """Free the weights; idempotent."""
        self._unusable = CLOSED
        self.model.to("meta")
