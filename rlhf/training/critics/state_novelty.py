"""How new the states are that actions led to: nats of linear features, which count towards the next exchange."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rlhf.algorithms.elliptic import GramMatrices, horizon_buckets, relative_coverage
from rlhf.algorithms.switching import information_gains
from rlhf.config.critic_ensemble import SwitchConfig
from rlhf.data.seeds import derive_seed
from rlhf.training.collectives import gather_lists
from rlhf.training.critics.transitions import Transitions


class Counted(NamedTuple):
    """Of the actions of all ranks: what each brought, and its horizon bucket."""

    nats_A: Tensor
    bucket_A: Tensor


class StateNovelty:
    """Random directions, of length 1, of the reference's normalised states; counted alike on all ranks."""

    def __init__(self, hidden: int, settings: SwitchConfig, horizon: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "features") % 2**63)
        self.projection_DP = torch.randn(hidden, settings.features, generator=generator).to(device)
        self.settings, self.horizon = settings, horizon
        self.gram = GramMatrices(settings.features, buckets=settings.buckets)

    def add(self, batch: Transitions | None, variance_A: Tensor | None, value_range: float) -> Counted:
        """Take this rank's new actions in, None where it has none; `variance_A` of the members for infogain."""
        phi_AP, bucket_A = torch.empty(0, self.settings.features), torch.empty(0, dtype=torch.long)
        if batch is not None:
            phi_SP, bucket_S = self._features(batch), self._buckets(batch)
            phi_AP, bucket_A = phi_SP[batch.view.next_state_A], bucket_S[batch.view.next_state_A]
        variance_A = torch.zeros(len(phi_AP)) if variance_A is None else variance_A
        gathered = gather_lists([(phi_AP, bucket_A, variance_A)])
        phi_AP, bucket_A, variance_A = (torch.cat(parts) for parts in zip(*gathered, strict=True))
        nats_A = self.gram.add(phi_AP, bucket_A)
        if self.settings.kind == "infogain":
            nats_A = information_gains(variance_A, self.settings.noise * value_range)
        return Counted(nats_A, bucket_A)

    def width(self, batch: Transitions) -> Tensor:
        """sqrt(phi' Lambda^-1 phi) of each state, (S,), on the CPU."""
        return self.gram.width(self._features(batch), self._buckets(batch)).float()

    def coverage(self, batch: Transitions) -> float:
        """Relative condition number of the actions of these episodes with respect to all that was counted."""
        rows_A = batch.view.next_state_A
        return relative_coverage(self.gram, self._features(batch)[rows_A], self._buckets(batch)[rows_A])

    def state_dict(self) -> dict[str, Any]:
        return self.gram.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.gram.load_state_dict(state)

    def _features(self, batch: Transitions) -> Tensor:
        normal_SD = functional.layer_norm(batch.state_SD, batch.state_SD.shape[-1:])
        return functional.normalize(normal_SD @ self.projection_DP, dim=-1).cpu()

    def _buckets(self, batch: Transitions) -> Tensor:
        return horizon_buckets(batch.view.position_S, self.horizon, self.settings.buckets)
