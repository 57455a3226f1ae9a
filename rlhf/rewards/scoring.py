"""From samples to rewards: every configured function applied, parts kept by name, their weighted sum, failures."""

import math
from dataclasses import replace

from rlhf.config.rewards import (
    CallableConfig,
    CorrectnessConfig,
    EnvironmentRewardConfig,
    FormatConfig,
    JudgeConfig,
    LengthConfig,
    RepetitionConfig,
    RewardConfig,
    RewardModelConfig,
    RewardsConfig,
    SoftOverlongConfig,
)
from rlhf.data.types import Sample, Verdict
from rlhf.rewards import functions
from rlhf.rewards.callables import RewardError, RewardFunction, call_all, load_function
from rlhf.rewards.judge import PairwiseJudge
from rlhf.rewards.model_scores import ModelScores
from rlhf.rewards.pool import GraderPool
from rlhf.rewards.scorers import grading_task

Parts = list[float | None]


class RewardScorer:
    """Scores samples as `config` says. Holds worker processes while correctness is among the rewards: `close()` it.

    A part is named after its type, or after the user's function; a second one of the same name becomes `name_2`. A
    judge compares those completions of a prompt that are scored together.
    Raises as `ModelScores` does where a reward model cannot be used.
    """

    def __init__(self, config: RewardsConfig) -> None:
        self.config = config
        self.parts: dict[str, RewardConfig] = {}
        self.callables: dict[str, RewardFunction] = {}
        self.limits_s: dict[str, float] = {}
        self.scorers: dict[str, ModelScores | PairwiseJudge] = {}
        for function in config.functions:
            name = function.type
            if isinstance(function, (CallableConfig, JudgeConfig)):
                name = function.path.rpartition(":")[2]
            name = _unused(name, self.parts)
            self.parts[name] = function
            if isinstance(function, CallableConfig):
                self.callables[name], self.limits_s[name] = load_function(function.path), function.timeout_s
            if isinstance(function, RewardModelConfig):
                self.scorers[name] = ModelScores(function)
            if isinstance(function, JudgeConfig):
                self.scorers[name] = PairwiseJudge(name, function)
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
        correctness 0 and says so in its verdict.
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
        called |= {name: list(model.score(samples)) for name, model in self.scorers.items()}
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
        parts: dict[str, Parts] = {}
        failures: dict[int, str] = {}
        for name, outcome in call_all(self.callables, samples, self.limits_s).items():
            if isinstance(outcome, RewardError):
                outcome = self._one_by_one(name, samples, outcome, failures)
            parts[name] = outcome
        return parts, failures

    def _one_by_one(
        self, name: str, samples: list[Sample], error: RewardError, failures: dict[int, str]
    ) -> Parts:
        """Call a failed function for each sample alone, to find the one it fails for."""
        values: Parts = []
        culprits: dict[int, RewardError] = {}
        for index, sample in enumerate(samples):
            alone = call_all({name: self.callables[name]}, [sample], self.limits_s)[name]
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
    tokens = sample.own_tokens
    match config:
        case EnvironmentRewardConfig():
            return math.fsum(sample.turn_rewards)
        case CorrectnessConfig():
            assert verdict is not None
            return functions.correctness(verdict)
        case FormatConfig(shape=shape):
            return functions.format(sample.text, shape)
        case LengthConfig(target_tokens=target):
            return functions.length(tokens, target)
        case RepetitionConfig(ngram=ngram):
            return functions.repetition(sample.own(sample.completion_ids), ngram)
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
