"""A reward model as a reward function: the scores of samples, on the device of this rank."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rlhf.config.rewards import RewardModelConfig
from rlhf.data.types import Sample


class ModelScores:
    """Holds one reward model. Raises RewardModelError or UnsupportedArchitecture (rlhf/models/reward_model.py), before
    anything is trained, where the checkpoint is no reward model."""

    def __init__(self, config: RewardModelConfig) -> None:
        # here, because grading alone needs no torch
        import torch

        from rlhf.models.reward_model import RewardModel

        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        self.model = RewardModel(
            config.path, device=device, dtype=getattr(torch, config.dtype), revision=config.revision,
            trust_remote_code=config.trust_remote_code, token_budget=config.token_budget,
        )  # fmt: skip

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample. A completion that was cut off is scored as it stands, as though it ended there.

        The text is what graders are given, tokenised with the reward model's own tokenizer and template: its vocabulary
        need not be the policy's. Raises as `RewardModel.score` does, naming the sample.
        """
        from rlhf.models.reward_model import answered

        rows = [answered(sample.prompt.text, sample.text) for sample in samples]
        return self.model.score(rows, [f"sample {sample.id!r}" for sample in samples])
