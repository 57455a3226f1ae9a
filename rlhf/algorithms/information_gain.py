"""How much new has been seen: the log-determinant of the states' Gram matrix, and when that is enough to plan anew.

Lambda = ridge I + sum phi phi'. log det Lambda grows by sum log(1 + phi' Lambda^-1 phi): much for directions that are
new, next to nothing for what has been seen often, and so at most p log(1 + N / (ridge p)) in all. Exchanging a critic
each time that it has grown by a fixed amount makes the number of exchanges logarithmic in N (determinant doubling, as
for linear processes; arXiv 2311.15238 for general classes).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class InformationGain:
    """Lambda of unit features phi (p of them), float64, and its log-determinant at the last exchange."""

    def __init__(self, features: int, ridge: float = 1.0) -> None:
        if not ridge > 0:
            raise ValueError(f"ridge must be above 0, got {ridge}: directions that were never seen have no other size")
        self.ridge = ridge
        self.gram_PP = ridge * torch.eye(features, dtype=torch.float64)
        self.marked = self.logdet

    @property
    def logdet(self) -> float:
        return float(torch.linalg.cholesky(self.gram_PP).diagonal().log().sum()) * 2

    @property
    def gained(self) -> float:
        """Nats since the last exchange."""
        return self.logdet - self.marked

    def add(self, outer_PP: Tensor) -> None:
        """`outer_PP`: the sum of phi phi' over new states, of all ranks."""
        self.gram_PP += outer_PP.double().cpu()

    def mark(self) -> None:
        """An exchange has happened."""
        self.marked = self.logdet

    def bonus(self, phi_NP: Tensor) -> Tensor:
        """sqrt(phi' Lambda^-1 phi) of each state: near 1 / sqrt(ridge) where nothing alike was seen, 1 / sqrt(n) after
        n times."""
        solved_PN = torch.cholesky_solve(phi_NP.double().T, torch.linalg.cholesky(self.gram_PP))
        return (phi_NP.double() * solved_PN.T).sum(-1).clamp_min(0).sqrt()


def unit_features(state_ND: Tensor, projection_DP: Tensor) -> Tensor:
    """Random directions of normalised states, of length 1 each; (N, P)."""
    normal_ND = torch.nn.functional.layer_norm(state_ND.float(), state_ND.shape[-1:])
    return torch.nn.functional.normalize(normal_ND @ projection_DP, dim=-1)


def most_exchanges(features: int, states: int, nats: float, ridge: float = 1.0) -> float:
    """The bound p log(1 + N / (ridge p)) / nats."""
    return features * math.log1p(states / (ridge * features)) / nats


@dataclass(frozen=True, slots=True)
class SwitchRule:
    """Exchange once `nats` were gained, not before `min_steps` after the last exchange and not after `max_steps`."""

    nats: float
    min_steps: int
    max_steps: int

    def cause(self, gained: float, steps: int) -> str | None:
        """Why to exchange `steps` steps after the last one: "information", "forced", or None."""
        if steps >= self.max_steps:
            return "forced"
        return "information" if steps >= self.min_steps and gained >= self.nats else None
