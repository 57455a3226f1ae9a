"""The contract between the trainer and whatever makes completions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Prompt, Sample

Guidance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden_BD, logits_BV) of the tokens that are next, one a row, to the logits that they are drawn from: final hidden
states as they enter the LM head, and logits before temperature and truncation. Deterministic, and each row a function
of that row alone; the engine's draws and log-probs are of what it gives."""


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


@runtime_checkable
class GuidedEngine(Engine, Protocol):
    """An engine that can ask at every token."""

    def guide(self, guidance: Guidance | None, version: int) -> None:
        """Draw from what `guidance` makes of the logits; None: from the logits. With the weights it is the policy,
        whose version is now `version`. Raises EngineError when the engine is gone."""
