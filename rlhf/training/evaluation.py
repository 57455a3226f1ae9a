"""What an evaluation in training is, and the one on held-out prompts: sampled by the engine that makes the rollouts,
judged apart from the rewards."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from rlhf.config.rewards import CorrectnessConfig, RewardsConfig
from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Prompt
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.engine import Engine
from rlhf.rollouts.requests import make_requests
from rlhf.training.collectives import gather_lists
from rlhf.training.statistics import wilson_interval


class Evaluator(Protocol):
    """Measures the policy that the engine holds. Collective: every rank calls it and gets the result."""

    longest_sequence: int
    """Prompt plus completion tokens that the engine must hold."""

    def evaluate(self, engine: Engine, step: int) -> list[dict[str, Any]]:
        """Lines for evaluations.jsonl, one for each set of questions: `step`, `name`, `accuracy` with its 95 % interval
        `low` and `high`, counts `right`, `wrong`, `ungradable` of `n` completions, `mean_tokens`, `truncated_share`;
        and `figures` where there are more, by name. Where sessions are played (`DialogueEvaluator`), `reward_per_turn`
        stands for accuracy and counts of verdicts."""

    def close(self) -> None:
        """End its grading processes."""


class HeldOutEvaluator:
    """Evaluates on fixed prompts with one completion each; the ranks share the prompts."""

    def __init__(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed: int, rank: int, world_size: int
    ) -> None:
        self.longest_sequence = max((len(prompt.token_ids) for prompt in prompts), default=0) + sampling.max_tokens
        self.prompts = list(prompts)[rank::world_size]
        self.sampling = sampling
        self.seed = seed
        self.scorer = RewardScorer(RewardsConfig(functions=[CorrectnessConfig()]))

    def evaluate(self, engine: Engine, step: int) -> list[dict[str, Any]]:
        """One line. Ungradable completions are counted apart, and not called right."""
        requests = make_requests(self.prompts, 1, self.seed, -1)
        samples = self.scorer.score(engine.generate(requests, self.sampling)) if requests else []
        rows = gather_lists([(s.verdict.outcome, len(s.completion_ids), s.truncated) for s in samples if s.verdict])
        counts = {outcome: sum(row[0] == outcome for row in rows) for outcome in ("right", "wrong", "ungradable")}
        low, high = wilson_interval(counts["right"], len(rows))
        record = {
            "step": step,
            "name": "held_out",
            **counts,
            "n": len(rows),
            "accuracy": counts["right"] / len(rows) if rows else math.nan,
            "low": low,
            "high": high,
            "mean_tokens": sum(row[1] for row in rows) / max(1, len(rows)),
            "truncated_share": sum(row[2] for row in rows) / max(1, len(rows)),
        }
        return [record]

    def close(self) -> None:
        self.scorer.close()
