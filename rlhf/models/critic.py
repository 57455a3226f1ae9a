"""An ensemble of critics on the hidden states of any trunk: state values, and action values of a few candidate tokens.

Action values are low-rank and dueling. With x = LN(h), no affine part, and e_a a row of the output embedding,

    v_k(s) = v_min + (v_max - v_min) sigmoid(w_k x + b_k)
    Q_k(s, a) = v_k(s) + A_k(s, a),   A_k(s, a) = <U_k x, e_a> / sqrt(d) - its mean over the candidates under pi_ref

so nothing has an axis as long as the vocabulary. Tokens that are no candidates have A_k = 0; the reference policy's
mean of A_k is then 0 over the whole vocabulary.

Members differ by frozen random heads of the same form, their priors (Osband et al., "Randomized prior functions for
deep reinforcement learning", 2018): where there is no data they disagree by about `prior_scale`. The prior of v_k is
added within the sigmoid, so that a member can undo it and its values stay bounded.

Suffixes: N states, d hidden size, e embedding size, K members, m candidates.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf.data.seeds import derive_seed

# keeps the members' first values close to their priors, and not equal to them
INITIAL_SCALE = 0.01


class ActionValues(NamedTuple):
    """`value_NK`: within [v_min, v_max]. `q_NKm`: not bounded; clip it where it is used."""

    value_NK: Tensor
    q_NKm: Tensor


class ValueEnsemble(nn.Module):
    """v_k(s) of K members; the critic where actions cannot be enumerated (chunks, turns).

    `seed` determines the parameters and priors, on every device. `prior_scale`: 0.3 of the range if not given.
    `prior_hidden_size`: of the trunk that priors read, `hidden_size` if not given. `initial_value`: what an untrained
    member without a prior gives; the middle of the range if not given. That is optimistic where most episodes earn
    less, and enough by itself to explore: a critic without optimism needs no prior and an initial value near `v_min`.

    Raises ValueError for fewer than one member, an empty range, a negative `prior_scale`, or an initial value that is
    not within the range.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        members: int,
        seed: int,
        v_min: float = 0.0,
        v_max: float = 1.0,
        prior_scale: float | None = None,
        initial_value: float | None = None,
        prior_hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        if members < 1:
            raise ValueError(f"an ensemble needs at least one member, got {members}")
        if not -math.inf < v_min < v_max < math.inf:
            raise ValueError(f"v_min must be below v_max, both finite: got {v_min} and {v_max}")
        prior_scale = 0.3 * (v_max - v_min) if prior_scale is None else prior_scale
        if not 0 <= prior_scale < math.inf:
            raise ValueError(f"prior_scale must be 0 (no prior) or more, got {prior_scale}")
        initial_value = (v_min + v_max) / 2 if initial_value is None else initial_value
        if not v_min < initial_value < v_max:
            raise ValueError(f"initial_value must be within ({v_min}, {v_max}), got {initial_value}")
        self.hidden_size, self.members, self.seed = hidden_size, members, seed
        self.v_min, self.v_max, self.prior_scale = v_min, v_max, prior_scale
        self.prior_hidden_size = hidden_size if prior_hidden_size is None else prior_hidden_size
        self.value_weight_Kd = nn.Parameter(INITIAL_SCALE * self._draw("value", hidden_size) / math.sqrt(hidden_size))
        odds = (initial_value - v_min) / (v_max - initial_value)
        self.value_bias_K = nn.Parameter(torch.full((members,), math.log(odds)))
        self.register_buffer("prior_weight_Kd", self._draw("value prior", self.prior_hidden_size))

    def _draw(self, what: str, *shape: int) -> Tensor:
        """Standard normal numbers, of each member its own, (K, *shape)."""
        seeds = (derive_seed(self.seed, "critic", what, member) for member in range(self.members))
        return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    @property
    def value_range(self) -> float:
        return self.v_max - self.v_min

    def values(self, hidden_Nd: Tensor, prior_hidden_Nd: Tensor | None = None) -> Tensor:
        """v_k(s), (N, K). Priors read `prior_hidden_Nd`, states of a trunk that does not change; `hidden_Nd` if that is
        not given, which is right only for a frozen trunk."""
        x_Nd, prior_Nd = self._normalised(hidden_Nd, prior_hidden_Nd)
        logit_NK = F.linear(x_Nd, self.value_weight_Kd, self.value_bias_K)
        if self.prior_scale:
            # a sigmoid's slope at its centre is a quarter, so that the values spread by prior_scale there
            spread = 4 * self.prior_scale / self.value_range / math.sqrt(self.prior_hidden_size)
            logit_NK = logit_NK + spread * F.linear(prior_Nd, self.prior_weight_Kd)
        return self.v_min + self.value_range * logit_NK.sigmoid()

    def forward(self, hidden_Nd: Tensor, prior_hidden_Nd: Tensor | None = None) -> Tensor:
        return self.values(hidden_Nd, prior_hidden_Nd)

    def _normalised(self, hidden_Nd: Tensor, prior_hidden_Nd: Tensor | None) -> tuple[Tensor, Tensor]:
        prior_hidden_Nd = hidden_Nd if prior_hidden_Nd is None else prior_hidden_Nd
        expected = (self.hidden_size, self.prior_hidden_size)
        if hidden_Nd.dim() != 2 or (hidden_Nd.shape[1], prior_hidden_Nd.shape[-1]) != expected:
            raise ValueError(
                f"hidden states of shape {tuple(hidden_Nd.shape)} (for the priors {tuple(prior_hidden_Nd.shape)}): "
                f"the critic takes (N, {expected[0]}) and (N, {expected[1]})"
            )
        x_Nd = F.layer_norm(hidden_Nd, (self.hidden_size,))
        return x_Nd, F.layer_norm(prior_hidden_Nd, (self.prior_hidden_size,)).detach()


