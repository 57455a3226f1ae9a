"""Subspaces against singular value decompositions, torch's AdamW in the subspace, and reference trajectories."""

import pytest
import torch

from rlhf.optim.schedules import count_of
from rlhf.optim.subspace import (
    choose_side,
    permutation_basis,
    project,
    project_back,
    random_basis,
    reproject,
    reproject_squares,
    reprojected_mass,
    residual,
    svd_basis,
)

DOUBLE = torch.float64
W0 = torch.tensor([[1, -2, 0.5, 3], [0, 1, -1, 2]], dtype=DOUBLE)
GRADS = [
    torch.tensor([[0.1, -0.2, 0.3, 0], [0.05, 0.4, -0.1, -0.3]], dtype=DOUBLE),
    torch.tensor([[0.2, -0.1, 0.3, 1e-4], [-0.05, 0.1, 0.1, -0.3]], dtype=DOUBLE),
    torch.tensor([[-0.1, 0.4, 0.3, 0], [0.02, -0.2, 0.1, 0.3]], dtype=DOUBLE),
]
LR, WEIGHT_DECAY = 1e-2, 0.1


def gaussian(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class AdamInASubspace:
    """FRUGAL on one matrix: torch's AdamW on the coordinates in a basis, a sign step on the rest."""

    def __init__(self, basis, side, shape, inactive_scale):
        self.basis, self.side, self.inactive_scale = basis, side, inactive_scale
        # the coordinates of the update: started from 0 and put back there after each step
        low = project(torch.zeros(shape, dtype=basis.dtype), basis, side)
        self.low = torch.nn.Parameter(low)
        self.optimizer = torch.optim.AdamW([self.low], lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def step(self, weight, grad):
        low = project(grad, self.basis, self.side)
        rest = residual(grad, low, self.basis, self.side)
        self.low.data.zero_()
        self.low.grad = low
        self.optimizer.step()
        update = project_back(self.low.detach(), self.basis, self.side) - LR * self.inactive_scale * rest.sign()
        return weight * (1 - LR * WEIGHT_DECAY) + update


def adamw(weight, grads):
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([parameter], lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("sign", [1, -1])
def test_reference_trajectory_of_svd(sign):
    # the reference took its basis from a decomposition in float32, so that its length is 1 + 1e-7
    side = choose_side(2, 4)
    basis = svd_basis(GRADS[0], count_of(2, 0.5), side) * sign
    assert side == "left" and float(basis[0, 0] * basis[0, 1]) < 0
    expected_basis = torch.tensor([[0.49806073308, 0.867142260075]], dtype=DOUBLE)
    torch.testing.assert_close(basis.abs(), expected_basis, rtol=0, atol=2e-7)
    rule = AdamInASubspace(basis, side, (2, 4), inactive_scale=0.1)
    weight, after = W0, []
    for grad in GRADS:
        weight = rule.step(weight, grad)
        after.append(weight)
    expected = {
        0: [
            [0.993019400392, -1.99401939278, 0.49351939288, 2.99301939286],
            [0.00767140915453, 0.989328577593, -0.991328577766, 2.00767142227],
        ],
        2: [
            [0.985842475299, -1.9851669632, 0.482441962532, 2.98075458006],
            [0.0166980700222, 0.978875611777, -0.977257639061, 2.0145921361],
        ],
    }
    for index, values in expected.items():
        torch.testing.assert_close(after[index], torch.tensor(values, dtype=DOUBLE), rtol=0, atol=4e-9)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 5)])
