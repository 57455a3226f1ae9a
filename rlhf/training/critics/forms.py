"""What a critic predicts, and the loss it learns by: values of states, or of candidate tokens too.

Suffixes: S states, A actions, K members, m candidates.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf.algorithms.value_targets import (
    end_values,
    expectile_losses,
    log_rest,
    max_value,
    one_step_targets,
    path_residuals,
    policy_value,
    soft_return_losses,
    soft_value,
    trace_targets,
)
from rlhf.config.critic_ensemble import EnsembleConfig
from rlhf.data.seeds import derive_seed
from rlhf.models.frozen_state_critic import FrozenStateCritic
from rlhf.training.critics.transitions import Transitions

LEAST_SHARE = 1e-12
TOKEN_FEATURES = 64
PolicyLogps = Callable[[Transitions], Tensor]
"""Log-probs (S, m) of the candidates under the policy as it is; -inf where there is none."""


class Predictions(NamedTuple):
    """`value_SK`: V_k(s). `q_SKm`: Q_k(s, a) of the candidates, None where only states have values. Within bounds."""

    value_SK: Tensor
    q_SKm: Tensor | None = None


class CriticForm(Protocol):
    """How an ensemble's network is read and taught. Networks are of `make_network`."""

    def make_network(self) -> FrozenStateCritic: ...

    def predict(self, network: nn.Module, batch: Transitions) -> Predictions: ...

    def losses(self, online: Predictions, slow: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        """(A, K): of `online` against targets of `slow`; `reward_AK` is what each member counts an action to earn."""

    def action_values(self, found: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        """Q_k of what was done, (A, K)."""

    def advantages(self, guide: Predictions, batch: Transitions, reward_A: Tensor) -> tuple[Tensor, Tensor]:
        """(Advantages of what was done (A,), values of states (S,)) of a guide of one member."""


class StateValues:
    """V_k(s) alone: actions cannot be enumerated, and Q = r + V(next state), for the next state is known.
    `trace_decay`: of the advantages."""

    def __init__(
        self, settings: EnsembleConfig, hidden: int, bounds: tuple[float, float], seed: int, trace_decay: float
    ) -> None:
        self.settings, self.hidden, self.bounds, self.seed = settings, hidden, bounds, seed
        self.trace_decay = trace_decay

    def make_network(self) -> FrozenStateCritic:
        settings = self.settings
        return FrozenStateCritic(
            self.hidden, members=settings.members, bounds=self.bounds, prior_scale=settings.prior_scale,
            initial_share=settings.initial_share, seed=self.seed,
        )  # fmt: skip

    def predict(self, network: nn.Module, batch: Transitions) -> Predictions:
        return Predictions(network(batch.state_SD))

    def losses(self, online: Predictions, slow: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        value_AK = online.value_SK[batch.view.state_A]
        return expectile_losses(value_AK, self.targets(slow, batch, reward_AK), self.settings.expectile)

    def targets(self, slow: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        end_SK = end_values(slow.value_SK, batch.view, batch.done_A)
        return trace_targets(reward_AK, end_SK, batch.view, self.settings.trace_decay).clamp(*self.bounds)

    def action_values(self, found: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        return reward_AK + end_values(found.value_SK, batch.view, batch.done_A)[batch.view.next_state_A]

    def advantages(self, guide: Predictions, batch: Transitions, reward_A: Tensor) -> tuple[Tensor, Tensor]:
        value_S = guide.value_SK[:, 0]
        end_S1 = end_values(value_S[:, None], batch.view, batch.done_A)
        return_A1 = trace_targets(reward_A[:, None], end_S1, batch.view, self.trace_decay)
        return return_A1[:, 0] - value_S[batch.view.state_A], value_S


class ReferenceReturns(StateValues):
    """Soft optimal values by Monte Carlo: tau log mean exp(R / tau) over the reference's own completions (Q#). Only
    episodes from before the first exchange teach it: until then the policy is the reference. The network's values are
    shares of the range here, and stand for exp((V - high) / tau)."""

    def predict(self, network: nn.Module, batch: Transitions) -> Predictions:
        low, high = self.bounds
        share_SK = (network(batch.state_SD) - low) / (high - low)
        return Predictions(high + self.settings.temperature * share_SK.clamp(LEAST_SHARE, 1 - 1e-6).log())

    def losses(self, online: Predictions, slow: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        tau, high = self.settings.temperature, self.bounds[1]
        share_AK = ((online.value_SK[batch.view.state_A] - high) / tau).exp().clamp(LEAST_SHARE, 1 - 1e-6)
        return_A = batch.outcome_B[batch.view.sequence_A].to(share_AK).clamp_max(high)
        is_reference_A = torch.tensor([episode.epoch == 0 for episode in batch.episodes])[batch.view.sequence_A]
        losses_AK = soft_return_losses(share_AK, return_A, tau, high)
        return losses_AK * is_reference_A.to(losses_AK)[:, None]


class TokenValues:
    """Q_k(s, a) of candidate tokens, dueling around V_k(s). `embedding_VD`: the frozen output embedding, of whose rows
    `TOKEN_FEATURES` random directions are read: enough to tell tokens apart, and a ninth of the cost at 576.
    `policy_logps`: for the target `policy`."""

    def __init__(
        self, settings: EnsembleConfig, hidden: int, bounds: tuple[float, float], seed: int, embedding_VD: Tensor,
        policy_logps: PolicyLogps,
    ) -> None:  # fmt: skip
        self.settings, self.hidden, self.bounds, self.seed = settings, hidden, bounds, seed
        self.policy_logps = policy_logps
        generator = torch.Generator().manual_seed(derive_seed(seed, "token features") % 2**63)
        projection_De = torch.randn(embedding_VD.shape[1], TOKEN_FEATURES, generator=generator).to(embedding_VD.device)
        self.token_Ve = functional.normalize(embedding_VD.float() @ projection_De, dim=-1)
        self._latest: tuple[Transitions, Tensor, Tensor] | None = None

    def make_network(self) -> FrozenStateCritic:
        settings = self.settings
        return FrozenStateCritic(
            self.hidden, members=settings.members, bounds=self.bounds, prior_scale=settings.prior_scale,
            initial_share=settings.initial_share, seed=self.seed, embedding_size=TOKEN_FEATURES,
        )  # fmt: skip

    def predict(self, network: nn.Module, batch: Transitions) -> Predictions:
        if self._latest is None or self._latest[0] is not batch:
            # the same for the learning, the slow and the frozen network
            candidate_Sme = self.token_Ve[batch.candidate_id_Sm]
            prior_SKm = network.ensemble.prior_advantages(batch.state_SD, candidate_Sme)
            self._latest = (batch, candidate_Sme, prior_SKm)
        _, candidate_Sme, prior_SKm = self._latest
        found = network(batch.state_SD, candidate_Sme, batch.candidate_logp_Sm, prior_SKm)
        return Predictions(found.value_NK, found.q_NKm)

    def predict_candidates(self, network: nn.Module, state_SD: Tensor, id_Sm: Tensor, logp_Sm: Tensor) -> Predictions:
        """As `predict`, at states that no batch holds, with candidates of one's own choice; -inf where there is none.
        Log-probs may lack their normaliser."""
        found = network(state_SD, self.token_Ve[id_Sm], logp_Sm)
        return Predictions(found.value_NK, found.q_NKm)

    def losses(self, online: Predictions, slow: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        view, (low, high) = batch.view, self.bounds
        with torch.no_grad():
            slow_end_SK = end_values(self._state_values(slow, batch), view, batch.done_A)
            target_AK = one_step_targets(torch.zeros(len(view.state_A)).to(reward_AK), slow_end_SK, view) + reward_AK
            target_AK = target_AK.clamp(low, high)
        taken_AK = online.q_SKm[view.state_A, :, 0]
        losses_AK = (taken_AK - target_AK).square()
        if self.settings.path_spans:
            value_SK = self._state_values(online, batch)
            advantage_AK = taken_AK - value_SK[view.state_A]
            residuals = [
                path_residuals(value_SK, slow_end_SK, advantage_AK, reward_AK, view, span or None).square()
                for span in self.settings.path_spans
            ]
            losses_AK = losses_AK + torch.stack(residuals).mean(0)
        return losses_AK

    def action_values(self, found: Predictions, batch: Transitions, reward_AK: Tensor) -> Tensor:
        return found.q_SKm[batch.view.state_A, :, 0].clamp(*self.bounds)

    def advantages(self, guide: Predictions, batch: Transitions, reward_A: Tensor) -> tuple[Tensor, Tensor]:
        """Against the reference's mean over candidates: what mirror descent raises log-probs by. Q holds `reward_A`."""
        q_Sm = guide.q_SKm[:, 0]
        mean_S = (batch.candidate_logp_Sm.softmax(-1) * q_Sm).sum(-1)
        return (q_Sm[:, 0] - mean_S)[batch.view.state_A], self._state_values(guide, batch)[:, 0]

    def _state_values(self, found: Predictions, batch: Transitions) -> Tensor:
        return self._values(found.q_SKm.clamp(*self.bounds), found.value_SK, batch)

    def _values(self, q_SKm: Tensor, value_SK: Tensor, batch: Transitions) -> Tensor:
        """V_k(s) by the kind of target."""
        logp_Sm = batch.candidate_logp_Sm
        if self.settings.target == "max":
            return max_value(q_SKm, logp_Sm)
        if self.settings.target == "policy":
            return policy_value(q_SKm, value_SK, self.policy_logps(batch))
        return soft_value(q_SKm, value_SK, logp_Sm, log_rest(logp_Sm), self.settings.temperature)
