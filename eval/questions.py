"""What an evaluation is made of: a question to ask, and the line that each answer leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["right", "wrong", "ungradable"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark.

    `id` is stable and unique within the benchmark, e.g. `gsm8k:17`. `scorer` names who judges the completion: `math`
    (the grader), `choice` (a letter), or a generated task's own. `columns` is what the scorer needs besides the gold
    answer (e.g. countdown's `numbers` and `target`). `level` and `subject` are for tables.
    """

    id: str
    text: str
    gold: str
    scorer: Literal["math", "choice", "arithmetic", "countdown"] = "math"
    columns: Mapping[str, Any] = field(default_factory=dict)
    level: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of one question with its verdict: a line of samples.jsonl."""

    benchmark: str
    id: str
    sample: int
    seed: int
    prompt: str
    completion: str
    tokens: int
    finish_reason: Literal["stop", "length"]
    gold: str
    outcome: Outcome
    extracted: str | None
    reason: str
    timed_out: bool = False
    level: str | None = None
    subject: str | None = None
    score: float | None = None
    """A reward model's score, where one was asked."""
