"""AuON's forms against hand-made references in float64, closed forms, and the bounds that make its divisor 1."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.optim import auon_rule
from rlhf.optim.auon_rule import hybrid_direction, newton_schulz, paper_scales, repository_scales, shape_scale

DOUBLE = torch.float64
W0 = torch.tensor([[1, -2, 0.5], [3, 0, -1]], dtype=DOUBLE)
GRADS = [
    torch.tensor([[0.1, -0.2, 0.3], [0, 0.4, -0.1]], dtype=DOUBLE),
    torch.tensor([[0.2, -0.1, 0.3], [0.01, 0, 0.1]], dtype=DOUBLE),
    torch.tensor([[-0.1, 0.4, 0.3], [0, 0.2, 0.2]], dtype=DOUBLE),
]
LR, MU, WEIGHT_DECAY = 0.1, 0.95, 0.01


def trajectory(direction, scale):
    """Weights after each of three steps; `direction` and `scale` are of a list with the one matrix."""
    weight, momentum, after = W0.clone(), torch.zeros_like(W0), []
    for grad in GRADS:
        auon_rule.update_momentum_([momentum], [grad], MU)
        us = direction(auon_rule.nesterov([momentum], [grad], MU))
        factor = LR * shape_scale(2, 3, "paper") * scale(us)
        auon_rule.apply_([weight], us, factor, 1 - LR * WEIGHT_DECAY)
        after.append(weight.clone())
    assert_reference(momentum, 0.0090125, 0.006225, 0.0427875, 0.000475, 0.02805, 0.0102375)
    return after


def assert_reference(weight, *expected):
    torch.testing.assert_close(weight.flatten(), torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=6e-12)


def test_paper_form():
    after = trajectory(lambda us: us, lambda us: paper_scales(us, [6], "exact"))
    assert_reference(
        after[0], 0.982524885541, -1.96504977108, 0.450074656622, 2.997, -0.0659004578369, -0.982524885541
    )
    assert_reference(
        after[1], 0.942108791803, -1.9322522276, 0.379358519404, 2.9924018452, -0.0954764488014, -0.990143435798
    )
    assert_reference(
        after[2], 0.936769394261, -1.96231162061, 0.310279143599, 2.98885235571, -0.140623896234, -1.01350542963
    )


def test_repository_form():
    after = trajectory(lambda us: us, lambda us: repository_scales(us, [6]))
    assert_reference(
        after[0], 0.998202282189, -1.99640456438, 0.497106846568, 2.997, -0.00319087124297, -0.998202282189
    )
    assert_reference(
        after[2], 0.993963095496, -1.99299963112, 0.488094667799, 2.99089288701, -0.00764123554476, -0.998241465457
    )


def test_hybrid_forms():
    def third(steps, brake):
        return trajectory(lambda us: [hybrid_direction(us[0], steps, brake)], lambda us: torch.ones(1, dtype=DOUBLE))[2]

    assert_reference(
        third(5, "repository"),
        0.93555685635, -1.97226671676, 0.312005407348, 2.97172856784, -0.225590925073, -1.03405973605,
    )  # fmt: skip
    assert_reference(
        third(1, "repository"),
        0.934856868805, -1.97254603069, 0.312323278294, 2.9725246265, -0.213579408948, -1.03276410887,
    )  # fmt: skip
    assert_reference(
        third(1, "paper"),
        0.93098590854, -1.97106195195, 0.29910916984, 2.97159297982, -0.22881235044, -1.03461102916,
    )  # fmt: skip


def test_the_first_nesterov_step_is_0_0975_of_the_gradient_and_gradients_stay_as_they_are():
    grad, momentum = torch.tensor([2.0, -4.0]), torch.zeros(2)
    auon_rule.update_momentum_([momentum], [grad], 0.95)
    (u,) = auon_rule.nesterov([momentum], [grad], 0.95)
    torch.testing.assert_close(u, 0.0975 * torch.tensor([2.0, -4.0]))
    assert grad.tolist() == [2.0, -4.0]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def paper_update(u, brake="exact", **settings):
    return u * paper_scales([u], [u.numel()], brake, **settings)[0]


def exact_r(u):
    normed = u / (u.norm() + 1e-7)
    return normed.cosh().square().mean().sqrt()


@pytest.mark.parametrize(("factor", "difference"), [(1e-6, 3e-4), (1e-3, 3e-7), (1e3, 3e-10), (1e6, 3e-10)])
def test_the_paper_form_does_not_depend_on_the_gradients_scale_up_to_eps(factor, difference):
    u = gaussian(192, 576)
    update = paper_update(u)
    change = (paper_update(u * factor) - update).norm() / update.norm()
    assert float(change) == pytest.approx(difference, rel=0.02)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_repository_form_is_proportional_to_the_gradient(factor):
    u = gaussian(192, 576)
    scale, of_larger = repository_scales([u], [u.numel()]), repository_scales([u * factor], [u.numel()])
    assert float((u * factor * of_larger).norm() / (u * scale).norm()) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize(("norm", "length"), [(1e-8, 0.09091), (1e-7, 0.5), (1e-6, 0.9091), (1e-4, 0.9990)])
def test_updates_of_small_gradients_are_shortened_by_eps(norm, length):
    u = gaussian(64, 64)
    u = u * (norm / u.norm())
    # times r, which is not part of the published numbers
    assert float(paper_update(u).norm() * exact_r(u)) == pytest.approx(length, abs=6e-5)
    assert float(paper_update(u, eps_norm=1e-12).norm()) == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize(
    ("shape", "of_gaussian", "bound"),
    [((64, 64), 1.22e-4, 1.69e-4), ((192, 576), 4.5e-6, 6.2e-6), ((576, 576), 1.51e-6, 2.08e-6)],
)
def test_the_divisor_is_1_in_all_digits_that_matter(shape, of_gaussian, bound):
    numel = shape[0] * shape[1]

    def divisor(u):
        norm = auon_rule.sums_of_squares([u]).sqrt()
        return float(auon_rule.exact_divisor(auon_rule.sums_of_sinh_squares([u], 1 / norm), torch.tensor([numel])))

    one_hot = torch.zeros(shape, dtype=DOUBLE)
    one_hot[0, 0] = 3.0
    assert divisor(gaussian(*shape)) - 1 == pytest.approx(of_gaussian, rel=0.01)
    assert divisor(one_hot) - 1 == pytest.approx(bound, rel=0.01)
    assert divisor(one_hot) == pytest.approx(math.sqrt(1 + math.sinh(1) ** 2 / numel), rel=1e-14)
    in_bfloat16 = (gaussian(*shape) / gaussian(*shape).norm()).bfloat16()
    assert float(in_bfloat16.cosh().square().mean().sqrt()) == 1.0


matrices = st.builds(
    lambda rows, columns, seed, power: gaussian(rows, columns, seed=seed).pow(power) * 10.0 ** (seed % 7 - 3),
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([1, 3, 9]),
)  # fmt: skip


@given(matrices)
def test_bounds_of_the_divisor_and_of_the_update(u):
    numel = u.numel()
    norm = auon_rule.sums_of_squares([u]).sqrt() + 1e-7
    exact = auon_rule.exact_divisor(auon_rule.sums_of_sinh_squares([u], 1 / norm), torch.tensor([numel]))
    series = auon_rule.series_divisor(auon_rule.sums_of_squares([u]), torch.tensor([numel]))
    assert float(exact) == pytest.approx(float(exact_r(u)), rel=1e-13)
    assert 1 <= float(exact) <= math.sqrt(1 + math.sinh(1) ** 2 / numel) + 1e-15
    assert abs(float(series / exact) - 1) <= 0.2 / numel
    update = paper_update(u)
    assert float(torch.linalg.matrix_norm(update, 2)) <= float(update.norm()) * (1 + 1e-14) <= 1 + 1e-14


def test_the_update_has_the_gradients_condition_number_and_singular_directions():
    u = gaussian(32, 48)
    values, update_values = torch.linalg.svdvals(u), torch.linalg.svdvals(paper_update(u))
    assert float(update_values[0] / update_values[-1] / (values[0] / values[-1])) == pytest.approx(1, abs=1e-11)
    assert paper_update(-u).equal(-paper_update(u))


def test_rotations_of_the_gradient_rotate_the_update_up_to_the_divisor():
    u, left, right = gaussian(24, 40), gaussian(24, 24, seed=1), gaussian(40, 40, seed=2)
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    rotated, expected = paper_update(left @ u @ right), left @ paper_update(u) @ right
    torch.testing.assert_close(rotated, expected, rtol=1.4 / u.numel(), atol=1e-15)
    series = paper_update(left @ u @ right, "series")
    torch.testing.assert_close(series, left @ paper_update(u, "series") @ right, rtol=1e-12, atol=1e-15)


def on_ranks(pieces, function):
    """`function(piece, reduce)` for each piece in a thread of its own; `reduce` adds up what the threads bring."""
    barrier = threading.Barrier(len(pieces))
    brought = [None] * len(pieces)

    def run(rank):
        def reduce(values):
            brought[rank] = values
            barrier.wait()
            total = torch.stack(brought).sum(0)
            barrier.wait()
            return total

        return function(pieces[rank], reduce)

    with ThreadPoolExecutor(len(pieces)) as threads:
        return list(threads.map(run, range(len(pieces))))


@given(matrices, st.integers(0, 144), st.sampled_from(["series", "exact", "log"]))
def test_ranks_that_hold_pieces_find_the_scale_of_the_whole_matrix(u, cut, brake):
    pieces = [u.reshape(-1)[:cut], u.reshape(-1)[cut:]]
    numels = [u.numel()]
    scales = on_ranks(pieces, lambda piece, reduce: paper_scales([piece], numels, brake, reduce=reduce))
    for scale in scales:
        torch.testing.assert_close(scale, paper_scales([u], numels, brake), rtol=1e-14, atol=0)
    scales = on_ranks(pieces, lambda piece, reduce: repository_scales([piece], numels, reduce=reduce))
    for scale in scales:
        torch.testing.assert_close(scale, repository_scales([u], numels), rtol=1e-14, atol=0)


@pytest.mark.parametrize("brake", ["none", "paper", "repository"])
def test_ranks_that_hold_rows_find_the_hybrid_direction_of_the_whole_matrix(brake):
    u = gaussian(7, 5)
    parts = on_ranks([u[:3], u[3:]], lambda rows, reduce: hybrid_direction(rows, 2, brake, rows=7, reduce=reduce))
    torch.testing.assert_close(torch.cat(parts), hybrid_direction(u, 2, brake), rtol=1e-13, atol=1e-15)


def test_a_norm_in_float32_is_exact_however_the_matrix_is_cut():
    u = gaussian(1536, 576 * 2).float()
    exact = u.double().square().sum()
    for cut in (0, 1, 700_001):
        parts = auon_rule.sums_of_squares([u.view(-1)[:cut], u.view(-1)[cut:]])
        assert float(parts.sum() / exact) == pytest.approx(1, abs=2e-8)


def test_lists_are_updated_as_each_matrix_alone():
    us = [gaussian(3, 5), gaussian(7, 2, seed=1), torch.zeros(4, 4, dtype=DOUBLE)]
    scales = paper_scales(us, [15, 14, 16], "exact")
    for u, scale in zip(us, scales, strict=True):
        assert float(scale) == pytest.approx(float(paper_scales([u], [u.numel()], "exact")), rel=1e-15)


@pytest.mark.parametrize("brake", ["series", "exact", "log"])
def test_a_zero_gradient_gives_a_zero_update(brake):
    zero = torch.zeros(4, 8)
    assert (zero * paper_scales([zero], [32], brake).float()).equal(zero)
    assert (zero * repository_scales([zero], [32]).float()).equal(zero)
    assert hybrid_direction(zero, 5, "repository").equal(zero)
    assert hybrid_direction(zero, 1, "paper").equal(zero)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1)])
@pytest.mark.parametrize("steps", [1, 5])
def test_newton_schulz_maps_singular_values_and_keeps_their_directions(shape, steps):
    x = gaussian(*shape)
    x = x / x.norm()
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(newton_schulz(x, steps), left * values @ right, rtol=1e-12, atol=1e-13)


def test_one_iteration_is_at_most_1_2024_and_maps_1_to_0_701():
    s = torch.linspace(0, 1, 20001, dtype=DOUBLE)
    mapped = torch.stack([newton_schulz(value.view(1, 1), 1).squeeze() for value in s[::20]])
    assert float(mapped.max()) == pytest.approx(1.2024, abs=1e-4)
    assert float(s[::20][mapped.argmax()]) == pytest.approx(0.5545, abs=1e-3)
    assert float(mapped[-1]) == pytest.approx(0.7010, abs=1e-12)


def test_newton_schulz_of_row_shards_is_that_of_the_matrix():
    x = gaussian(7, 5)
    x = x / x.norm()
    parts = on_ranks([x[:3], x[3:]], lambda rows, reduce: newton_schulz(rows, 1, rows=7, reduce=reduce))
    torch.testing.assert_close(torch.cat(parts), newton_schulz(x, 1), rtol=0, atol=2.3e-16)
    with pytest.raises(ValueError, match=r"a 4 x 5 matrix that is sharded by rows .*: gather it"):
        newton_schulz(x[:2], 1, rows=4, reduce=lambda own: own)


def test_the_hybrid_without_a_brake_is_the_iteration_alone():
    u = gaussian(6, 4)
    torch.testing.assert_close(hybrid_direction(u, 3, "none"), newton_schulz(u / (u.norm() + 1e-7), 3))


def test_shape_scales():
    assert shape_scale(4, 1, "paper") == 2
    assert shape_scale(1, 4, "paper") == 1
    assert shape_scale(30, 20, "none") == 1
    u = gaussian(30, 20)
    update = paper_update(u) * exact_r(u) * shape_scale(30, 20, "match_rms_adamw")
    assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-6)


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="brake is 'cosh': choose series, exact or log"):
        paper_scales([W0], [6], "cosh")
    with pytest.raises(ValueError, match="brake is 'exact': choose none, paper or repository"):
        hybrid_direction(W0, 1, "exact")
    with pytest.raises(ValueError, match="adjust_lr is 'muon': choose paper, match_rms_adamw or none"):
        shape_scale(2, 3, "muon")


def test_apply_without_decay_leaves_other_elements_and_u_as_they_are():
    params, us = [torch.ones(2), torch.ones(3)], [torch.tensor([1.0, 2.0]), torch.zeros(3)]
    auon_rule.apply_(params, us, torch.tensor([0.5, 7.0], dtype=DOUBLE))
    assert [param.tolist() for param in params] == [[0.5, 0.0], [1, 1, 1]]
    assert us[0].tolist() == [1.0, 2.0]
