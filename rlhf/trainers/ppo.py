"""PPO with a critic: advantages of tokens by GAE; the critic learns the returns of the same rollouts."""

from collections.abc import Sequence

import torch

from rlhf.algorithms.generalised_advantages import generalised_advantages, length_adaptive_decay, value_targets
from rlhf.algorithms.kl import kl_estimate
from rlhf.config.ppo import ActorCriticConfig
from rlhf.config.rewards import environment_weight
from rlhf.data.token_rewards import own_token_rewards
from rlhf.data.types import Sample
from rlhf.trainers.grpo import PolicyGradient
from rlhf.trainers.token_advantages import whitened, with_advantages
from rlhf.training.batch import TrainingSample, training_sequence
from rlhf.training.learner import Learner


class ActorCritic(PolicyGradient):
    """The algorithm of `ActorCriticConfig`. The learner holds the critic; its values are taken before it learns from
    the step, so advantages do not know the rewards that they are judged by."""

    config: ActorCriticConfig

    def wants_replacement(self, group: list[Sample]) -> bool:
        """Equal rewards teach too: the baseline is the critic's, not the group's."""
        return False

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """Values, advantages and a critic update; in the critic's first steps nothing for the policy to learn."""
        config, critic = self.config, learner.critic
        references: list[tuple[float, ...] | None] = [None] * len(samples)
        if self.has_kl_loss or self.has_kl_reward:
            references = list(learner.reference_logps([TrainingSample(sample, 0.0) for sample in samples]))
        sequences = [training_sequence(sample) for sample in samples]
        values = critic.values(sequences)
        turn_weight = environment_weight(learner.config.rewards)
        rewards = [self._token_rewards(*pair, turn_weight) for pair in zip(samples, references, strict=True)]
        advantages, targets = [], []
        for reward_T, value_T in zip(rewards, values, strict=True):
            decay = config.trace_decay
            if config.length_adaptive is not None:
                decay = length_adaptive_decay(len(reward_T), config.length_adaptive)
            advantages.append(generalised_advantages(reward_T, value_T, trace_decay=decay, discount=config.discount))
            targets.append(
                value_targets(reward_T, value_T, trace_decay=config.critic.trace_decay, discount=config.discount)
            )
        critic.update(sequences, targets, values)
        if config.whiten:
            advantages = whitened(advantages, learner)
        passes = learner.config.batch.minibatches * learner.config.batch.epochs
        is_pretraining = learner.updates // passes < config.critic.pretrain_steps
        return with_advantages(
            samples, advantages, references, is_counted=not is_pretraining, mask_truncated=config.mask_truncated
        )

    def _token_rewards(
        self, sample: Sample, reference: Sequence[float] | None, turn_weight: float = 0.0
    ) -> list[float]:
        """What each of the policy's tokens earned: at its last one the completion's reward, at the end of each turn
        what the environment paid for it; less the KL estimate of each token where that is part of the reward."""
        rewards = own_token_rewards(sample, turn_weight)
        if not (self.has_kl_reward and rewards):
            return rewards
        logps = torch.tensor(sample.own(sample.logps))
        kl_T = kl_estimate(logps, torch.tensor(reference), self.config.kl.estimator)
        return [reward - self.config.kl.coefficient * kl for reward, kl in zip(rewards, kl_T.tolist(), strict=True)]
