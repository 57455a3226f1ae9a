"""Optimistic actor-critic in NORA's manner: a policy that follows an optimistic critic, which is exchanged rarely."""

from typing import Any, Literal

from pydantic import model_validator

from rlhf.config.actor_rules import actor_problems
from rlhf.config.algorithm import KLConfig, PolicyGradientConfig
from rlhf.config.critic_ensemble import (
    ActionViewConfig,
    ActorConfig,
    EnsembleConfig,
    OfflineConfig,
    OptimismConfig,
    SwitchConfig,
    SyncConfig,
)
from rlhf.config.grpo import GRPOConfig
from rlhf.config.guidance_rules import guided_algorithm_problems, guided_run_problems

CLIPPED = dict(loss="clip", importance="token", denominator="token")
MOST_TEMPERATURES = 25
"""What a share of 1e-12 of the largest return's weight stands for, nearly."""
PESSIMIST = {"optimism": {"kind": "none"}, "ensemble": {"prior_scale": 0.0, "initial_share": 0.02}}
TOKENS = {"actions": {"view": "token"}, "actor": {"kind": "logit_match"}}
OPTIMISTIC_PRESETS: dict[str, dict[str, Any]] = {
    "nora": CLIPPED,
    # short responses, or few tokens that matter
    "nora_token": {
        **CLIPPED, **TOKENS, "ensemble": {"target": "soft", "path_spans": [8, 0], "updates": 16, "episodes": 64},
    },
    # arXiv 2505.03710 as it stands, for reproduction
    "nora_paper": {
        **CLIPPED, "actions": {"view": "token"}, "ensemble": {"target": "max"}, "switch": {"kind": "excess"},
        "actor": {"kind": "logit_match", "reset": "target", "schedule": "anytime"},
    },
    "nora_hybrid": {**CLIPPED, "offline": {"final_share": 0.1}},
    "noah": {**CLIPPED, **PESSIMIST, "offline": {"final_share": 0.1}},
    "douhua": {
        **CLIPPED, **TOKENS, "ensemble": {"target": "policy", "updates": 16, "episodes": 64},
        "switch": {"min_steps": 1, "max_steps": 1},
        # each step adds kappa / saturation times the critic's values, without end
        "actor": {"kind": "logit_match", "reset": "none", "kappa": 2500.0, "saturation": 1000},
    },
    "non_optimistic": {**CLIPPED, **PESSIMIST},
}  # fmt: skip


class OptimisticConfig(PolicyGradientConfig):
    """A policy that follows a frozen, optimistic critic (after NORA, arXiv 2505.03710)."""

    BY_PRESET = OPTIMISTIC_PRESETS

    type: Literal["optimistic_actor_critic"] = "optimistic_actor_critic"
    preset: Literal["nora", "nora_token", "nora_paper", "nora_hybrid", "noah", "douhua", "non_optimistic"] = "nora"
    """nora: values of states behind chunks, policy gradient. nora_token: values of candidate tokens, for short
    responses. nora_paper: the paper's targets, exchanges and resets. nora_hybrid: nora with offline episodes. noah:
    offline episodes in place of optimism. douhua: values of the policy itself, exchanged every step (the paper's
    warm-up). non_optimistic: no priors and from the lower bound up, for comparison."""
    advantage: Literal["optimistic"] = "optimistic"
    """What followed - V(state) of the frozen critic, the same for all tokens of an action; actor.trace_decay says how
    much of what followed is what was earned, and how much the next states' values."""
    actions: ActionViewConfig = ActionViewConfig()
    """States and actions."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """The critic."""
    optimism: OptimismConfig = OptimismConfig()
    """From members to a value."""
    switch: SwitchConfig = SwitchConfig()
    """When the policy gets a new critic."""
    actor: ActorConfig = ActorConfig()
    """How the policy follows it."""
    offline: OfflineConfig = OfflineConfig()
    """Episodes of others."""
    sync: SyncConfig = SyncConfig()
    """When the engine gets the policy."""
    whiten: bool = False
    """Divide the step's advantages by their standard deviation, less their mean."""

    @property
    def needs_reference_model(self) -> bool:
        return self.trains_policy  # else the policy is the reference

    @property
    def trains_policy(self) -> bool:
        return self.actor.kind != "implicit"

    @property
    def value_bounds(self) -> tuple[float, float]:
        """The range of values of states."""
        return self.actions.bounds

    @model_validator(mode="after")
    def _refuse_kl_of_its_own(self) -> "OptimisticConfig":
        if self.kl != KLConfig():
            raise ValueError(
                "kl: the pull to the reference is 1 / actor.kappa here, and follows actor.reset and actor.schedule; "
                "set actor.kappa, and leave kl out"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_does_not_go_together(self) -> "OptimisticConfig":
        ensemble, view = self.ensemble, self.actions.view
        problems = [*guided_algorithm_problems(self), *actor_problems(self)]
        if ensemble.values_tokens and view != "token":
            problems.append(
                f"ensemble.target = {ensemble.target} needs actions.view token: chunks and turns cannot be enumerated; "
                "set target to expectile"
            )
        if self.preset == "noah" and self.offline.path is None:
            problems.append("preset noah stands on offline episodes: give offline.path, or use non_optimistic")
        if self.preset == "nora_hybrid" and self.offline.path is None:
            problems.append("preset nora_hybrid learns from offline episodes too: give offline.path, or use nora")
        if self.optimism.kind == "elliptic" and ensemble.values_tokens:
            problems.append(
                "optimism.kind = elliptic is of states that actions led to, which those that were not taken have not: "
                "use it with ensemble.target expectile, or choose ucb"
            )
        if ensemble.target == "mc_ref":
            problems += self._reference_return_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _reference_return_problems(self) -> list[str]:
        tau, (low, high), problems = self.ensemble.temperature, self.actions.bounds, []
        if self.offline.path is not None:
            problems.append(
                "ensemble.target = mc_ref is a mean over the reference's own completions, which those of offline.path "
                "are not: leave offline out, or set ensemble.target to expectile"
            )
        if self.optimism.kind == "elliptic":
            problems.append(
                "optimism.kind = elliptic adds to rewards, and ensemble.target = mc_ref learns returns: choose ucb, or "
                "set ensemble.target to expectile"
            )
        if high - low > MOST_TEMPERATURES * tau:
            problems.append(
                f"ensemble.temperature = {tau:g} with actions.bounds = {[low, high]} and target mc_ref: exp(return / "
                f"temperature) is lost in rounding over more than {MOST_TEMPERATURES} temperatures; set it to at least "
                f"{(high - low) / MOST_TEMPERATURES:.3g}"
            )
        return problems


class OptimisticActorCriticConfig(GRPOConfig):
    """Optimistic actor-critic (after NORA, arXiv 2505.03710); research: default off, compare with GRPO and PPO."""

    algorithm: OptimisticConfig = OptimisticConfig()

    @model_validator(mode="after")
    def _refuse_padded_batches(self) -> "OptimisticActorCriticConfig":
        if self.model.attention != "packed":
            raise ValueError(
                f"model.attention = {self.model.attention}: the critic reads the states of packed batches; set "
                "model.attention to packed"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_trains_a_guided_policy(self) -> "OptimisticActorCriticConfig":
        if problems := guided_run_problems(self):
            raise ValueError("\n".join(problems))
        return self
