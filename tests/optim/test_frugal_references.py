"""FRUGAL against reference trajectories with given columns, tensors and bases, and what becomes of state at a switch.
"""

import itertools

import pytest
import torch

from rlhf.optim import Frugal
from rlhf.optim.hashing import tensor_key
from rlhf.optim.schedules import choose_columns
from rlhf.optim.subspace import choose_side, svd_basis
from tests.optim.frugal_runs import frugal, gradients_of, run, step, tensors_of
from tests.optim.test_subspace import AdamInASubspace

DOUBLE = torch.float64
W0 = torch.tensor([[1, -2, 0.5, 3], [0, 1, -1, 2]], dtype=DOUBLE)
GRADS = [
    torch.tensor([[0.1, -0.2, 0.3, 0], [0.05, 0.4, -0.1, -0.3]], dtype=DOUBLE),
    torch.tensor([[0.2, -0.1, 0.3, 1e-4], [-0.05, 0.1, 0.1, -0.3]], dtype=DOUBLE),
    torch.tensor([[-0.1, 0.4, 0.3, 0], [0.02, -0.2, 0.1, 0.3]], dtype=DOUBLE),
    torch.tensor([[0.1, 0.1, -0.3, 0.2], [0.02, 0.2, -0.1, 0.3]], dtype=DOUBLE),
]
SETTINGS = {
    "lr": 1e-2,
    "weight_decay": 0.1,
    "density": 0.5,
    "update_gap": 2,
    "state_free_lr_scale": 0.1,
    "role": "split",
}


def seed_of_columns(*epochs):
    """A seed with which a tensor of four columns has these in its first epochs."""
    return next(
        seed
        for seed in itertools.count()
        if all(
            choose_columns(4, 0.5, seed, epoch, tensor_key("a")).tolist() == columns
            for epoch, columns in enumerate(epochs)
        )
    )


COLUMNS = {"selector": "columns", "seed": seed_of_columns([1, 3], [0, 1])}


def trajectory(impl="foreach", steps=4, **settings):
    """Weights after each step of one tensor, and its state."""
    parameter = torch.nn.Parameter(W0.clone())
    optimizer = Frugal([("a", parameter)], **SETTINGS | {"impl": impl} | settings)
    after = []
    for grad in GRADS[:steps]:
        parameter.grad = grad.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    return after, optimizer.state[parameter]


def assert_reference(actual, expected, atol=1e-11):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=atol)


@pytest.mark.parametrize("impl", ["foreach", "loop"])
def test_columns_with_moments_that_start_anew(impl):
    after, state = trajectory(impl, **COLUMNS)
    assert_reference(after[0], [[0.998, -1.9880000005, 0.4985, 2.997], [-0.001, 0.98900000025, -0.998, 2.00799999967]])
    assert_reference(
        after[1],
        [[0.996002, -1.9766902047, 0.4970015, 2.98656268372], [1e-06, 0.979705025198, -0.998002, 2.01599199933]],
    )
    assert_reference(
        after[2],
        [
            [1.005005997, -1.98471351425, 0.4955044985, 2.98357612104],
            [-0.009998996, 0.988725319673, -0.998003998, 2.01297600733],
        ],
    )
    assert_reference(
        after[3],
        [
            [1.00347467527, -1.99103477578, 0.496008994002, 2.97959254492],
            [-0.019988992004, 0.98721027859, -0.996005994002, 2.00996303133],
        ],
    )
    assert_reference(state["exp_avg"], [[0.001, 0.046], [0.0038, 0.002]], atol=1e-15)
    assert_reference(state["exp_avg_sq"], [[1.999e-05, 1.6984e-04], [7.996e-07, 7.996e-05]], atol=1e-15)
    assert float(state["step"]) == 2
    assert state["lines"].dtype == torch.int32 and state["lines"].tolist() == [0, 1]


@pytest.mark.parametrize("impl", ["foreach", "loop"])
def test_columns_that_stay_keep_their_moments_and_their_own_count(impl):
    after, state = trajectory(impl, **COLUMNS, state_mode="project")
    assert_reference(
        after[2],
        [
            [1.005005997, -1.97677708469, 0.4955044985, 2.98357612104],
            [-0.009998996, 0.975739802841, -0.998003998, 2.01297600733],
        ],
    )
    assert_reference(
        after[3],
        [
            [1.00347467527, -1.97769155625, 0.496008994002, 2.97959254492],
            [-0.019988992004, 0.970196111747, -0.996005994002, 2.00996303133],
        ],
    )
    # column 0 entered at the third step
    assert state["column_step"].tolist() == [2.0, 4.0]


def test_kept_moments_are_those_of_other_columns():
    after, state = trajectory(**COLUMNS, state_mode="keep")
    # columns 0 and 1 have the moments of columns 1 and 3: by position among the chosen columns
    assert_reference(after[2][:, :2], [[1.00419285552, -1.98110308734], [-0.00672179500607, 0.988442022541]])
    assert_reference(after[3][:, :2], [[1.00795569072, -1.98560961833], [-0.0124971460366, 0.992492322314]])
    assert float(state["step"]) == 4


def test_projected_columns_in_float32_have_the_corrections_of_float64():
    settings = {"selector": "columns", "state_mode": "project", "density": 0.5, "update_gap": 2}
    # weights that are small beside the updates do not round them
    start = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(DOUBLE).items()}
    grads = gradients_of(torch.float32, 9)
    double = run(start, grads, **settings)
    single = run({name: tensor.float() for name, tensor in start.items()}, grads, **settings)
    for name, update in double.items():
        # corrections in float32, 1 - 0.999^t, would be 6e-5 off
        assert float((update - single[name]).norm() / update.norm()) < 3e-7