class DuelingEnsemble(ValueEnsemble):
    """Adds A_k(s, a) of candidate tokens to the values. `embedding_size`: of the output embedding, `hidden_size` if not
    given. Further arguments and errors as in `ValueEnsemble`."""

    def __init__(self, hidden_size: int, *, embedding_size: int | None = None, **settings: float | None) -> None:
        super().__init__(hidden_size, **settings)
        self.embedding_size = hidden_size if embedding_size is None else embedding_size
        self.advantage_Kde = nn.Parameter(torch.zeros(self.members, hidden_size, self.embedding_size))
        prior_Kde = self._draw("advantage prior", self.prior_hidden_size, self.embedding_size)
        self.register_buffer("prior_Kde", prior_Kde / math.sqrt(self.prior_hidden_size))

    def forward(
        self,
        hidden_Nd: Tensor,
        candidate_Nme: Tensor,
        logp_ref_Nm: Tensor,
        prior_hidden_Nd: Tensor | None = None,
        prior_NKm: Tensor | None = None,
    ) -> ActionValues:
        """`candidate_Nme`: the candidates' rows of the frozen output embedding. `logp_ref_Nm`: their log-probs under
        the reference policy, which weigh the mean that advantages are measured from; -inf marks a place without a
        candidate. At least one candidate of a state has a finite one. `prior_NKm`: what `prior_advantages` gives, where
        it was computed before."""
        value_NK = self.values(hidden_Nd, prior_hidden_Nd)
        if candidate_Nme.shape != (*logp_ref_Nm.shape, self.embedding_size) or len(candidate_Nme) != len(hidden_Nd):
            raise ValueError(
                f"candidates of shape {tuple(candidate_Nme.shape)} and log-probs of shape {tuple(logp_ref_Nm.shape)} "
                f"for {len(hidden_Nd)} states: expected (N, m, {self.embedding_size}) and (N, m)"
            )
        x_Nd, _ = self._normalised(hidden_Nd, prior_hidden_Nd)
        raw_NKm = _bilinear(x_Nd, self.advantage_Kde, candidate_Nme) / math.sqrt(self.hidden_size)
        if self.prior_scale:
            states_Nd = hidden_Nd if prior_hidden_Nd is None else prior_hidden_Nd
            raw_NKm = raw_NKm + (self.prior_advantages(states_Nd, candidate_Nme) if prior_NKm is None else prior_NKm)
        weight_N1m = logp_ref_Nm.to(raw_NKm).softmax(-1).unsqueeze(1)
        advantage_NKm = raw_NKm - (weight_N1m * raw_NKm).sum(-1, keepdim=True)
        return ActionValues(value_NK, value_NK.unsqueeze(-1) + advantage_NKm)

    @torch.no_grad()
    def prior_advantages(self, prior_hidden_Nd: Tensor, candidate_Nme: Tensor) -> Tensor:
        """What the frozen priors add to A_k, before the mean is taken off, (N, K, m). Equal for copies of a critic."""
        prior_Nd = F.layer_norm(prior_hidden_Nd, (self.prior_hidden_size,))
        # directions alone: the spread must not depend on how long a model's embedding rows are
        direction_Nme = F.normalize(candidate_Nme, dim=-1)
        return self.prior_scale * _bilinear(prior_Nd, self.prior_Kde, direction_Nme)


def _bilinear(x_Nd: Tensor, weight_Kde: Tensor, candidate_Nme: Tensor) -> Tensor:
    projected_NKe = torch.einsum("nd,kde->nke", x_Nd, weight_Kde)
    return projected_NKe @ candidate_Nme.transpose(1, 2)
