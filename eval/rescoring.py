"""Scores of a reward model for answers that are made and judged: the second pass of `python -m eval run`.

It begins when the engine is closed, so that the reward model has the memory to itself. Each part file is replaced by
the same answers with their scores, in one rename: a part is scored or it is not, and a run that was killed goes on with
the parts whose answers have no score. What is scored is the question's text and the completion, whatever template the
policy was asked with.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from eval.artefacts import read_part
from eval.asking import Batch
from eval.checkpoints import model_config
from eval.progress import EvalProgress
from eval.questions import Answer
from eval.settings import EvalSettings
from rlhf.config.model import ModelConfig
from rlhf.models.reward_model import RewardModel, check_reward_model
from rlhf.training.run_folder import json_line, write_atomically


def reward_model_source(settings: EvalSettings) -> ModelConfig | None:
    """The checkpoint that `settings` name as the reward model, None where they name none.

    Raises OSError where there is no such checkpoint, and RewardModelError where it is no reward model.
    """
    if settings.reward_model is None:
        return None
    changes = {"model": settings.reward_model, "revision": settings.reward_model_revision}
    source = model_config(settings.model_copy(update=changes))
    check_reward_model(source)
    return source


def rescore(
    source: ModelConfig, batches: Sequence[tuple[Batch, Path]], device: torch.device, progress: EvalProgress
) -> None:
    """Give every answer in these batches' part files its score; parts that have theirs are left as they are.

    The batches of a forward pass are made within one part, so the scores do not depend on where a run was killed.
    Warns, with the count, of texts that are longer than the reward model takes. Raises like `RewardModel` and
    `RewardModel.score`, naming the question and the sample.
    """
    parts = [(batch, file, read_part(file)) for batch, file in batches]
    progress.start("reward model", sum(len(answers) for _, _, answers in parts))
    reward_model: RewardModel | None = None
    for batch, file, answers in parts:
        is_fresh = any(answer.score is None for answer in answers)
        if is_fresh:
            reward_model = reward_model or _load(source, device)
            scored = _score(reward_model, batch, answers)
            write_atomically(file, [json_line(asdict(answer)) for answer in scored])
        right, tokens = sum(a.outcome == "right" for a in answers), sum(a.tokens for a in answers)
        progress.advance(len(answers), right, tokens, is_fresh)


def _load(source: ModelConfig, device: torch.device) -> RewardModel:
    return RewardModel(
        source.path,
        device=device,
        dtype=getattr(torch, source.dtype),
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
    )


def _score(reward_model: RewardModel, batch: Batch, answers: Sequence[Answer]) -> list[Answer]:
    texts = {question.id: question.text for question in batch.questions}
    before = reward_model.truncated
    scores = reward_model.score(
        [(texts[answer.id], answer.completion) for answer in answers],
        [f"question {answer.id!r}, sample {answer.sample}" for answer in answers],
    )
    if truncated := reward_model.truncated - before:
        warnings.warn(
            f"{batch.benchmark}, batch {batch.number}: {truncated} of {len(answers)} texts are longer than the "
            f"{reward_model.longest} tokens that {reward_model.path} takes: their beginnings were cut off before they "
            "were scored",
            stacklevel=2,
        )
    return [replace(answer, score=score) for answer, score in zip(answers, scores, strict=True)]
