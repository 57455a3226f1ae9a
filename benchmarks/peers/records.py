"""What one run of one contestant measured, and the arithmetic over runs."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

UPDATE_PARTS = ("old_logp", "forward", "backward", "optimizer")
"""Seconds that together are `update`, where a contestant tells them apart."""
PHASES = ("generate", "sync", "reward", "update", *UPDATE_PARTS, "other", "total")
LAST = 5
"""The reward at the end of a run is the mean over this many last steps."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. `seconds` by phase, `total` among them; `prompts` is a digest of the step's prompts."""

    seconds: dict[str, float]
    sampled_tokens: int
    reward: float
    prompts: str
    model_tokens: int | None = None
    """Positions that went through the model in the update, padding included; None where not told."""
    trained_tokens: int | None = None
    """Completion tokens that the loss was taken over; None where not told."""


@dataclass(frozen=True)
class RunRecord:
    """One process. `other_cpus`: how many cores other processes kept busy meanwhile, on average."""

    contestant: str
    steps: list[StepRecord]
    wall_seconds: float
    peak_rss_bytes: int
    other_cpus: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def steps_seconds(self) -> float:
        """All steps, the first included; without starting and ending the process."""
        return sum(step.seconds["total"] for step in self.steps)

    @property
    def final_reward(self) -> float:
        return statistics.fmean(step.reward for step in self.steps[-LAST:])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "RunRecord":
        return cls(**{**record, "steps": [StepRecord(**step) for step in record["steps"]]})


@dataclass(frozen=True)
class Summary:
    """Medians over the steps of all rounds of a contestant, the first step of each process left out.

    `seconds` by phase. `steps_seconds`, `wall_seconds`, `peak_rss_bytes` and `other_cpus` are medians over rounds,
    `first_reward` and `final_reward` means over rounds of the first and last steps' rewards.
    """

    contestant: str
    rounds: int
    measured_steps: int
    seconds: dict[str, float]
    sampled_tokens: float
    model_tokens: float | None
    trained_tokens: float | None
    tokens_per_second: float
    steps_seconds: float
    wall_seconds: float
    peak_rss_bytes: float
    other_cpus: float
    first_reward: float
    final_reward: float


def phase_seconds(step: StepRecord) -> dict[str, float]:
    """The step's seconds with `update` and `other` filled in: the sum of its parts, and what no phase accounts for."""
    seconds = dict(step.seconds)
    if "update" not in seconds:
        seconds["update"] = sum(seconds.get(name, 0.0) for name in UPDATE_PARTS)
    known = sum(seconds.get(name, 0.0) for name in ("generate", "sync", "reward", "update"))
    seconds["other"] = seconds["total"] - known
    return seconds


def summarise(runs: Sequence[RunRecord]) -> Summary:
    """The summary of one contestant's runs.

    Raises ValueError for runs of several contestants, and where a run has no step besides the first.
    """
    names = {run.contestant for run in runs}
    if len(names) != 1:
        raise ValueError(f"a summary is of one contestant, not of {sorted(names)}")
    for run in runs:
        if len(run.steps) < 2:
            raise ValueError(f"{run.contestant} ran {len(run.steps)} step(s): the first is dropped, so 2 are needed")
    steps = [step for run in runs for step in run.steps[1:]]
    filled = [phase_seconds(step) for step in steps]
    return Summary(
        contestant=runs[0].contestant,
        rounds=len(runs),
        measured_steps=len(steps),
        seconds={
            phase: statistics.median(row[phase] for row in filled)
            for phase in PHASES
            if all(phase in row for row in filled)
        },
        sampled_tokens=statistics.median(step.sampled_tokens for step in steps),
        model_tokens=_median_of_told([step.model_tokens for step in steps]),
        trained_tokens=_median_of_told([step.trained_tokens for step in steps]),
        tokens_per_second=statistics.median(
            step.sampled_tokens / step.seconds["generate"] for step in steps if step.seconds["generate"] > 0
        ),
        steps_seconds=statistics.median(run.steps_seconds for run in runs),
        wall_seconds=statistics.median(run.wall_seconds for run in runs),
        peak_rss_bytes=statistics.median(run.peak_rss_bytes for run in runs),
        other_cpus=statistics.median(run.other_cpus for run in runs),
        first_reward=statistics.fmean(run.steps[0].reward for run in runs),
        final_reward=statistics.fmean(run.final_reward for run in runs),
    )


def _median_of_told(values: Sequence[int | None]) -> float | None:
    told = [value for value in values if value is not None]
    return statistics.median(told) if told else None


def different_prompts(runs: Sequence[RunRecord]) -> list[str]:
    """Which runs did not see the prompts of the first run, step for step; empty where all did."""
    expected = [step.prompts for step in runs[0].steps]
    return [
        f"{run.contestant}, step {index + 1}"
        for run in runs
        for index, (step, digest) in enumerate(zip(run.steps, expected, strict=True))
        if step.prompts != digest
    ]
