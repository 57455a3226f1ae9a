"""Optimistic actor-critic after NORA (arXiv 2505.03710): the policy follows a frozen, optimistic critic, which is
exchanged when enough new has been seen.

Departures from the paper, which is about finite horizons and softmax policies over all actions: values are of an
ensemble on the reference's states, the confidence set is its spread, actions are tokens among likely candidates or
chunks of text, and the reset is to the reference policy. No guarantee carries over.
"""

from collections.abc import Mapping
from typing import Any

from rlhf.algorithms.mirror_descent import KappaSchedule, MirrorDescent
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.data.types import Sample
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.token_advantages import TokenAdvantages, whitened, with_advantages
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import sum_numbers
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import REFERENCE_LOGPS, Transitions
from rlhf.training.learner import Learner


class OptimisticActorCritic(PolicyGradient):
    """The algorithm of `OptimisticConfig` with `actor.kind` pg: clipped policy gradient on the frozen critic's
    advantages, under a pull of 1 / kappa to the reference. State: the steps since the last reset. The learner holds the
    critic. The policy never sees the critic that is learning, and the critic never sees the policy."""

    config: OptimisticConfig
    learns_from_any_policy = False

    def __init__(self, config: OptimisticConfig, samples_per_prompt: int) -> None:
        super().__init__(config, samples_per_prompt)
        actor, (low, high) = config.actor, config.value_bounds
        schedule = KappaSchedule(
            actor.schedule, actor.kappa, actor.saturation, value_range=high - low,
            candidates=max(2, config.ensemble.candidates),
        )  # fmt: skip
        self.mirror = MirrorDescent(schedule, actor.reset)
        self.has_kl_loss = actor.reset != "none"
        self.moves_policy = False
        self.syncs = 0

    def wants_replacement(self, group: list[Sample]) -> bool:
        """Equal rewards teach the critic, and where nothing new comes of a prompt, that too."""
        return False

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """The critic learns and may be exchanged; then what the frozen one says of the samples."""
        critic = learner.critic
        filled = [sample for sample in samples if sample.completion_ids]
        fresh = critic.read(filled)
        drawn = self._drawn(fresh, learner)
        critic.learn(fresh)
        is_exchanged = critic.exchange()
        if is_exchanged:
            self.mirror.reset()
            if self.mirror.reloads_reference:
                learner.restart_policy()
        is_learning = self._policy_learns(critic, is_exchanged)
        if is_learning:
            self.mirror.advance()
            if not self.mirror.starts_from_previous:
                self.kl_coefficient = 1 / self.mirror.kappa
        self.moves_policy = self._policy_moves(critic, is_learning, is_exchanged)
        self.syncs += self.moves_policy
        critic.metrics |= drawn | self._told(fresh, critic, learner) | {
            "actor/kappa": self.mirror.kappa, "actor/steps_since_reset": float(self.mirror.n),
            "actor/learns": float(is_learning), "actor/syncs": float(self.syncs),
        }  # fmt: skip
        return self._batch(samples, fresh, critic, learner, is_learning)

    def should_sync(self) -> bool:
        """Whether the engine's weights are no longer the policy's."""
        return self.moves_policy

    def state_dict(self) -> dict[str, Any]:
        return {"mirror": self.mirror.state_dict(), "syncs": self.syncs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.mirror.load_state_dict(state["mirror"])
        self.syncs = state["syncs"]

    def _policy_learns(self, critic: OptimisticCritic, is_exchanged: bool) -> bool:
        """Not from the critic that was drawn at random; later in all steps, the first ones after an exchange, or the
        step of the exchange alone."""
        if self.config.sync.when == "switch":
            return is_exchanged
        window, since = self.config.actor.steps, critic.controller.since_switch
        # what was sampled in the step of a hard reset is of a policy that is no more
        first = int(self.mirror.reloads_reference and not self.learns_from_any_policy)
        return critic.epoch > 0 and since >= first and (window is None or since < first + window)

    def _policy_moves(self, critic: OptimisticCritic, is_learning: bool, is_exchanged: bool) -> bool:
        return is_learning or (is_exchanged and self.mirror.reloads_reference)

    def _drawn(self, fresh: Transitions | None, learner: Learner) -> dict[str, float]:
        """What is to be said of the samples before the critic learns from them. Collective."""
        return {}

    def _batch(
        self, samples: list[Sample], fresh: Transitions | None, critic: OptimisticCritic, learner: Learner,
        is_learning: bool,
    ) -> list[TrainingSample]:  # fmt: skip
        advantages: TokenAdvantages = []
        references: list[tuple[float, ...]] = []
        if fresh is not None:
            view, advantage_A = fresh.view, critic.guidance(fresh).advantage_A
            own = view.tokens_A
            lengths_B = own.new_zeros(len(fresh.episodes)).index_add(0, view.sequence_A, own)
            parts = advantage_A.repeat_interleave(own).split(lengths_B.tolist())
            advantages = [tuple(part.tolist()) for part in parts]
            references = [tuple(episode.extra[REFERENCE_LOGPS].tolist()) for episode in fresh.episodes]
        found, read = iter(advantages), iter(references)
        advantages = [next(found) if sample.completion_ids else () for sample in samples]
        references = [sample.own(next(read)) if sample.completion_ids else () for sample in samples]
        if self.config.whiten:
            advantages = whitened(advantages, learner)
        return with_advantages(
            samples, advantages, references, is_counted=is_learning, mask_truncated=self.config.mask_truncated
        )

    def _told(self, fresh: Transitions | None, critic: OptimisticCritic, learner: Learner) -> dict[str, float]:
        """What the frozen critic promised of the prompts, and what came of them."""
        names = ("completions", "states", "value", "return", "below", "pinned", "spread", "outside")
        sums, (worst, best) = dict.fromkeys(names, 0.0), critic.settings.value_bounds
        if fresh is not None:
            guidance = critic.guidance(fresh)
            first_B, outcome_B = guidance.value_S[fresh.view.first_state_B], critic.outcome(fresh)
            edge = 0.01 * (best - worst)
            sums = {
                "completions": float(len(first_B)), "states": float(len(guidance.spread_S)),
                "value": float(first_B.sum()), "return": float(outcome_B.sum()),
                "below": float((first_B < outcome_B).sum()), "pinned": float((first_B > best - edge).sum()),
                "spread": float(guidance.spread_S.sum()),
                "outside": float(((outcome_B < worst - edge) | (outcome_B > best + edge)).sum()),
            }  # fmt: skip
        totals = sum_numbers(sums, learner.device)
        count = max(totals["completions"], 1.0)
        return {
            "critic/optimistic_value": totals["value"] / count,
            "critic/optimism_gap": (totals["value"] - totals["return"]) / count,
            "critic/optimism_violations": totals["below"] / count,
            "critic/pinned_at_bound": totals["pinned"] / count,
            "critic/outside_bounds": totals["outside"] / count,
            "critic/spread": totals["spread"] / max(totals["states"], 1.0),
        }