def test_tensors_in_descending_order():
    first, second = (torch.nn.Parameter(tensor) for tensor in (W0.clone(), 0.5 * W0))
    settings = SETTINGS | {"selector": "block", "order": "descending"}
    optimizer = Frugal([("a", first), ("b", second)], **settings)
    after = []
    for grad in GRADS:
        first.grad, second.grad = grad.clone(), -grad
        optimizer.step()
        after.append((first.detach().clone(), second.detach().clone()))
    assert_reference(after[0][0][0], [0.998, -1.997, 0.4985, 2.997])
    assert_reference(after[0][1][0], [0.509499999, -1.0089999995, 0.259749999667, 1.4985])
    assert_reference(
        after[2][0],
        [
            [1.005005997, -2.00200899675, 0.486504498833, 2.990009997],
            [-0.009998996, 1.0050059975, -1.007003997, 1.98600299933],
        ],
    )
    assert_reference(
        after[3][0],
        [
            [1.00347467527, -2.00831296281, 0.486544310106, 2.97957861929],
            [-0.019988992004, 1.00347467574, -1.00547067727, 1.97401699667],
        ],
    )


def test_the_leading_singular_vector():
    after, state = trajectory(steps=3, selector="svd", update_gap=4)
    basis = state["basis"]
    assert basis.shape == (1, 2) and float(basis[0, 0] * basis[0, 1]) < 0
    # the reference took its basis from a decomposition in float32
    assert_reference(basis.abs(), [[0.49806073308, 0.867142260075]], atol=2e-7)
    assert_reference(
        after[0],
        [
            [0.993019400392, -1.99401939278, 0.49351939288, 2.99301939286],
            [0.00767140915453, 0.989328577593, -0.991328577766, 2.00767142227],
        ],
        atol=4e-9,
    )
    assert_reference(
        after[2],
        [
            [0.985842475299, -1.9851669632, 0.482441962532, 2.98075458006],
            [0.0166980700222, 0.978875611777, -0.977257639061, 2.0145921361],
        ],
        atol=4e-9,
    )


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_svd_is_adam_in_the_basis_of_each_epoch(shape, density):
    start = tensors_of(DOUBLE, shapes={"a": shape})
    grads = [tensors_of(DOUBLE, seed=1 + k, shapes={"a": shape}) for k in range(6)]
    settings = {"selector": "svd", "density": density, "update_gap": 3, "state_free_lr_scale": 0.1}
    ours = run(start, grads, **settings)["a"]
    weight, side = start["a"], choose_side(*shape)
    rank = max(1, int(density * min(shape) + 0.5))
    for index, grad in enumerate(each["a"] for each in grads):
        # at full rank nothing is chosen anew
        if index == 0 or (index == 3 and density < 1):
            rule = AdamInASubspace(svd_basis(grad, rank, side), side, shape, inactive_scale=0.1)
        weight = rule.step(weight, grad)
    torch.testing.assert_close(ours, weight, rtol=0, atol=2e-15)
    if density == 1:
        # Adam in a rotated basis is another optimizer
        assert float((ours - run(start, grads, role="full")["a"]).abs().max()) > 1e-2


@pytest.mark.parametrize("selector", ["svd", "random"])
@pytest.mark.parametrize("mode", ["reset", "project", "keep"])
def test_moments_of_a_subspace_at_a_switch(selector, mode):
    shapes = {"a": (6, 4)}
    optimizer, parameters = frugal(
        tensors_of(DOUBLE, shapes=shapes), selector=selector, density=0.5, update_gap=2, state_mode=mode
    )
    for index in range(2):
        step(optimizer, parameters, tensors_of(DOUBLE, 1 + index, shapes))
    state = optimizer.state[parameters["a"]]
    old_basis, old = state["basis"], state["exp_avg"].clone()
    grad = tensors_of(DOUBLE, 3, shapes)
    step(optimizer, parameters, grad)
    basis = state["basis"]
    assert not torch.equal(basis, old_basis) and basis.shape == old_basis.shape
    carried = {"reset": torch.zeros_like(old), "project": old @ (old_basis @ basis.mT), "keep": old}[mode]
    expected = 0.9 * carried + 0.1 * (grad["a"] @ basis.mT)
    torch.testing.assert_close(state["exp_avg"], expected, rtol=0, atol=1e-15)
    assert float(state["step"]) == (1 if mode == "reset" else 3)


def test_a_tensor_that_stays_chosen_keeps_its_moments_where_they_are_projected():
    shapes = {"a": (2, 3), "b": (2, 3), "c": (2, 3)}
    settings = {"selector": "block", "density": 2 / 3, "order": "ascending", "update_gap": 2, "state_mode": "project"}
    optimizer, parameters = frugal(tensors_of(DOUBLE, shapes=shapes), **settings)
    counts = []
    for index in range(6):
        step(optimizer, parameters, tensors_of(DOUBLE, index, shapes))
        counts.append([float(optimizer.state[p]["step"]) for p in parameters.values()])
    # tensors 0 and 1, then 2 and 0, then 1 and 2
    assert counts == [[1, 1, 0], [2, 2, 0], [3, 0, 1], [4, 0, 2], [0, 1, 3], [0, 2, 4]]