def test_full_rank_svd_is_adam_on_rotated_gradients_and_not_adamw(shape):
    grads = [gaussian(*shape, seed=seed) for seed in range(8)]
    side = choose_side(*shape)
    basis = svd_basis(grads[0], min(shape), side)
    weight = expected = gaussian(*shape, seed=99)
    rule = AdamInASubspace(basis, side, shape, inactive_scale=1.0)
    for grad in grads:
        weight = rule.step(weight, grad)
    rotated = AdamInASubspace(basis, side, shape, inactive_scale=0.0)
    for grad in grads:
        expected = rotated.step(expected, grad)
    assert weight.equal(expected)
    assert float((weight - adamw(gaussian(*shape, seed=99), grads)).abs().max()) > LR


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 5)])
def test_a_full_permutation_is_adamw(shape):
    grads = [gaussian(*shape, seed=seed, dtype=torch.float32) for seed in range(8)]
    side = choose_side(*shape)
    directions = shape[1] if side == "right" else shape[0]
    basis = permutation_basis(directions, directions, torch.Generator().manual_seed(3))
    weight = gaussian(*shape, seed=99, dtype=torch.float32)
    rule = AdamInASubspace(basis, side, shape, inactive_scale=1.0)
    expected = adamw(weight, grads)
    for grad in grads:
        weight = rule.step(weight, grad)
    torch.testing.assert_close(weight, expected, rtol=0, atol=2.4e-7)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_basis_spans_the_leading_singular_vectors(shape, side):
    grad = gaussian(*shape)
    basis = svd_basis(grad, 3, side)
    left, _, right = torch.linalg.svd(grad, full_matrices=False)
    vectors = right[:3] if side == "right" else left[:, :3].mT
    assert basis.shape == vectors.shape
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3, dtype=DOUBLE), rtol=0, atol=1e-14)
    torch.testing.assert_close(basis.mT @ basis, vectors.mT @ vectors, rtol=0, atol=1e-13)
    # in order of the singular values
    torch.testing.assert_close((basis @ vectors.mT).abs(), torch.eye(3, dtype=DOUBLE), rtol=0, atol=1e-12)
    # gradients of 1e-30 have squares that float32 does not hold
    small = svd_basis((grad * 1e-30).float(), 3, side)
    assert small.dtype == torch.float32
    torch.testing.assert_close(small.mT @ small, (vectors.mT @ vectors).float(), rtol=0, atol=1e-5)


def test_shards_of_rows_find_the_basis_of_the_whole_matrix():
    grad = gaussian(11, 6)
    shards = [grad[:4], grad[4:4], grad[4:]]
    gram = sum(shard.mT @ shard for shard in shards)
    whole = svd_basis(grad, 2, "right")
    for shard in shards:
        basis = svd_basis(shard, 2, "right", reduce=lambda own: gram)
        torch.testing.assert_close(basis.mT @ basis, whole.mT @ whole, rtol=0, atol=1e-14)
    # the projection of rows needs no other rows
    low = torch.cat([project(shard, whole, "right") for shard in shards])
    torch.testing.assert_close(low, project(grad, whole, "right"), rtol=0, atol=1e-14)


def test_a_zero_gradient_has_no_basis():
    assert svd_basis(torch.zeros(4, 3), 2, "right") is None
    assert svd_basis(torch.zeros(4, 3), 2, "left") is None
    # the other ranks' rows are not zero
    assert svd_basis(torch.zeros(4, 3), 2, "right", reduce=lambda own: torch.eye(3, dtype=DOUBLE)) is not None


def test_gradients_without_a_basis_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite elements: no basis is chosen"):
        svd_basis(torch.tensor([[1.0, float("nan")]]), 1, "right")
    with pytest.raises(ValueError, match="NaN or infinite elements: no basis is chosen"):
        svd_basis(torch.tensor([[1.0, float("inf")]]), 1, "right")
    with pytest.raises(ValueError, match="rank 4 of a matrix with 3 directions on side 'right'"):
        svd_basis(torch.ones(5, 3), 4, "right")
    with pytest.raises(ValueError, match="project a sharded matrix on side 'right'"):
        svd_basis(torch.ones(3, 5), 1, "left", reduce=lambda own: own)


@pytest.mark.parametrize(
    ("rule", "tall", "wide", "square"),
    [
        ("std", "right", "left", "right"),
        ("reverse_std", "left", "right", "left"),
        ("left", "left", "left", "left"),
        ("right", "right", "right", "right"),
    ],
)
def test_sides(rule, tall, wide, square):
    assert (choose_side(5, 3, rule), choose_side(3, 5, rule), choose_side(4, 4, rule)) == (tall, wide, square)


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="side is 'both': choose std, reverse_std, left or right"):
        choose_side(3, 4, "both")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_parts_add_up_to_the_gradient_and_the_rest_is_outside_the_subspace(side, dtype):
    grad = gaussian(8, 8, dtype=dtype)
    basis = svd_basis(grad, 3, side)
    low = project(grad, basis, side)
    rest = residual(grad, low, basis, side)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(project_back(low, basis, side) + rest, grad, rtol=0, atol=20 * eps)
    torch.testing.assert_close(project(rest, basis, side), torch.zeros_like(low), rtol=0, atol=40 * eps)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rounding_errors_of_the_residual_are_no_sign_steps(side):
    grad = gaussian(48, 32, dtype=torch.float32)
    full = svd_basis(grad, 48 if side == "left" else 32, side)
    low = project(grad, full, side)
    assert float((grad - project_back(low, full, side)).count_nonzero()) > 0.5 * grad.numel()
    assert residual(grad, low, full, side).count_nonzero() == 0
    # all of a gradient of rank 2 lies in a subspace of rank 8
    thin = gaussian(48, 2, dtype=torch.float32) @ gaussian(2, 32, seed=1, dtype=torch.float32)
    basis = svd_basis(thin, 8, side)
    assert residual(thin, project(thin, basis, side), basis, side).count_nonzero() == 0
    assert (thin - project_back(project(thin, basis, side), basis, side)).count_nonzero() > 0


