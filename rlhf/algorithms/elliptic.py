"""How new an action is to linear features of what was done before: Gram matrices, widths, and information in nats.

Lambda_g = lambda I + sum phi phi' over the actions of horizon bucket g, in float64. An action brings
log(1 + phi' Lambda^-1 phi) nats, and these add up to log det Lambda (the matrix determinant lemma), so that a doubling
of the determinant is log 2 nats.

Suffixes: N actions, p features, G buckets.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf.algorithms.value_targets import check_positive

# rows of one Cholesky factorisation of (rows, rows)
BLOCK = 256


class GramMatrices:
    """Lambda_g of G horizon buckets. Features are of unit norm and from a trunk that does not change: otherwise neither
    widths nor nats mean anything.

    Raises ValueError for sizes below 1 or a ridge that is not above 0.
    """

    def __init__(self, features: int, *, buckets: int = 4, ridge: float = 1.0) -> None:
        if features < 1 or buckets < 1:
            raise ValueError(f"there must be at least one feature and one bucket, got {features} and {buckets}")
        check_positive("ridge", ridge)
        self.ridge, self.actions = ridge, 0
        self.gram_Gpp = ridge * torch.eye(features, dtype=torch.float64).repeat(buckets, 1, 1)
        self._factor_Gpp = torch.linalg.cholesky(self.gram_Gpp)

    @property
    def logdet_G(self) -> Tensor:
        """log det Lambda_g - log det lambda I: the nats of all actions so far, (G,) float64."""
        own_G = 2 * self._factor_Gpp.diagonal(dim1=1, dim2=2).log().sum(1)
        return own_G - self.gram_Gpp.shape[1] * math.log(self.ridge)

    def add(self, phi_Np: Tensor, bucket_N: Tensor) -> Tensor:
        """Take actions in, one after the other; the nats that each brought, (N,) float64.

        Raises ValueError for features of another size or that are not finite, or a bucket that does not exist.
        """
        phi_Np = self._checked(phi_Np, bucket_N)
        nats_N = phi_Np.new_zeros(len(phi_Np))
        for bucket in bucket_N.unique().tolist():
            rows_N = (bucket_N == bucket).nonzero()[:, 0]
            for rows in rows_N.split(BLOCK):
                nats_N[rows] = self._take(bucket, phi_Np[rows])
        self.actions += len(phi_Np)
        return nats_N

    def _take(self, bucket: int, phi_np: Tensor) -> Tensor:
        half_pn = torch.linalg.solve_triangular(self._factor_Gpp[bucket], phi_np.t(), upper=False)
        # the k-th leading minor of I + Phi Lambda^-1 Phi' is the determinants' ratio after k rows, and a Cholesky
        # factor's squared diagonal holds the ratios of successive minors: 1 + phi_k' Lambda_(k-1)^-1 phi_k
        minor_nn = half_pn.t() @ half_pn
        minor_nn.diagonal().add_(1)
        nats_n = 2 * torch.linalg.cholesky(minor_nn).diagonal().log()
        self.gram_Gpp[bucket] += phi_np.t() @ phi_np
        self._factor_Gpp[bucket] = torch.linalg.cholesky(self.gram_Gpp[bucket])
        return nats_n

    def width(self, phi_Np: Tensor, bucket_N: Tensor) -> Tensor:
        """sqrt(phi' Lambda^-1 phi), (N,) float64: the elliptic bonus without its factor."""
        phi_Np = self._checked(phi_Np, bucket_N)
        width_N = phi_Np.new_zeros(len(phi_Np))
        for bucket in bucket_N.unique().tolist():
            rows_N = bucket_N == bucket
            half_pn = torch.linalg.solve_triangular(self._factor_Gpp[bucket], phi_Np[rows_N].t(), upper=False)
            width_N[rows_N] = half_pn.norm(dim=0)
        return width_N

    def _checked(self, phi_Np: Tensor, bucket_N: Tensor) -> Tensor:
        buckets, features = self.gram_Gpp.shape[:2]
        if phi_Np.dim() != 2 or phi_Np.shape[1] != features or bucket_N.shape != phi_Np.shape[:1]:
            raise ValueError(
                f"features of shape {tuple(phi_Np.shape)} with buckets of shape {tuple(bucket_N.shape)}: expected "
                f"(N, {features}) and (N,)"
            )
        if len(bucket_N) and not (bucket_N.min() >= 0 and bucket_N.max() < buckets):
            raise ValueError(f"buckets reach from {int(bucket_N.min())} to {int(bucket_N.max())}: there are {buckets}")
        if not phi_Np.isfinite().all():
            raise ValueError("features are not finite: the trunk that they come from has diverged or overflowed")
        return phi_Np.detach().to(self.gram_Gpp)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {"gram_Gpp": self.gram_Gpp.clone(), "actions": self.actions}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Raises ValueError for matrices of another shape."""
        if state["gram_Gpp"].shape != self.gram_Gpp.shape:
            raise ValueError(
                f"the checkpoint's Gram matrices have shape {tuple(state['gram_Gpp'].shape)} and these "
                f"{tuple(self.gram_Gpp.shape)}: restore the number of features and buckets that the run began with"
            )
        self.gram_Gpp = state["gram_Gpp"].to(self.gram_Gpp).clone()
        self.actions = state["actions"]
        self._factor_Gpp = torch.linalg.cholesky(self.gram_Gpp)


def horizon_buckets(position_N: Tensor, horizon: int, buckets: int) -> Tensor:
    """Which equal part of `horizon` each position lies in, 0 to buckets - 1; later positions count to the last."""
    return (position_N * buckets // horizon).clamp_max(buckets - 1)


def information_bound(features: int, actions: int, ridge: float) -> float:
    """p log(1 + N / (lambda p)): the most nats that N actions with features of at most unit norm can bring."""
    return features * math.log1p(actions / (ridge * features))


def relative_coverage(gram: GramMatrices, phi_Np: Tensor, bucket_N: Tensor) -> float:
    """mean phi' (Lambda / n)^-1 phi over the given actions, n the actions taken in: a relative condition number of what
    the best episodes do with respect to the data. p for actions like those in the data, and large for others. A proxy:
    single-policy concentrability cannot be told without the optimal policy."""
    return gram.actions * float(gram.width(phi_Np, bucket_N).square().mean())
