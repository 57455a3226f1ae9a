"""Optimistic actor-critic after NORA (arXiv 2505.03710): the policy follows the advantages of a frozen, optimistic
critic, which is exchanged when enough new has been seen.

Departures from the paper, which is about finite horizons and softmax policies over all actions: actions are chunks of
text, values are of an ensemble on the reference's states, the confidence set is its spread, the excess loss is replaced
by the states' information gain, and the reset to a uniform policy by a pull to the reference that never moves: no
superseded critic is part of what the policy is drawn to (reset "jump"). No guarantee carries over.
"""

import torch

from rlhf.algorithms.mdp_views import outcome_rewards
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.data.types import Sample
from rlhf.models.packing import TrainingSequence
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.ppo import whitened
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import sum_numbers
from rlhf.training.learner import Learner
from rlhf.training.optimistic_critic import OptimisticCritic


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
        references = list(learner.reference_logps([TrainingSample(sample, 0.0) for sample in samples]))
        critic.learn(samples)
        critic.exchange()
        # the critic that was drawn at random guides nobody
        is_learning = self._policy_learns(critic)
        filled = [sample for sample in samples if sample.completion_ids]
        advantages = dict(zip(map(id, filled), self._advantages_of(filled, learner), strict=True))
        if self.config.whiten:
            advantages = dict(zip(advantages, whitened(list(advantages.values()), learner), strict=True))
        batch = []
        for sample, reference in zip(samples, references, strict=True):
            advantage_T = advantages.get(id(sample), ())
            counted = is_learning and not (self.config.mask_truncated and sample.truncated)
            mean = sum(advantage_T) / len(advantage_T) if advantage_T else 0.0
            batch.append(TrainingSample(sample, mean, counted, counted, reference, advantages=advantage_T))
        return batch

    def _policy_learns(self, critic: OptimisticCritic) -> bool:
        return critic.epoch > 0

    def _advantages_of(self, samples: list[Sample], learner: Learner) -> list[tuple[float, ...]]:
        """r + V(next state) - V(state) for every token of an action; values of a finished episode's end are 0."""
        critic = learner.critic
        values = {"count": 0.0, "value": 0.0, "return": 0.0, "below": 0.0}
        advantages: list[tuple[float, ...]] = []
        if samples:
            sequences = [TrainingSequence(s.prompt.token_ids, s.completion_ids) for s in samples]
            view = critic.view([len(sequence.completion_ids) for sequence in sequences])
            value_S = critic.guidance(critic.states(sequences, view)).cpu()
            reward_B = torch.tensor([sample.reward for sample in samples], dtype=torch.float32)
            done_A = critic.ends(view, [sample.truncated for sample in samples])
            next_A = torch.where(done_A, 0.0, value_S[view.next_state_A])
            advantage_A = outcome_rewards(view, reward_B) - critic.price(view) + next_A - value_S[view.state_A]
            advantage_N = advantage_A.repeat_interleave(view.tokens_A)
            lengths = [len(sequence.completion_ids) for sequence in sequences]
            advantages = [tuple(part.tolist()) for part in advantage_N.split(lengths)]
            first_B = value_S[view.position_S == 0]
            values = {
                "count": float(len(samples)), "value": float(first_B.sum()), "return": float(reward_B.sum()),
                "below": float((first_B < reward_B).sum()),
            }  # fmt: skip
        sums = sum_numbers(values, learner.device)
        count = max(sums["count"], 1.0)
        critic.metrics |= {
            "critic/optimistic_value": sums["value"] / count,
            "critic/optimism_gap": (sums["value"] - sums["return"]) / count,
            "critic/optimism_violations": sums["below"] / count,
        }
        return advantages
