"""The whole configuration of training a reward model."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlhf.config.data import ArithmeticConfig, PreferencesConfig
from rlhf.config.section import Section
from rlhf.config.stage import StageConfig


class PairEvaluationConfig(Section):
    """Held-out pairs, scored by the exported model: how often the chosen one has the higher score."""

    pairs: int = Field(500, ge=1)
    """How many; all there are where a dataset has fewer."""
    data: PreferencesConfig | None = None
    """Where they come from. None given: the held-out fifth of a generated task, or the fifth of a dataset's prompts
    that is never trained on."""


class RewardModelTrainingConfig(StageConfig):
    """A sequence classifier with one label on TRL's RewardTrainer: pairs of generated answers, or a dataset."""

    data: Annotated[ArithmeticConfig | PreferencesConfig, Field(discriminator="type")]
    evaluation: PairEvaluationConfig = PairEvaluationConfig()
    wordings: Literal["varied", "number"] = "varied"
    """Of generated answers: as models word them, or the number alone, which is learned from far fewer pairs and judges
    only policies that answer so."""
    head_lr: float | None = Field(1e-3, gt=0)
    """Peak learning rate of the head, which starts from noise and needs longer steps than the backbone. None: that of
    the optimizer."""
    center_rewards: float | None = Field(None, gt=0)
    """Weight of the squared mean score of a pair, which keeps scores around 0 (arXiv 2312.09244, eq. 2); 0.01 is usual.
    """

    @model_validator(mode="after")
    def _refuse_cut_prompts(self) -> "RewardModelTrainingConfig":
        sources: dict[str, Any] = {"data": self.data, "evaluation.data": self.evaluation.data}
        for name, source in sources.items():
            if source is not None and source.overlong_prompts == "truncate_left":
                raise ValueError(
                    f"{name}.overlong_prompts = truncate_left: a reward model scores whole texts; set it to skip"
                )
        return self
