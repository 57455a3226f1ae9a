"""AuON (arXiv 2509.24320; github.com/ryyzn9/AuON) as pure functions on lists of matrices or of flat pieces of them.

What it is. Momentum M <- M + (1 - mu)(g - M) and u = (1 - mu) g + mu M, then one factor for a whole matrix. Paper form:
X = u / (|u| + eps) with |u| the Frobenius norm, and X / r with r the root of the mean of cosh(X)^2. As |X| <= 1,

    1 <= r <= sqrt(1 + sinh(1)^2 / N) = sqrt(1 + 1.3811 / N)   for a matrix of N elements:

**the divisor is 1 in all digits that matter** (1 + 2e-6 at most for 576 x 576; exactly 1 in bfloat16). There is no
brake on large elements, and no change of singular vectors or of the condition number: the paper form is momentum
normalised by matrix. The repository's form divides u itself, not X, by such an r: it is momentum SGD, proportional to
the gradient. Only the hybrid forms, with Newton-Schulz iterations, recondition.

A matrix may be spread over ranks: what is needed of all its elements are sums (squares, sinh squares, Gram matrices),
to which pieces add up. Pieces of no elements are allowed and count 0. `us` are float32 or float64; sums are float64.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from rlhf.optim.norms import sum_of_squares

Brake = Literal["series", "exact", "log"]
AdjustLR = Literal["paper", "match_rms_adamw", "none"]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks that hold the other pieces of the matrices, and returns it."""

SinhSums = Callable[[Tensor, Sequence[float] | None], Tensor]
"""`sums_of_sinh_squares` over whole matrices, for scales and limits, shape (P,)."""

EPS_NORM, EPS_DIVISOR = 1e-7, 1e-8
GAMMA = 1.5
"""The repository's factor inside the hyperbolic cosine."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration (kellerjordan.github.io/posts/muon): a singular value s in [0, 1] becomes
3.4445 s - 4.775 s^3 + 2.0315 s^5, at most 1.2024."""


CHUNK = 1 << 20
"""Elements whose hyperbolic sines are taken at once, in float64."""


def update_momentum_(momentums: Sequence[Tensor], grads: Sequence[Tensor], mu: float) -> None:
    """M <- M + (1 - mu)(g - M), in place; the gradients are left as they are."""
    torch._foreach_lerp_(list(momentums), list(grads), 1 - mu)


def nesterov(momentums: Sequence[Tensor], grads: Sequence[Tensor], mu: float) -> list[Tensor]:
    """u = (1 - mu) g + mu M, with the new M: 0.0975 g at the first step for mu 0.95."""
    return list(torch._foreach_lerp(list(grads), list(momentums), mu))