def test_the_dead_zone_of_a_shard_is_that_of_the_whole_matrix():
    grad = gaussian(6, 4, dtype=torch.float32)
    grad[0] *= 1e8
    basis = random_basis(4, 2, torch.Generator().manual_seed(0))
    whole = residual(grad, project(grad, basis, "right"), basis, "right")
    assert whole[1:].count_nonzero() == 0 and whole[0].count_nonzero() == 4
    rows = grad[1:]
    shard = residual(rows, project(rows, basis, "right"), basis, "right", largest=grad.abs().max())
    assert shard.count_nonzero() == 0
    assert residual(rows, project(rows, basis, "right"), basis, "right").count_nonzero() == rows.numel()


def test_gradients_in_bfloat16_are_projected_in_the_precision_of_the_basis():
    grad = gaussian(6, 4).bfloat16()
    basis = svd_basis(grad, 2, "right")
    assert basis.dtype == project(grad, basis, "right").dtype == torch.float32
    assert residual(grad, project(grad, basis, "right"), basis, "right").dtype == torch.float32


def test_random_bases_are_orthonormal_repeatable_and_of_no_preferred_direction():
    basis = random_basis(7, 3, torch.Generator().manual_seed(5))
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3), rtol=0, atol=1e-6)
    assert basis.equal(random_basis(7, 3, torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([random_basis(5, 2, generator) for _ in range(4000)]).mean(0)
    # each element has variance 1/5: five standard errors
    assert float(mean.abs().max()) < 5 * (1 / 5 / 4000) ** 0.5


def test_permutations_are_distinct_unit_vectors():
    basis = permutation_basis(6, 4, torch.Generator().manual_seed(1))
    assert basis.sum(1).tolist() == [1] * 4 and sorted(basis.unique().tolist()) == [0, 1]
    assert float(basis.sum(0).max()) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_momentum_in_a_new_basis_is_the_projection_of_the_old_momentum(side):
    momentum = gaussian(6, 6)
    old, new = svd_basis(gaussian(6, 6, seed=1), 3, side), svd_basis(gaussian(6, 6, seed=2), 2, side)
    low = project(momentum, old, side)
    moved = reproject(low, old, new, side)
    torch.testing.assert_close(moved, project(project_back(low, old, side), new, side), rtol=0, atol=1e-14)
    torch.testing.assert_close(reproject(low, old, old, side), low, rtol=0, atol=1e-14)
    torch.testing.assert_close(reproject_squares(low.square(), old, old, side), low.square(), rtol=0, atol=1e-14)
    # flipped vectors flip the momentum, not its squares
    torch.testing.assert_close(reproject(low, old, -old, side), -low, rtol=0, atol=1e-14)
    assert bool((reproject_squares(low.square(), old, new, side) >= 0).all())


def test_second_moments_of_permuted_coordinates_are_moved_with_them():
    old, new = torch.eye(5)[[0, 2, 4]], torch.eye(5)[[4, 1, 0]]
    moved = reproject_squares(torch.tensor([[1.0, 2, 3]]), old, new, "right")
    assert moved.tolist() == [[3, 0, 1]]
    assert reproject(torch.tensor([[1.0, -2, 3]]), old, new, "right").tolist() == [[3, 0, 1]]


def test_mass_of_a_reprojected_momentum():
    assert reprojected_mass(0.5, torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(0.3)
    assert reprojected_mass(0.5, torch.zeros(2), torch.zeros(2)) == 0.0
