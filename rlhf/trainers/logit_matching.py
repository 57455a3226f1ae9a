"""The optimistic actor-critic with values of tokens: the policy is matched to pi_ref exp(kappa Q) at every state.

A regression of each state by itself, so states of any origin serve, and nothing is weighted by importance: those of the
step's rollouts, kept ones of the newest epoch, and offline ones (eq. 5.1 of mirror descent from the reference policy;
logit matching as in Lin, Asad, Tan et al., "Optimistic actor-critic with parametric policies", AISTATS 2026).
"""

from dataclasses import replace

import torch
from torch import Tensor

from rlhf.algorithms.mirror_descent import logit_match_losses, mirror_target, with_rest
from rlhf.algorithms.policy_losses import importance_ratio
from rlhf.algorithms.token_fields import TokenFields
from rlhf.config.optimistic_actor_critic import OptimisticConfig
from rlhf.data.episodes import Episode
from rlhf.data.types import Prompt, Sample
from rlhf.trainers.decode_time_guidance import DecodeTimeGuidance
from rlhf.trainers.optimistic_actor_critic import OptimisticActorCritic
from rlhf.training.algorithm import Objective
from rlhf.training.batch import MatchTargets, TrainingSample
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import Transitions
from rlhf.training.learner import Learner


class LogitMatching(OptimisticActorCritic):
    """The algorithm of `OptimisticConfig` with `actor.kind` logit_match. Loss: KL(target || policy) over candidates and
    the rest of the vocabulary, the mean over the step's tokens."""

    has_ratio = False
    learns_from_any_policy = True

    def __init__(self, config: OptimisticConfig, samples_per_prompt: int) -> None:
        super().__init__(config, samples_per_prompt)
        self.has_kl_loss = False  # the reference is in the target

    def objective(self, fields: TokenFields) -> Objective:
        """Takes the candidates' log-probs (N, m)."""

        def loss(logp_Nm: Tensor, entropy_N: Tensor, rows: slice) -> Tensor:
            part = fields[rows]
            is_empty_Nm = part.target_logp_NC[:, :-1].isneginf()
            losses_N = logit_match_losses(part.target_logp_NC, with_rest(logp_Nm.masked_fill(is_empty_Nm, -torch.inf)))
            return part.weight_N * losses_N

        return loss

    @torch.no_grad()
    def measure(self, logp_N: Tensor, entropy_N: Tensor, fields: TokenFields) -> dict[str, float]:
        """Sums over the tokens; kept and offline ones, which no engine drew here, differ from none."""
        gap_N = (logp_N - fields.engine_logp_N).nan_to_num(0.0)
        # the targets and candidates of a token whose best place was never the one taken are what is explored
        best_N = fields.target_logp_NC[:, :-1].argmax(-1)
        sums = {
            "policy/entropy": entropy_N,
            "policy/engine_ratio_mean": importance_ratio(gap_N),
            "policy/engine_logp_gap": gap_N.abs(),
            "policy/kl_engine": -gap_N,
            "actor/target_not_taken_share": best_N != 0,
            "actor/target_candidate_mass": fields.target_logp_NC[:, :-1].exp().sum(-1),
        }
        return {name: float(values.double().sum()) for name, values in sums.items()}

    def _batch(
        self, samples: list[Sample], fresh: Transitions | None, critic: OptimisticCritic, learner: Learner,
        is_learning: bool,
    ) -> list[TrainingSample]:  # fmt: skip
        if not is_learning or fresh is None:
            return [TrainingSample(sample, 0.0, counted=False, learned=False) for sample in samples]
        matched = iter(self._targets(fresh, critic))
        # in the step of a hard reset the samples are of the policy that was left, and have no ratio to this one
        is_left = self.mirror.reloads_reference and not critic.controller.since_switch
        batch = [
            TrainingSample(_undrawn(sample) if is_left else sample, 0.0, match=next(matched)) if sample.completion_ids
            else TrainingSample(sample, 0.0, counted=False, learned=False)
            for sample in samples
        ]  # fmt: skip
        kept = critic.kept_episodes(self.config.actor.replay_episodes, self.config.actor.replay_offline)
        kept = kept[: len(kept) - len(kept) % learner.config.batch.minibatches]
        if kept:
            targets = self._targets(critic.transitions(kept), critic)
            batch += [
                TrainingSample(_sample_of(episode), 0.0, match=target, group=("kept", place))
                for place, (episode, target) in enumerate(zip(kept, targets, strict=True))
            ]
        return batch

    def _targets(self, batch: Transitions, critic: OptimisticCritic) -> list[MatchTargets]:
        """By episode, at the states before its tokens."""
        base_Sm = batch.candidate_logp_Sm
        if self.mirror.starts_from_previous:
            base_Sm = critic.form.policy_logps(batch)
        target_SC = mirror_target(with_rest(base_Sm), critic.token_values(batch), self.mirror.kappa).cpu()
        ids_Sm = batch.candidate_id_Sm.cpu()
        sizes = (batch.view.actions_B + 1).tolist()
        return [
            MatchTargets(ids_Rm[:-1], target_RC[:-1])
            for ids_Rm, target_RC in zip(ids_Sm.split(sizes), target_SC.split(sizes), strict=True)
        ]


def _sample_of(episode: Episode) -> Sample:
    """A kept episode."""
    prompt = Prompt(episode.prompt_id, tuple(episode.prompt_ids.tolist()), "")
    drawn = Sample(
        prompt, 0, tuple(episode.token_ids.tolist()), tuple(episode.logps.tolist()),
        "length" if episode.truncated else "stop", episode.policy_version, 0, reward=episode.episode_return,
    )  # fmt: skip
    return _undrawn(drawn)


def _undrawn(sample: Sample) -> Sample:
    """As of nobody's drawing, for the policy that learns from it did not draw it: its log-probs are NaN."""
    return replace(sample, logps=(float("nan"),) * len(sample.logps))


def follow_critic(config: OptimisticConfig, samples_per_prompt: int) -> OptimisticActorCritic:
    """The actor that `actor.kind` names."""
    kinds = {"pg": OptimisticActorCritic, "logit_match": LogitMatching, "implicit": DecodeTimeGuidance}
    return kinds[config.actor.kind](config, samples_per_prompt)