def sums_of_squares(us: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of each tensor, shape (P,), float64."""
    sums = [sum_of_squares(u.reshape(-1)) for u in us]
    # a rank may have no piece of any matrix, and takes part in the reductions all the same
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


def sums_of_sinh_squares(us: Sequence[Tensor], scale_P: Tensor, limits: Sequence[float] | None = None) -> Tensor:
    """Sum of sinh(scale u)^2 over each tensor, shape (P,), float64, with |scale u| cut at the limit where one is given.

    As cosh^2 = 1 + sinh^2, the mean of cosh^2 is 1 + sum / N, without the rounding of a sum of ones.
    """
    sums = []
    for index, (u, scale) in enumerate(zip(us, scale_P.double(), strict=True)):
        total = torch.zeros((), dtype=torch.float64, device=u.device)
        for part in u.reshape(-1).split(CHUNK):
            scaled = part.double() * scale
            if limits is not None:
                scaled.clamp_(-limits[index], limits[index])
            total += scaled.sinh_().square_().sum()
        sums.append(total)
    return torch.stack(sums) if sums else scale_P.double()


def series_divisor(square_sum_P: Tensor, numel_P: Tensor, eps_norm: float = EPS_NORM) -> Tensor:
    """r to first order, sqrt(1 + |X|^2 / N), shape (P,): no pass over the elements; off by less than 0.2 / N."""
    norm_P = square_sum_P.sqrt() + eps_norm
    return (1 + square_sum_P / norm_P.square() / numel_P).sqrt()


def exact_divisor(sinh_square_sum_P: Tensor, numel_P: Tensor) -> Tensor:
    """r = sqrt(mean of cosh^2), shape (P,), from sums of sinh^2."""
    return (1 + sinh_square_sum_P / numel_P).sqrt()


def log_limit(numel: int, gamma: float, largest: float) -> float:
    """The |gamma z| from which on one element alone makes `log_divisor` its largest: cutting there changes nothing and
    keeps the sums finite."""
    return largest - 1 + math.log(_gaussian_divisor(gamma)) + 0.5 * math.log(4 * numel)


def log_divisor(sinh_square_sum_P: Tensor, numel_P: Tensor, gamma: float, largest: float) -> Tensor:
    """1 + log(R / R_gaussian), within [1, largest], shape (P,): a brake that does act. An experiment of this project.

    R = sqrt(mean of cosh(gamma z)^2) with z = u / rms(u), from sums of sinh(gamma z)^2; R_gaussian is its value for
    gaussian elements, sqrt((1 + exp(2 gamma^2)) / 2). Lighter tails than gaussian leave the update as it is.
    """
    root_P = exact_divisor(sinh_square_sum_P, numel_P)
    return (1 + (root_P / _gaussian_divisor(gamma)).log()).clamp(1, largest)


def paper_scales(
    us: Sequence[Tensor], numels: Sequence[int], brake: Brake = "series", *, eps_norm: float = EPS_NORM,
    eps_divisor: float = EPS_DIVISOR, gamma: float = 0.25, largest_brake: float = 10.0, reduce: Reduce | None = None,
) -> Tensor:  # fmt: skip
    """The factor c of each matrix's update c u, shape (P,): 1 / ((|u| + eps_norm)(r + eps_divisor)).

    `numels` are the elements of whole matrices. One reduction of P numbers, two where the brake is not "series".
    `gamma` and `largest_brake` are those of the brake "log". A zero matrix has a finite factor, so its update is 0.
    |c u| is 0.909 for |u| = 1e-6 and 0.5 for 1e-7 at the default eps_norm: give a smaller one where gradients are that
    small.

    Raises ValueError for an unknown brake.
    """
    if brake not in ("series", "exact", "log"):
        raise ValueError(f"brake is {brake!r}: choose series, exact or log")
    return paper_scales_of_sums(
        _reduced(sums_of_squares(us), reduce), numels, _sinh_sums_of(us, reduce), brake, eps_norm=eps_norm,
        eps_divisor=eps_divisor, gamma=gamma, largest_brake=largest_brake,
    )  # fmt: skip


def paper_scales_of_sums(
    square_sum_P: Tensor, numels: Sequence[int], sinh_sums: SinhSums, brake: Brake = "series", *,
    eps_norm: float = EPS_NORM, eps_divisor: float = EPS_DIVISOR, gamma: float = 0.25, largest_brake: float = 10.0,
) -> Tensor:  # fmt: skip
    """`paper_scales` from the sums over each matrix: of the squares of u, and `sinh_sums`, which a "series" needs not.
    """
    numel_P = _numels(numels, square_sum_P)
    norm_P = square_sum_P.sqrt() + eps_norm
    if brake == "series":
        divisor_P = series_divisor(square_sum_P, numel_P, eps_norm)
    elif brake == "exact":
        divisor_P = exact_divisor(sinh_sums(1 / norm_P, None), numel_P)
    else:
        # of a zero matrix: 0 times any finite scale is 0
        scale_P = gamma * (numel_P / square_sum_P.clamp_min(1e-200)).sqrt()
        limits = [log_limit(numel, gamma, largest_brake) for numel in numels]
        divisor_P = log_divisor(sinh_sums(scale_P, limits), numel_P, gamma, largest_brake)
    return 1 / (norm_P * (divisor_P + eps_divisor))


def repository_scales(
    us: Sequence[Tensor], numels: Sequence[int], *, gamma: float = GAMMA, eps_norm: float = EPS_NORM,
    eps_divisor: float = EPS_DIVISOR, reduce: Reduce | None = None,
) -> Tensor:  # fmt: skip
    """As `paper_scales` for the form of the authors' repository: 1 / (r + eps_divisor), which is 1 up to 2.3 / N.

    The update is u itself: it grows with the gradient, so a learning rate for the paper form does not fit.
    """
    return repository_scales_of_sums(
        _reduced(sums_of_squares(us), reduce), numels, _sinh_sums_of(us, reduce), gamma=gamma, eps_norm=eps_norm,
        eps_divisor=eps_divisor,
    )  # fmt: skip


def repository_scales_of_sums(
    square_sum_P: Tensor, numels: Sequence[int], sinh_sums: SinhSums, *, gamma: float = GAMMA,
    eps_norm: float = EPS_NORM, eps_divisor: float = EPS_DIVISOR,
) -> Tensor:  # fmt: skip
    """`repository_scales` from the sums over each matrix."""
    sums_P = sinh_sums(gamma / (square_sum_P.sqrt() + eps_norm), None)
    return 1 / (exact_divisor(sums_P, _numels(numels, square_sum_P)) + eps_divisor)


def newton_schulz(x_MN: Tensor, steps: int, rows: int | None = None, reduce: Reduce | None = None) -> Tensor:
    """`steps` iterations X <- X (a + b S + c S^2) with S = X^T X, which move singular values in (0, 1] towards 1.

    `x_MN` has Frobenius norm at most 1. S is of the smaller side. Of a matrix that is sharded by rows, `rows` is the
    whole number of them and `reduce` adds up S, exactly; that takes at least as many rows as columns.

    Raises ValueError for a sharded matrix with more columns than rows.
    """
    columns = x_MN.shape[1]
    rows = x_MN.shape[0] if rows is None else rows
    if reduce is not None and rows < columns:
        raise ValueError(f"a {rows} x {columns} matrix that is sharded by rows has no Gram matrix of rows: gather it")
    a, b, c = NEWTON_SCHULZ
    x_MN = x_MN.mT if rows < columns else x_MN
    for _ in range(steps):
        gram_KK = _reduced(x_MN.mT @ x_MN, reduce)
        x_MN = a * x_MN + x_MN @ (b * gram_KK + c * gram_KK @ gram_KK)
    return x_MN.mT if rows < columns else x_MN


def hybrid_direction(
    u_MN: Tensor, steps: int = 1, brake: Literal["none", "paper", "repository"] = "paper", *,
    eps_norm: float = EPS_NORM, eps_divisor: float = EPS_DIVISOR, rows: int | None = None,
    reduce: Reduce | None = None,
) -> Tensor:  # fmt: skip
    """Newton-Schulz on X = u / (|u| + eps_norm), divided by r of what comes out.

    One iteration on a large matrix is mostly a factor of 3.44, as its singular values are small; five bring them near
    1. "paper": r of the result (with the root that the paper's printed formula lacks). "repository": r of 1.5 times the
    result over its norm. "none": 1, which is Muon's direction. `rows` and `reduce` as in `newton_schulz`.

    Raises ValueError for an unknown brake and as `newton_schulz` does.
    """
    norm_1 = _reduced(sums_of_squares([u_MN]), reduce).sqrt() + eps_norm
    x_MN = newton_schulz(u_MN * (1 / norm_1).to(u_MN.dtype), steps, rows, reduce)
    if brake == "none":
        return x_MN
    if brake == "paper":
        scale_1 = torch.ones_like(norm_1)
    elif brake == "repository":
        scale_1 = GAMMA / (_reduced(sums_of_squares([x_MN]), reduce).sqrt() + eps_norm)
    else:
        raise ValueError(f"brake is {brake!r}: choose none, paper or repository")
    numel = u_MN.shape[1] * (u_MN.shape[0] if rows is None else rows)
    divisor_1 = exact_divisor(_reduced(sums_of_sinh_squares([x_MN], scale_1), reduce), _numels([numel], norm_1))
    return x_MN / (divisor_1 + eps_divisor).to(x_MN.dtype)


def shape_scale(rows: int, columns: int, adjust_lr: AdjustLR) -> float:
    """Factor of the learning rate. "paper": sqrt(max(1, rows / columns)). "none": 1. "match_rms_adamw": 0.2 sqrt(rows
    columns), so that a normalised update has an RMS of 0.2 lr and learning rates of AdamW carry over.

    With "paper" an update's RMS is lr / sqrt(N) for wide matrices: an element of a LoRA factor of 8 x 4096 moves 23
    times as far as one of a 4096 x 4096 weight. Raises ValueError for another name.
    """
    if adjust_lr == "paper":
        return math.sqrt(max(1.0, rows / columns))
    if adjust_lr == "match_rms_adamw":
        return 0.2 * math.sqrt(rows * columns)
    if adjust_lr == "none":
        return 1.0
    raise ValueError(f"adjust_lr is {adjust_lr!r}: choose paper, match_rms_adamw or none")


def apply_(params: Sequence[Tensor], us: Sequence[Tensor], factor_P: Tensor, decay: float = 1.0) -> None:
    """p <- decay p - factor u, in place; `factor_P` is e.g. lr * shape scale * `paper_scales`, decay 1 - lr wd."""
    if decay != 1:
        torch._foreach_mul_(list(params), decay)
    for param, u, factor in zip(params, us, factor_P, strict=True):
        param.addcmul_(u, factor.to(u.dtype), value=-1)


def _sinh_sums_of(us: Sequence[Tensor], reduce: Reduce | None) -> SinhSums:
    return lambda scale_P, limits: _reduced(sums_of_sinh_squares(us, scale_P, limits), reduce)


def _gaussian_divisor(gamma: float) -> float:
    return math.sqrt((1 + math.exp(2 * gamma * gamma)) / 2)


def _numels(numels: Sequence[int], like_P: Tensor) -> Tensor:
    return torch.tensor(numels, dtype=torch.float64, device=like_P.device)


def _reduced(values: Tensor, reduce: Reduce | None) -> Tensor:
    return values if reduce is None else reduce(values)
