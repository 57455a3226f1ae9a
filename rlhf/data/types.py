"""What flows through a run: `Prompt` in, `Sample` out. Token ids are the currency; text is for graders and people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from rlhf.data.turns import Turn, check_turns, own_count, own_positions

Value = TypeVar("Value")
FinishReason = Literal["stop", "length"]
REFERENCE = -1
"""`policy_version` of what the reference policy completed."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready for an engine.

    `id` is unique within its source and stable across epochs and runs (e.g. `gsm8k-train:17`).
    `columns` are the row's other fields, handed to reward functions; the gold answer is `columns["answer"]`.
    `text` is what the user wrote: a string, or a list of chat messages (it decides how TRL-style rewards are called).
    `scorer` names who judges correctness: `math` (the grader), a generated task, or nobody but the environment that
    pays for each turn.
    """

    id: str
    token_ids: tuple[int, ...]
    text: str | list[dict[str, Any]]
    columns: Mapping[str, Any] = field(default_factory=dict)
    scorer: Literal["math", "arithmetic", "countdown", "environment"] = "math"

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
    """One completion of one prompt, or a dialogue that it began.

    `logps[t]` is the engine's log-prob of `completion_ids[t]` under the distribution it was drawn from
    (temperature and truncation included). `completion_ids` ends with the stop token when `finish_reason == "stop"`.
    `rewards` are the unweighted parts by name, None where a function does not apply; `reward` is their weighted sum.

    A dialogue has `turns`: (assistant tokens, environment tokens behind them) for each, all of `completion_ids` as the
    model saw them. `turn_rewards` is what the environment paid for each turn. `messages` are the texts of assistant and
    environment in turn, and `text` is the assistant's alone. `logps` of the environment's tokens are 0 and not used.
    `finish_reason` is "stop" where the environment ended the session, and "length" where it would have gone on.
    Without turns the whole completion is the assistant's. Raises ValueError for lengths that do not fit together.
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
    turns: tuple[Turn, ...] = ()
    turn_rewards: tuple[float, ...] = ()
    messages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.completion_ids) != len(self.logps):
            raise ValueError(
                f"sample {self.id!r}: {len(self.completion_ids)} completion ids but {len(self.logps)} log-probs "
                f"(prompt has {len(self.prompt.token_ids)} ids, finish_reason {self.finish_reason!r})"
            )
        check_turns(self.turns, len(self.completion_ids), f"sample {self.id!r}")
        if len(self.turn_rewards) != len(self.turns):
            raise ValueError(
                f"sample {self.id!r}: {len(self.turns)} turns but {len(self.turn_rewards)} turn rewards "
                f"({len(self.completion_ids)} completion ids)"
            )

    @property
    def id(self) -> str:
        return f"{self.prompt.id}/{self.index}"

    @property
    def is_of_reference(self) -> bool:
        return self.policy_version == REFERENCE

    @property
    def own_tokens(self) -> int:
        """How many completion tokens are the policy's."""
        return own_count(self.turns, len(self.completion_ids))

    def own(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Of one value a completion token, those of the policy's tokens.

        Raises ValueError for another number of values than of completion tokens.
        """
        if len(values) != len(self.completion_ids):
            raise ValueError(f"sample {self.id!r}: {len(values)} values for {len(self.completion_ids)} completion ids")
        if not self.turns:
            return tuple(values)
        return tuple(values[position] for position in own_positions(self.turns, len(self.completion_ids)))

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"
