"""AuON as an optimizer: reference trajectories, invariances, its gate, and AdamW beside it under one scheduler."""

import math

import pytest
import torch

from rlhf.optim import AuON, auon_rule, build_param_groups
from rlhf.optim.layout import Piece, Pieces, attach

DOUBLE, SINGLE = torch.float64, torch.float32
W0 = torch.tensor([[1, -2, 0.5], [3, 0, -1]], dtype=DOUBLE)
GRADS = [
    torch.tensor([[0.1, -0.2, 0.3], [0, 0.4, -0.1]], dtype=DOUBLE),
    torch.tensor([[0.2, -0.1, 0.3], [0.01, 0, 0.1]], dtype=DOUBLE),
    torch.tensor([[-0.1, 0.4, 0.3], [0, 0.2, 0.2]], dtype=DOUBLE),
]
SETTINGS = {"lr": 0.1, "momentum": 0.95, "weight_decay": 0.01, "role": "matrix"}


def trajectory(start=W0, grads=GRADS, **settings):
    """Weights after each step, and the state after the last."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = AuON([parameter], **SETTINGS | settings)
    after = []
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
        # the published code interpolates gradients in place
        assert torch.equal(parameter.grad, grad)
        after.append(parameter.detach().clone())
    return after, optimizer.state[parameter]


def assert_reference(weight, *expected, atol=6e-12):
    torch.testing.assert_close(weight.flatten(), torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=atol)


def test_paper():
    after, state = trajectory(brake="exact")
    assert_reference(after[0], 0.982524885541, -1.96504977108, 0.450074656622, 2.997, -0.0659004578369, -0.982524885541)
    assert_reference(
        after[1], 0.942108791803, -1.9322522276, 0.379358519404, 2.9924018452, -0.0954764488014, -0.990143435798
    )
    assert_reference(
        after[2], 0.936769394261, -1.96231162061, 0.310279143599, 2.98885235571, -0.140623896234, -1.01350542963
    )
    momentum = (0.0090125, 0.006225, 0.0427875, 0.000475, 0.02805, 0.0102375)
    assert_reference(state["momentum_buffer"], *momentum, atol=1e-16)
    assert float(state["step"]) == 3


def test_repository():
    after, _ = trajectory(mode="repository")
    assert_reference(
        after[0], 0.998202282189, -1.99640456438, 0.497106846568, 2.997, -0.00319087124297, -0.998202282189
    )
    assert_reference(
        after[2], 0.993963095496, -1.99299963112, 0.488094667799, 2.99089288701, -0.00764123554476, -0.998241465457
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"mode": "repository", "ns_steps": 5},
            (0.93555685635, -1.97226671676, 0.312005407348, 2.97172856784, -0.225590925073, -1.03405973605),
        ),
        (
            {"mode": "repository", "ns_steps": 1},
            (0.934856868805, -1.97254603069, 0.312323278294, 2.9725246265, -0.213579408948, -1.03276410887),
        ),
        (
            {"mode": "paper", "ns_steps": 1},
            (0.93098590854, -1.97106195195, 0.29910916984, 2.97159297982, -0.22881235044, -1.03461102916),
        ),
    ],
)
def test_hybrid(settings, expected):
    after, _ = trajectory(**settings)
    assert_reference(after[2], *expected)


@pytest.mark.parametrize("settings", [{}, {"brake": "exact"}, {"mode": "repository"}, {"ns_steps": 1}])
def test_float32_is_as_near_as_its_digits(settings):
    exact, _ = trajectory(**settings)
    single, _ = trajectory(W0.float(), [grad.float() for grad in GRADS], **settings)
    torch.testing.assert_close(single[2].double(), exact[2], rtol=5e-7, atol=1e-8)


def gaussian(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def step_of(grad, **settings):
    """The first step, from zero, divided by the learning rate."""
    after, _ = trajectory(torch.zeros_like(grad), [grad], **{"lr": 1.0, "weight_decay": 0.0} | settings)
    return -after[0]


@pytest.mark.parametrize("brake", ["series", "exact"])
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_paper_form_has_one_size_whatever_the_gradients(brake, factor):
    grad = gaussian(48, 40)
    settings = {"brake": brake, "eps_norm": 1e-12, "min_grad_rms": 0.0, "adjust_lr": "none"}
    step = step_of(grad, **settings)
    torch.testing.assert_close(step_of(grad * factor, **settings), step, rtol=1e-6, atol=0)
    r = 1 + 0.5 / (48 * 40)
    assert float(step.norm()) == pytest.approx(1 / r, rel=3e-4)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_repository_form_grows_with_the_gradient(factor):
    grad = gaussian(48, 40)
    step, of_larger = (step_of(each, mode="repository") for each in (grad, grad * factor))
    # the divisor, 1 + 1.1 / N at most, sees eps_norm where gradients are small
    torch.testing.assert_close(of_larger, step * factor, rtol=5e-5, atol=0)


def test_signs_and_rotations_turn_the_step_alike():
    grad = gaussian(20, 14)
    (left, _), (right, _) = torch.linalg.qr(gaussian(20, 20, seed=1)), torch.linalg.qr(gaussian(14, 14, seed=2))
    turned = step_of(left @ grad @ right, brake="exact")
    # the divisor changes by less than 1.4 / N
    torch.testing.assert_close(turned, left @ step_of(grad, brake="exact") @ right, rtol=0, atol=1.4 / grad.numel())
    torch.testing.assert_close(step_of(-grad), -step_of(grad), rtol=0, atol=0)
    # no change of the singular values' proportions
    assert float(torch.linalg.cond(step_of(grad)) / torch.linalg.cond(grad)) == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("shape", [(48, 12), (12, 48), (24, 24)])
def test_learning_rates_of_adamw_carry_over(shape):
    step = step_of(gaussian(*shape), adjust_lr="match_rms_adamw")
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2, rel=2e-3)
    paper = step_of(gaussian(*shape), adjust_lr="paper")
    assert float(paper.norm()) == pytest.approx(math.sqrt(max(1, shape[0] / shape[1])), rel=2e-3)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_hybrid_is_newton_schulz_on_the_normalised_momentum(steps, shape):
    grad = gaussian(*shape)
    step = step_of(grad, ns_steps=steps, adjust_lr="none")
    u = 0.0975 * grad
    x = u / (u.norm() + 1e-7)
    a, b, c = auon_rule.NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(step, x / (x.cosh().square().mean().sqrt() + 1e-8), rtol=0, atol=1e-12)


def test_a_matrix_without_a_gradient_stands_still_and_does_not_divide_by_zero():
    after, state = trajectory(W0, [torch.zeros_like(W0)], weight_decay=0.0, min_grad_rms=0.0)
    assert torch.equal(after[0], W0) and float(state["step"]) == 1


@pytest.mark.parametrize("settings", [{}, {"ns_steps": 1}, {"mode": "repository"}])
def test_below_the_gate_matrices_stand_still_and_the_rest_goes_on(settings):
    matrix, vector = torch.nn.Parameter(W0.clone()), torch.nn.Parameter(torch.ones(3, dtype=DOUBLE))
    groups = [{"params": [matrix], "role": "matrix"}, {"params": [vector], "role": "full"}]
    optimizer = AuON(groups, lr=0.1, min_grad_rms=1e-9, **settings)
    matrix.grad, vector.grad = GRADS[0] * 1e-12, torch.full((3,), 1e-3, dtype=DOUBLE)
    optimizer.step()
    state = optimizer.state[matrix]
    assert torch.equal(matrix, W0) and float(state["step"]) == 0 and not state["momentum_buffer"].any()
    assert not torch.equal(vector, torch.ones_like(vector))
    matrix.grad = GRADS[0].clone()
    optimizer.step()
    assert float(state["step"]) == 1 and not torch.equal(matrix, W0)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 8)
        self.hidden = torch.nn.Linear(8, 6)


def gradients(parameters, seed):
    for index, parameter in enumerate(parameters):
        parameter.grad = gaussian(*parameter.shape, seed=10 * seed + index, dtype=parameter.dtype)


@pytest.mark.parametrize("adamw_lr", [None, 3e-3])
def test_a_scheduler_scales_both_learning_rates_and_the_rest_is_torchs_adamw(adamw_lr):
    torch.manual_seed(0)
    model = Model().double()
    rest = {name: p for name, p in model.named_parameters() if name != "hidden.weight"}
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in rest.values()]
    groups = build_param_groups(model, optimizer="auon", min_split_numel=0, min_split_dim=0)
    optimizer = AuON(groups, lr=0.05, weight_decay=0.0, adamw_lr=adamw_lr)
    adamw = torch.optim.AdamW(theirs, lr=adamw_lr or 0.05, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1 / (1 + step)) for each in (optimizer, adamw)]
    hidden = model.hidden.weight.detach().clone()
    for step in range(4):
        gradients(model.parameters(), step)
        for parameter, other in zip(rest.values(), theirs, strict=True):
            other.grad = parameter.grad.clone()
        optimizer.step()
        adamw.step()
        norm = float((model.hidden.weight.detach() - hidden).norm())
        # 6 x 8: no scale by the shape; the divisor is at most 1 + 0.7 / 48
        assert norm == pytest.approx(0.05 / (1 + step), rel=0.02)
        hidden = model.hidden.weight.detach().clone()
        for scheduler in schedulers:
            scheduler.step()
    for parameter, other in zip(rest.values(), theirs, strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-15)
    for group in optimizer.param_groups:
        peak = 0.05 if group["role"] == "matrix" else adamw_lr or 0.05
        assert group["lr"] == pytest.approx(peak / 5)


def test_a_groups_own_learning_rate_is_kept():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": parameters[:1], "role": "full", "lr": 7e-4}, {"params": parameters[1:], "role": "full"}]
    assert [group["lr"] for group in AuON(groups, lr=0.05, adamw_lr=3e-3).param_groups] == [7e-4, 3e-3]


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("settings", [{}, {"brake": "exact"}, {"mode": "repository"}])
def test_matrices_in_a_flat_partition_are_trained_as_alone(settings, state_dtype):
    shapes = {"a": (70, 61), "b": (65, 80)}
    start = {name: gaussian(*shape, seed=3, dtype=SINGLE) for name, shape in shapes.items()}
    grads = {name: gaussian(*shape, seed=4, dtype=SINGLE) for name, shape in shapes.items()}
    alone = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    gap = torch.full((5,), 7.0)
    flat = torch.nn.Parameter(torch.cat([start["a"].flatten(), gap, start["b"].flatten()]))
    numel = start["a"].numel()
    pieces = [Piece("a", 1, shapes["a"], 0, numel, 0), Piece("b", 2, shapes["b"], 0, 65 * 80, numel + 5)]
    attach(flat, Pieces(tuple(pieces), tensors=tuple(shapes.items())))
    settings = SETTINGS | settings | {"state_dtype": state_dtype}
    optimizers = AuON(alone.items(), **settings), AuON([flat], **settings)
    for _ in range(3):
        for name, parameter in alone.items():
            parameter.grad = grads[name].clone()
        flat.grad = torch.cat([grads["a"].flatten(), torch.zeros(5), grads["b"].flatten()])
        for optimizer in optimizers:
            optimizer.step()
    assert (flat.detach()[numel : numel + 5] == 7).all()
    for piece in pieces:
        # blocks of 8-bit state begin elsewhere, so its values are rounded otherwise
        step = flat.detach()[piece.offset : piece.offset + piece.numel].view(piece.shape) - start[piece.name]
        expected = alone[piece.name].detach() - start[piece.name]
        error = float((step - expected).norm() / expected.norm())
        assert error < {"float32": 1e-6, "bfloat16": 3e-3, "8bit": 0.05}[state_dtype]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "hybrid"}, "choose one of paper, repository"),
        ({"brake": "hard"}, "choose one of series, exact, log"),
        ({"adjust_lr": "rms"}, "choose one of paper, match_rms_adamw, none"),
        ({"momentum": 1.0}, r"momentum is 1.0: it must be in \[0, 1\)"),
        ({"ns_steps": -1}, "ns_steps is -1"),
        ({"ns_steps": 1.5}, "ns_steps is 1.5"),
        ({"role": "split"}, "AuON takes groups of role full and matrix"),
        ({"brake": "log", "ns_steps": 1}, "brake log is for mode paper without ns_steps"),
        ({"brake": "exact", "mode": "repository"}, "brake exact is for mode paper without ns_steps"),
        ({"adjust_lr": "match_rms_adamw", "mode": "repository"}, "set adjust_lr to none"),
        ({"min_grad_rms": -1.0}, "min_grad_rms is -1.0"),
        ({"eps_norm": -1.0}, "eps_norm is -1.0"),
        ({"lr": -0.1}, "lr is -0.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AuON([torch.nn.Parameter(W0.clone())], **{"role": "matrix"} | settings)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(TypeError, match="AuON has no setting nesterov"):
        AuON([torch.nn.Parameter(W0.clone())], nesterov=True)


def test_a_flat_tensor_among_matrices_is_refused():
    vector = torch.nn.Parameter(torch.zeros(6))
    vector.grad = torch.ones(6)
    with pytest.raises(ValueError, match=r"norm\.weight has shape \(6,\) in a group of role 'matrix'.*attach_zero"):
        AuON([("norm.weight", vector)], role="matrix").step()
