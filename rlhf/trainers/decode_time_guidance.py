"""The optimistic actor-critic without a trained actor: rollouts are drawn from pi_ref exp(kappa Q) token by token.

What `logit_matching` fits the policy to is sampled itself, so no weights move and the policy follows an exchange at
once. Decoding by a learned Q of a frozen model under KL to it: "Q#" (arXiv 2502.20548), there without optimism.
"""

from collections.abc import Mapping
from typing import Any

from rlhf.algorithms.policy_losses import importance_ratio
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import GuidedEngine
from rlhf.trainers.optimistic_actor_critic import OptimisticActorCritic
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import sum_numbers
from rlhf.training.critics.guidance import CriticGuidance, read_guided
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import Transitions
from rlhf.training.guards import TrainingStopped
from rlhf.training.learner import Learner


class DecodeTimeGuidance(OptimisticActorCritic):
    """The algorithm of `OptimisticConfig` with `actor.kind` implicit. Only the critic learns. The policy moves where
    the critic is exchanged or kappa grows, and the engine then gets new guidance in place of weights. State: as the
    base class, and what the engine is guided by."""

    has_ratio = False

    def __init__(self, config: OptimisticConfig, samples_per_prompt: int) -> None:
        super().__init__(config, samples_per_prompt)
        self.has_kl_loss = False
        self.guided_by = (0, 0.0)
        """Exchanges so far and kappa of the engine's policy. Before the first exchange it is the reference."""

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """As the base class; nothing of it is learned by the policy."""
        batch = super().prepare(samples, learner)
        metrics = learner.critic.metrics
        metrics["actor/kappa"] = self.guided_by[1]
        del metrics["actor/learns"]
        return batch

    def guide(self, engine: GuidedEngine, learner: Learner, version: int) -> None:
        """Give the engine the policy as it is."""
        guidance, kappa = None, self.guided_by[1]
        if kappa:
            temperature = learner.config.sampling.temperature
            guidance = CriticGuidance(learner.critic, kappa, self.config.ensemble.candidates, temperature)
        engine.guide(guidance, version)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"guided_by": list(self.guided_by)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        super().load_state_dict(state)
        epoch, kappa = state["guided_by"]
        self.guided_by = (epoch, kappa)

    def _policy_moves(self, critic: OptimisticCritic, is_learning: bool, is_exchanged: bool) -> bool:
        before, self.guided_by = self.guided_by, (critic.epoch, self.mirror.kappa if critic.epoch else 0.0)
        return self.guided_by != before

    def _drawn(self, fresh: Transitions | None, learner: Learner) -> dict[str, float]:
        """Whether the engine drew from the policy that this process would have drawn from: nothing else compares them
        here. Raises TrainingStopped where it did not (`guards.ratio_tolerance`)."""
        sums = dict.fromkeys(("tokens", "ratio", "off", "gap", "signed", "kl"), 0.0)
        if fresh is not None:
            found = read_guided(learner.critic, fresh, self.guided_by[1])
            gap_A = (found.logp_A - found.engine_logp_A).double()
            ratio_A = importance_ratio(gap_A)
            sums = {
                "tokens": float(len(gap_A)), "ratio": float(ratio_A.sum()), "off": float((ratio_A - 1).abs().sum()),
                "gap": float(gap_A.abs().sum()), "signed": float(gap_A.sum()), "kl": float(found.kl_A.double().sum()),
            }  # fmt: skip
        totals = sum_numbers(sums, learner.device)
        mean = {name: total / max(totals["tokens"], 1.0) for name, total in totals.items()}
        # under any engine the mean ratio is 1, but for the luck of the draw: the guidance shows in the single ones
        if mean["off"] > learner.config.guards.ratio_tolerance:
            raise TrainingStopped(
                f"step {learner.updates + 1}: the guided policy's probability of a token over the engine's is off 1 by "
                f"{mean['off']:.3f} on average (guards.ratio_tolerance {learner.config.guards.ratio_tolerance}): the "
                "engine samples from another policy. Check that both use the same dtype and checkpoint; rounding alone "
                "grows with algorithm.actor.kappa"
            )
        return {
            "policy/engine_ratio_mean": mean["ratio"], "policy/engine_logp_gap": mean["gap"],
            "policy/kl_engine": -mean["signed"], "policy/kl_reference": mean["kl"],
        }  # fmt: skip

    def _batch(
        self, samples: list[Sample], fresh: Transitions | None, critic: OptimisticCritic, learner: Learner,
        is_learning: bool,
    ) -> list[TrainingSample]:  # fmt: skip
        return [TrainingSample(sample, 0.0, counted=False, learned=False) for sample in samples]
