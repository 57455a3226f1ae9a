"""FRUGAL's state-full part as a subspace: a gradient matrix is projected on `rank` directions, the rest is state-free.

A basis has shape (rank, D) with orthonormal rows. On the right side (D columns) a gradient g of shape (M, N) becomes
g B^T of shape (M, rank), on the left side (D rows) B g of shape (rank, N). Unlike a choice of coordinates this is not
AdamW at full rank: Adam is not equivariant under rotation, and its step in another basis is another step.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Side = Literal["left", "right"]
SideRule = Literal["std", "reverse_std", "left", "right"]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks that hold the other rows of a matrix, and returns it."""

DEAD_ZONE = 4
"""Residuals up to this many roundings of the largest gradient are rounding errors: a sign step would make each of them
a full step."""


def choose_side(rows: int, columns: int, rule: SideRule = "std") -> Side:
    """The side that is projected. "std" is GaLore's (arXiv 2403.03507): the smaller one, right for a square.

    Matrices that are sharded by rows need "right": the projection of a row then needs no other row.
    """
    if rule in ("left", "right"):
        return rule
    if rule not in ("std", "reverse_std"):
        raise ValueError(f"side is {rule!r}: choose std, reverse_std, left or right")
    return "right" if (rows >= columns) == (rule == "std") else "left"


def svd_basis(grad_MN: Tensor, rank: int, side: Side, reduce: Reduce | None = None) -> Tensor | None:
    """The leading `rank` singular vectors of a matrix, shape (rank, D), or None where the matrix is zero.

    They are eigenvectors of the Gram matrix (g^T g on the right, D by D), which row shards add up to. It is in
    float64: the square of a gradient of 1e-23 underflows in float32, and the condition number is squared too. Even so
    it takes about as long as a float32 decomposition of a square gradient, and half as long for 576 x 1536. Signs of
    the vectors are arbitrary; updates do not depend on them.

    Raises ValueError for a non-finite matrix, a rank that the side does not have, or shards with side "left".
    """
    if side == "left" and reduce is not None:
        raise ValueError("row shards do not add up to a Gram matrix of rows: project a sharded matrix on side 'right'")
    grad = grad_MN.double() if side == "right" else grad_MN.double().mT
    if not 1 <= rank <= grad.shape[1]:
        raise ValueError(f"rank {rank} of a matrix with {grad.shape[1]} directions on side {side!r}")
    gram_DD = grad.mT @ grad
    if reduce is not None:
        gram_DD = reduce(gram_DD)
    total = float(gram_DD.trace())
    if total != total or total == float("inf"):
        raise ValueError("the gradient has NaN or infinite elements: no basis is chosen from it")
    if total == 0:
        return None
    vectors_DD = torch.linalg.eigh(gram_DD).eigenvectors
    # ascending eigenvalues
    return vectors_DD[:, -rank:].flip(1).mT.contiguous().to(_compute_dtype(grad_MN))


def random_basis(directions: int, rank: int, generator: torch.Generator) -> Tensor:
    """A random semi-orthogonal basis, uniform over all of them, shape (rank, directions), float32 on the CPU."""
    gaussian_DR = torch.randn(directions, rank, generator=generator, dtype=torch.float64)
    basis_DR, triangle_RR = torch.linalg.qr(gaussian_DR)
    # the decomposition leaves the signs to the library
    return (basis_DR * triangle_RR.diagonal().sign()).mT.contiguous().float()


def permutation_basis(directions: int, rank: int, generator: torch.Generator) -> Tensor:
    """Random coordinates in random order as a basis, shape (rank, directions), float32 on the CPU.

    Columns of rlhf.optim.selection are the same choice without the matrix products; this one is for comparisons.
    """
    return torch.eye(directions)[torch.randperm(directions, generator=generator)[:rank]]


def project(grad_MN: Tensor, basis_RD: Tensor, side: Side) -> Tensor:
    """The gradient's coordinates in the basis: (M, rank) on the right, (rank, N) on the left."""
    grad_MN = grad_MN.to(basis_RD.dtype)
    return grad_MN @ basis_RD.mT if side == "right" else basis_RD @ grad_MN


def project_back(low: Tensor, basis_RD: Tensor, side: Side) -> Tensor:
    """The (M, N) matrix with coordinates `low`."""
    return low @ basis_RD if side == "right" else basis_RD.mT @ low


def residual(grad_MN: Tensor, low: Tensor, basis_RD: Tensor, side: Side, largest: Tensor | None = None) -> Tensor:
    """What the subspace does not hold of the gradient, with rounding errors set to 0: all of it at full rank, else
    elements up to 4 roundings of the largest gradient.

    `largest` is max |g| of the whole matrix, where `grad_MN` is a shard of it.
    """
    rank, directions = basis_RD.shape
    if rank == directions:
        return torch.zeros_like(grad_MN, dtype=basis_RD.dtype)
    grad_MN = grad_MN.to(basis_RD.dtype)
    rest_MN = grad_MN - project_back(low, basis_RD, side)
    largest = grad_MN.abs().amax() if largest is None else largest
    return rest_MN.masked_fill_(rest_MN.abs() <= DEAD_ZONE * torch.finfo(basis_RD.dtype).eps * largest, 0)


def reproject(low: Tensor, old_RD: Tensor, new_RD: Tensor, side: Side) -> Tensor:
    """A first moment in the coordinates of a new basis: m B_old B_new^T on the right. What lies outside is lost."""
    change = old_RD @ new_RD.mT
    return low @ change if side == "right" else change.mT @ low


def reproject_squares(low: Tensor, old_RD: Tensor, new_RD: Tensor, side: Side) -> Tensor:
    """A second moment in a new basis, as if its coordinates were uncorrelated: v (B_old B_new^T)^2, squared by element.

    Experimental: no published evidence that it helps. It is right for an old basis whose coordinates are permuted, and
    never negative.
    """
    change = (old_RD @ new_RD.mT).square()
    return low @ change if side == "right" else change.mT @ low


def reprojected_mass(mass: float, old_low: Tensor, new_low: Tensor) -> float:
    """Weight of past gradients in a momentum after `reproject`, for its bias correction: mass ||m_new|| / ||m_old||.

    0 where there was no momentum. Source: the projected momentum SGD in the notebook of github.com/fzmushko/FRUGAL.
    """
    before = float(torch.linalg.vector_norm(old_low))
    return mass * float(torch.linalg.vector_norm(new_low)) / before if before > 0 else 0.0


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    # a bfloat16 basis is not orthonormal enough
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
