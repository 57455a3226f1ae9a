"""Critics on hidden states that never change: a small network of their own, with an ensemble of values on top."""

import torch
from torch import Tensor, nn

from rlhf.data.seeds import derive_seed
from rlhf.models.critic import ActionValues, DuelingEnsemble, ValueEnsemble


class FrozenStateCritic(nn.Module):
    """hidden states (N, D) of a frozen trunk to values (N, K) within the bounds, float32.

    Values begin near `initial_share` of the way through the bounds. The network has one hidden layer and feeds all
    members; their priors read the frozen states themselves. Weights are a function of `seed`; the state dict holds the
    priors. `embedding_size`: None for values of states alone (ValueEnsemble), else of the output embedding's rows, and
    there are values of candidate tokens (DuelingEnsemble).
    """

    def __init__(
        self, hidden: int, *, members: int, bounds: tuple[float, float], prior_scale: float, seed: int,
        initial_share: float = 0.5, width: int = 256, embedding_size: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bounds, self.members = bounds, members
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "critic", "network"))
            self.network = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.GELU())
        settings = dict(
            members=members, seed=seed, v_min=bounds[0], v_max=bounds[1],
            prior_scale=prior_scale * (bounds[1] - bounds[0]), prior_hidden_size=hidden,
            initial_value=bounds[0] + initial_share * (bounds[1] - bounds[0]),
        )  # fmt: skip
        if embedding_size is None:
            self.ensemble = ValueEnsemble(width, **settings)
        else:
            self.ensemble = DuelingEnsemble(width, embedding_size=embedding_size, **settings)

    def forward(
        self, hidden_ND: Tensor, candidate_Nme: Tensor | None = None, logp_ref_Nm: Tensor | None = None,
        prior_NKm: Tensor | None = None,
    ) -> Tensor | ActionValues:  # fmt: skip
        """Values of states (N, K), or with candidates also theirs: see `DuelingEnsemble`."""
        hidden_ND = hidden_ND.float()
        x_Nd = self.network(hidden_ND)
        if candidate_Nme is None:
            return self.ensemble.values(x_Nd, hidden_ND)
        return self.ensemble(x_Nd, candidate_Nme, logp_ref_Nm, hidden_ND, prior_NKm)
