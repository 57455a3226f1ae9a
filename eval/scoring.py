"""Verdicts on completions, made in killable processes: the grader, a choice's letter, a generated task's scorer."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.choice import score_choice
from eval.questions import Question
from rlhf.data.types import Prompt, Verdict
from rlhf.rewards.pool import GraderPool
from rlhf.rewards.scorers import grading_task, score_task


def score(task: Mapping[str, Any]) -> Verdict:
    """Judge one task made by `answer_task`; runs in a worker process."""
    if task["scorer"] == "choice":
        return score_choice(task["completion"], task["gold"], task["options"])
    return score_task(task)


def answer_task(question: Question, completion: str) -> dict[str, Any]:
    """What a worker needs to judge `completion`."""
    if question.scorer == "choice":
        return {
            "scorer": "choice",
            "completion": completion,
            "gold": question.gold,
            "options": list(question.columns["options"]),
        }
    # a prompt needs a token; the scorers look at its text only
    columns = {**question.columns, "answer": question.gold}
    return grading_task(Prompt(question.id, (0,), question.text, columns, question.scorer), completion)


def judge(pool: GraderPool, questions: Sequence[Question], completions: Sequence[str]) -> list[Verdict]:
    """One verdict for each (question, completion), in order."""
    return pool.map([answer_task(q, c) for q, c in zip(questions, completions, strict=True)])


def make_pool(workers: int, timeout_s: float) -> GraderPool:
    return GraderPool(workers, timeout_s, function="eval.scoring:score")
