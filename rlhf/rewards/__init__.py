"""Judging completions: the math grader, its killable worker processes, and the reward functions.

Names are imported on first use, so that a grading worker that needs only `grade` does not pay for the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.rewards.grading import grade
    from rlhf.rewards.pool import GraderPool
    from rlhf.rewards.scorers import score_completion
    from rlhf.rewards.scoring import RewardError, RewardScorer

__all__ = ["GraderPool", "RewardError", "RewardScorer", "grade", "score_completion"]

_HOMES = {
    "grade": "rlhf.rewards.grading",
    "GraderPool": "rlhf.rewards.pool",
    "score_completion": "rlhf.rewards.scorers",
    "RewardError": "rlhf.rewards.scoring",
    "RewardScorer": "rlhf.rewards.scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
