"""The whole configuration of the GRPO family's recipe, and the rules between its sections."""

from pydantic import model_validator

from rlhf.config.algorithm import PolicyGradientConfig
from rlhf.config.data import PromptSourceConfig
from rlhf.config.recipe import RecipeConfig
from rlhf.config.rules import contradictions


class GRPOConfig(RecipeConfig):
    """Group-relative policy optimisation and its relatives: grpo, dr_grpo, dapo, gspo, cispo, rloo, loo_ppo,
    reinforce."""

    data: PromptSourceConfig
    algorithm: PolicyGradientConfig = PolicyGradientConfig()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "GRPOConfig":
        if problems := contradictions(self):
            raise ValueError("\n".join(problems))
        return self
