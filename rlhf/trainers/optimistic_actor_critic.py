"""Optimistic actor-critic after NORA (arXiv 2505.03710): the policy follows the advantages of a frozen, optimistic
critic, which is exchanged when enough new has been seen.

Departures from the paper, which is about finite horizons and softmax policies over all actions: actions are chunks of
text, values are of an ensemble on the reference's states, the confidence set is its spread, the excess loss is replaced
by the states' information gain, and the reset to a uniform policy by a pull to the reference that never moves: no
superseded critic is part of what the policy is drawn to (reset "jump"). No guarantee carries over.
"""

from rlhf.algorithms.value_targets import end_values
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.data.types import Sample
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.token_advantages import TokenAdvantages, whitened, with_advantages
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import sum_numbers
from rlhf.training.learner import Learner
from rlhf.training.optimistic_critic import OptimisticCritic, Transitions


class OptimisticActorCritic(PolicyGradient):
    """The algorithm of `OptimisticConfig`. The learner holds the critic. The policy never sees the critic that is
    learning, and the critic never sees the policy."""

    config: OptimisticConfig

    def wants_replacement(self, group: list[Sample]) -> bool:
        """Equal rewards teach the critic, and where nothing new comes of a prompt, that too."""
        return False

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """The critic learns and may be exchanged; then the advantages of the frozen one."""
        critic = learner.critic
        references = learner.reference_logps([TrainingSample(sample, 0.0) for sample in samples])
        filled = [sample for sample in samples if sample.completion_ids]
        fresh = critic.read(filled) if filled else None
        critic.learn(filled, fresh)
        critic.exchange()
        of_filled = iter(self._advantages_of(fresh, learner))
        advantages = [next(of_filled) if sample.completion_ids else () for sample in samples]
        if self.config.whiten:
            advantages = whitened(advantages, learner)
        return with_advantages(
            samples, advantages, references, is_counted=self._policy_learns(critic),
            mask_truncated=self.config.mask_truncated,
        )  # fmt: skip

    def _policy_learns(self, critic: OptimisticCritic) -> bool:
        # the critic that was drawn at random guides nobody
        return critic.epoch > 0

    def _advantages_of(self, fresh: Transitions | None, learner: Learner) -> TokenAdvantages:
        """r + V(next state) - V(state) for every token of an action; values of a finished episode's end are 0."""
        critic = learner.critic
        sums = dict.fromkeys(("completions", "states", "value", "return", "below", "spread"), 0.0)
        advantages: TokenAdvantages = []
        if fresh is not None:
            view, guidance = fresh.view, critic.guidance(fresh.state_SD)
            value_S1 = guidance.value_S[:, None]
            end_value_A = end_values(value_S1, view, fresh.done_A)[view.next_state_A, 0]
            advantage_A = fresh.reward_A - critic.price(view) + end_value_A - guidance.value_S[view.state_A]
            advantage_N = advantage_A.repeat_interleave(view.tokens_A)
            lengths = view.end_A[view.last_action_B].tolist()
            advantages = [tuple(part.tolist()) for part in advantage_N.split(lengths)]
            first_B, outcome_B = guidance.value_S[view.first_state_B], fresh.outcome_B
            sums = {
                "completions": float(len(first_B)), "states": float(len(guidance.spread_S)),
                "value": float(first_B.sum()), "return": float(outcome_B.sum()),
                "below": float((first_B < outcome_B).sum()), "spread": float(guidance.spread_S.sum()),
            }  # fmt: skip
        totals = sum_numbers(sums, learner.device)
        count = max(totals["completions"], 1.0)
        critic.metrics |= {
            "critic/optimistic_value": totals["value"] / count,
            "critic/optimism_gap": (totals["value"] - totals["return"]) / count,
            "critic/optimism_violations": totals["below"] / count,
            "critic/spread": totals["spread"] / max(totals["states"], 1.0),
        }
        return advantages
