"""What flows through a run: `Prompt` in, `Sample` out. Token ids are the currency; text is for graders and people."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
REFERENCE = -1
"""`policy_version` of what the reference policy completed."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for an engine.

    `id` is unique within its source and stable across epochs and runs (e.g. `gsm8k-train:17`).
    `columns` are the row's other fields, handed to reward functions; the gold answer is `columns["answer"]`.
    `text` is what the user wrote: a string, or a list of chat messages (it decides how TRL-style rewards are called).
    `scorer` names who judges correctness: `math` (the grader) or a generated task.
    """

    id: str
    token_ids: tuple[int, ...]
    text: str | list[dict[str, Any]]
    columns: Mapping[str, Any] = field(default_factory=dict)
    scorer: Literal["math", "arithmetic", "countdown"] = "math"

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.id!r} has no tokens: an engine needs at least one")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement of one completion. Three outcomes: what could not be judged is not called wrong."""

    outcome: Literal["right", "wrong", "ungradable"]
    extracted: str | None = None
    reason: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of one prompt.

    `logps[t]` is the engine's log-prob of `completion_ids[t]` under the distribution it was drawn from
    (temperature and truncation included). `completion_ids` ends with the stop token when `finish_reason == "stop"`.
    `rewards` are the unweighted parts by name, None where a function does not apply; `reward` is their weighted sum.
    """

    prompt: Prompt
    index: int
    completion_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int
    seed: int
    text: str = ""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    verdict: Verdict | None = None
    turns: tuple[tuple[int, int], ...] = ()
    turn_rewards: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.completion_ids) != len(self.logps):
            raise ValueError(
                f"sample {self.id!r}: {len(self.completion_ids)} completion ids but {len(self.logps)} log-probs "
                f"(prompt has {len(self.prompt.token_ids)} ids, finish_reason {self.finish_reason!r})"
            )

    @property
    def id(self) -> str:
        return f"{self.prompt.id}/{self.index}"

    @property
    def is_of_reference(self) -> bool:
        return self.policy_version == REFERENCE

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"
