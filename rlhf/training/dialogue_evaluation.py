"""Held-out sessions with an environment: what a turn earns, with an interval over sessions."""

import math
from collections.abc import Sequence
from typing import Any

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.types import Prompt
from rlhf.rollouts.dialogues import Dialogues
from rlhf.rollouts.engine import Engine
from rlhf.rollouts.requests import make_requests
from rlhf.training.collectives import gather_lists
from rlhf.training.statistics import Z_95


class DialogueEvaluator:
    """An `Evaluator` that plays one session a prompt; the ranks share the prompts."""

    def __init__(
        self, prompts: Sequence[Prompt], dialogues: Dialogues, sampling: SamplingConfig, seed: int, rank: int,
        world_size: int,
    ) -> None:  # fmt: skip
        settings = dialogues.config
        longest = settings.turns * (sampling.max_tokens + settings.max_reply_tokens)
        self.longest_sequence = max((len(prompt.token_ids) for prompt in prompts), default=0) + longest
        self.prompts = list(prompts)[rank::world_size]
        self.dialogues, self.sampling, self.seed = dialogues, sampling, seed

    def evaluate(self, engine: Engine, step: int) -> list[dict[str, Any]]:
        """One line: `step`, `name`, `reward_per_turn` with its 95 % interval `low` and `high`, `reward_per_session`,
        `n` sessions and their `turns`, `mean_tokens` of the model in a session, `truncated_share`. There is no
        accuracy."""
        requests = make_requests(self.prompts, 1, self.seed, -1)
        samples = self.dialogues.play(engine, requests, self.sampling) if requests else []
        rows = gather_lists([(math.fsum(s.turn_rewards), len(s.turns), s.own_tokens, s.truncated) for s in samples])
        value, low, high = reward_per_turn([row[0] for row in rows], [row[1] for row in rows])
        count = max(1, len(rows))
        return [{
            "step": step, "name": "held_out", "reward_per_turn": value, "low": low, "high": high,
            "reward_per_session": math.fsum(row[0] for row in rows) / count, "n": len(rows),
            "turns": sum(row[1] for row in rows), "mean_tokens": sum(row[2] for row in rows) / count,
            "truncated_share": sum(row[3] for row in rows) / count,
        }]  # fmt: skip

    def close(self) -> None:
        """Nothing to end."""


def reward_per_turn(rewards: Sequence[float], turns: Sequence[int]) -> tuple[float, float, float]:
    """(sum of rewards / sum of turns, low, high) over sessions: a ratio estimate with its 95 % interval.

    Turns of a session depend on each other, so the interval counts sessions: with r the ratio and e_i = R_i - r T_i,
    the variance of r is n / (n - 1) sum e_i^2 / (sum T_i)^2 (the ratio estimator's, Cochran 1977, Sampling Techniques,
    section 2.11, without the finite population's correction). NaN for no sessions, and bounds of NaN for a single one.
    """
    total, count = sum(turns), len(turns)
    if not total:
        return math.nan, math.nan, math.nan
    ratio = math.fsum(rewards) / total
    if count < 2:
        return ratio, math.nan, math.nan
    squares = math.fsum((reward - ratio * length) ** 2 for reward, length in zip(rewards, turns, strict=True))
    half = Z_95 * math.sqrt(count / (count - 1) * squares) / total
    return ratio, ratio - half, ratio + half
