"""From samples to rewards: every configured function applied, parts kept by name, their weighted sum, failures."""

import math
from collections.abc import Sequence
from dataclasses import replace

from rlhf.config.rewards import (
    CallableConfig,
    CorrectnessConfig,
    FormatConfig,
    LengthConfig,
    RepetitionConfig,
    RewardConfig,
    RewardsConfig,
    SoftOverlongConfig,
)
from rlhf.data.types import Sample, Verdict
from rlhf.rewards import functions
from rlhf.rewards.callables import RewardError, RewardFunction, call_all, load_function
from rlhf.rewards.pool import GraderPool
from rlhf.rewards.scorers import grading_task

MIN_CALLABLE_LIMIT_S = 60.0
"""A user's function has `pool.timeout_s` per sample, and at least this long: its first call may load a model."""

Parts = list[float | None]


class RewardScorer:
    """Scores samples as `config` says. Holds worker processes while correctness is among the rewards: `close()` it.

    A part is named after its type, or after the user's function; a second one of the same name becomes `name_2`.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self.config = config
        self.parts: dict[str, RewardConfig] = {}
        self.callables: dict[str, RewardFunction] = {}
        for function in config.functions:
            name = function.type
            if isinstance(function, CallableConfig):
                name = function.path.rpartition(":")[2]
            name = _unused(name, self.parts)
            self.parts[name] = function
            if isinstance(function, CallableConfig):
                self.callables[name] = load_function(function.path)
        graded = any(isinstance(f, CorrectnessConfig) for f in config.functions)
        self.pool = GraderPool(config.pool.workers, config.pool.timeout_s) if graded else None

    def __enter__(self) -> "RewardScorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        if self.pool is not None:
            self.pool.close()

    def score(self, samples: list[Sample]) -> list[Sample]:
        """The samples, in order, with `rewards` (unweighted parts by name), `reward` (weighted sum) and `verdict`.

        A part that is None does not count in the sum; without any part the reward is 0. An ungradable sample has
        correctness 0 and says so in its verdict; count them with `grading_metrics`.
        Raises `RewardError`, naming function and sample, when a user's function fails; with `on_error: ungradable`, the
        samples it fails for have None there and an ungradable verdict. Raises `ValueError` where a gold column is
        missing.
        """
        if not samples:
            return []
        verdicts: list[Verdict | None] = [None] * len(samples)
        if self.pool is not None:
            verdicts = list(self.pool.map([grading_task(s.prompt, s.text) for s in samples]))
        called, failures = self._call_user_functions(samples)
        parts = {
            name: called[name]
            if name in called
            else [_built_in(config, s, v) for s, v in zip(samples, verdicts, strict=True)]
            for name, config in self.parts.items()
        }
        return [
            replace(
                sample,
                rewards={name: values[index] for name, values in parts.items()},
                reward=self._weighted_sum({name: values[index] for name, values in parts.items()}),
                verdict=_failed(verdicts[index], failures[index]) if index in failures else verdicts[index],
            )
            for index, sample in enumerate(samples)
        ]

    def _weighted_sum(self, parts: dict[str, float | None]) -> float:
        return math.fsum(self.parts[name].weight * value for name, value in parts.items() if value is not None)

    def _call_user_functions(self, samples: list[Sample]) -> tuple[dict[str, Parts], dict[int, str]]:
        """Parts by function, and the reason by index for samples that a function failed for."""
        if not self.callables:
            return {}, {}
        limit = max(MIN_CALLABLE_LIMIT_S, self.config.pool.timeout_s * len(samples))
        parts: dict[str, Parts] = {}
        failures: dict[int, str] = {}
        for name, outcome in call_all(self.callables, samples, limit).items():
            if isinstance(outcome, RewardError):
                outcome = self._one_by_one(name, samples, limit, outcome, failures)
            parts[name] = outcome
        return parts, failures

    def _one_by_one(
        self, name: str, samples: list[Sample], limit: float, error: RewardError, failures: dict[int, str]
    ) -> Parts:
        """Call a failed function for each sample alone, to find the one it fails for."""
        values: Parts = []
        culprits: dict[int, RewardError] = {}
        for index, sample in enumerate(samples):
            alone = call_all({name: self.callables[name]}, [sample], limit)[name]
            if isinstance(alone, RewardError):
                if self.config.on_error == "raise":
                    raise alone
                culprits[index] = alone
                values.append(None)
            else:
                values.append(alone[0])
        if not culprits:
            if self.config.on_error == "raise":
                raise error
            culprits, values = dict.fromkeys(range(len(samples)), error), [None] * len(samples)
        for index, culprit in culprits.items():
            failures.setdefault(index, str(culprit))
        return values


def _built_in(config: RewardConfig, sample: Sample, verdict: Verdict | None) -> float:
    tokens = len(sample.completion_ids)
    match config:
        case CorrectnessConfig():
            assert verdict is not None
            return functions.correctness(verdict)
        case FormatConfig(shape=shape):
            return functions.format(sample.text, shape)
        case LengthConfig(target_tokens=target):
            return functions.length(tokens, target)
        case RepetitionConfig(ngram=ngram):
            return functions.repetition(sample.completion_ids, ngram)
        case SoftOverlongConfig(max_tokens=most, buffer_tokens=buffer):
            return functions.soft_overlong(tokens, most, buffer)
    raise TypeError(f"no reward function for {type(config).__name__}")


def _failed(verdict: Verdict | None, reason: str) -> Verdict:
    return replace(verdict or Verdict("ungradable"), outcome="ungradable", reason=reason)


def _unused(name: str, taken: dict[str, RewardConfig]) -> str:
    count, candidate = 1, name
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def grading_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over scored samples, ready to be logged.

    `reward/mean`, `reward/std` (population), `reward/<part>` (mean where the part applies); with verdicts also
    `grading/accuracy` (right among the gradable), `grading/ungradable` and `grading/timed_out` (shares of all).
    A figure without any sample to average is left out.
    """
    metrics: dict[str, float] = {}
    totals = [s.reward for s in samples if s.reward is not None]
    if totals:
        mean = math.fsum(totals) / len(totals)
        metrics["reward/mean"] = mean
        metrics["reward/std"] = math.sqrt(math.fsum((t - mean) ** 2 for t in totals) / len(totals))
    for name in dict.fromkeys(name for s in samples for name in s.rewards):
        values = [v for s in samples if (v := s.rewards.get(name)) is not None]
        if values:
            metrics[f"reward/{name}"] = math.fsum(values) / len(values)
    verdicts = [s.verdict for s in samples if s.verdict is not None]
    if verdicts:
        gradable = [v for v in verdicts if v.outcome != "ungradable"]
        if gradable:
            metrics["grading/accuracy"] = sum(v.outcome == "right" for v in gradable) / len(gradable)
        metrics["grading/ungradable"] = 1 - len(gradable) / len(verdicts)
        metrics["grading/timed_out"] = sum(v.timed_out for v in verdicts) / len(verdicts)
    return metrics
