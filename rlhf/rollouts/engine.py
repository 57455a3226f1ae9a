"""The contract between the trainer and whatever makes completions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Prompt, Sample


class EngineError(RuntimeError):
    """The engine died or refused; the message holds the tail of its log."""


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make: sample `index` of `prompt`, drawn with `seed`."""

    prompt: Prompt
    index: int
    seed: int


class Engine(Protocol):
    """Makes completions with the weights it was last given, held in `dtype`."""

    dtype: torch.dtype

    def generate(
        self, requests: Sequence[Request], sampling: SamplingConfig, *, continues: bool = False
    ) -> list[Sample]:
        """Completions in the order of `requests`, not yet graded, with `text` decoded (special tokens dropped).

        The samples of one prompt share its prefill. `continues`: the prompts begin with prompts and completions of the
        call before (the next turn of dialogues), so what is cached of those may be used; it changes float rounding
        only. Raises EngineError when the engine is gone.
        """

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace all weights in place by (HF parameter name, tensor) pairs, and drop cached prefixes."""

    def checksums(self) -> dict[str, str]:
        """Checksum by HF parameter name, computed from the tensors the engine computes with (see weights.py)."""

    def close(self) -> None:
        """Free the engine; idempotent."""
