"""FRUGAL's limits (AdamW, signSGD), its composition element by element in any layout, and its schedule and memory."""

import pytest
import torch

from rlhf.optim import Frugal
from tests.optim.frugal_runs import (
    COORDINATES,
    SETTINGS,
    SHAPES,
    composed,
    cuts_at,
    flat_of,
    frugal,
    gradients_of,
    row_shards,
    run,
    run_in_partitions,
    selections_of,
    step,
    tensors_of,
    whole,
)

DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.bfloat16
NOT_LAYOUT_BOUND = [selector for selector in COORDINATES if selector != "chunk"]
"""Chunks are stretches of what a rank holds."""


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("dtype", "atol"), [(DOUBLE, 1e-15), (SINGLE, 1e-8)])
@pytest.mark.parametrize("selector", COORDINATES)
def test_at_density_1_it_is_adamw_beyond_the_update_gap(selector, dtype, atol):
    # weights of a network's size: an ulp of larger ones is more than the tolerance
    start = {name: tensor / 10 for name, tensor in tensors_of(dtype).items()}
    grads = gradients_of(dtype, 8)
    ours = run(start, grads, density=1.0, selector=selector)
    assert_same(ours, run(start, grads, role="full"))
    theirs = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    adamw = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1, eps=1e-8, foreach=True)
    for each in grads:
        step(adamw, theirs, each)
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("selector", [*COORDINATES, "svd", "random"])
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_at_density_0_it_is_sign_sgd_with_decoupled_decay(selector, dtype):
    start, grads = tensors_of(dtype), gradients_of(dtype, 5)
    optimizer, parameters = frugal(start, density=0.0, selector=selector)
    expected = {name: tensor.clone() for name, tensor in start.items()}
    for each in grads:
        step(optimizer, parameters, each)
        for name, tensor in expected.items():
            tensor.mul_(1 - 1e-3).add_(each[name].sign(), alpha=-1e-2 * 0.5)
    assert_same({name: parameter.detach() for name, parameter in parameters.items()}, expected)
    for state in optimizer.state.values():
        # counters, no moments
        assert all(value.ndim == 0 for value in state.values())
        assert float(state["step"]) == 0


@pytest.mark.parametrize("selector", COORDINATES)
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_chosen_elements_are_trained_by_adamw_alone_and_others_by_sign_sgd(selector, dtype):
    start, grads = tensors_of(dtype), gradients_of(dtype, 8)
    ours = run(start, grads, selector=selector)
    optimizer, _ = frugal(start, selector=selector)
    chosen = 0
    for name, tensor in start.items():
        selections = selections_of(optimizer, whole(name), 3)
        chosen += sum(selection.size for selection in selections)
        flat = composed(tensor.view(-1), [each[name].view(-1) for each in grads], selections)
        torch.testing.assert_close(ours[name].view(-1), flat, rtol=0, atol=0)
    total = 3 * sum(tensor.numel() for tensor in start.values())
    assert 0.25 * total < chosen < 0.55 * total


LAYOUTS = {"row shards": row_shards(), "mid-row cuts": cuts_at(64), "three ranks": cuts_at(17, 90)}


@pytest.mark.parametrize("selector", NOT_LAYOUT_BOUND)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_pieces_in_flat_partitions_are_trained_as_whole_tensors_are(layout, selector, dtype):
    start, grads = tensors_of(dtype), gradients_of(dtype, 8)
    expected = run(start, grads, selector=selector)
    assert_same(run_in_partitions(LAYOUTS[layout], start, grads, selector=selector), expected)


@pytest.mark.parametrize("selector", ["columns", "randk", "block_budget"])
@pytest.mark.parametrize("precision", ["sr", "split16", "split8"])
def test_rounding_does_not_depend_on_how_tensors_are_cut(selector, precision):
    start, grads = tensors_of(HALF), gradients_of(HALF, 5)
    settings = {"selector": selector, "param_precision": precision, "state_dtype": "bfloat16"}
    expected = run(start, grads, **settings)
    assert_same(run_in_partitions(cuts_at(17, 90), start, grads, **settings), expected)
    if precision == "sr":
        other = run(start, grads, **settings, seed=4, order="ascending")
        assert any(not torch.equal(expected[name], other[name]) for name in SHAPES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_of_pieces_are_trained_by_adamw_alone_too(layout):
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 8)
    ours = run_in_partitions(LAYOUTS[layout], start, grads)
    optimizer, _ = frugal(start, selector="chunk")
    for piece in (piece for pieces in LAYOUTS[layout] for piece in pieces):
        stretch = slice(piece.start, piece.start + piece.numel)
        cut_grads = [each[piece.name].view(-1)[stretch] for each in grads]
        flat = composed(start[piece.name].view(-1)[stretch], cut_grads, selections_of(optimizer, piece, 3))
        torch.testing.assert_close(ours[piece.name].view(-1)[stretch], flat, rtol=0, atol=0)


def test_the_default_for_partitions_is_chunks_and_for_tensors_a_budget_of_them():
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 5)
    assert_same(run(start, grads, selector="auto"), run(start, grads, selector="block_budget"))
    ranks = cuts_at(64)
    assert_same(
        run_in_partitions(ranks, start, grads, selector="auto"),
        run_in_partitions(ranks, start, grads, selector="chunk"),
    )


@pytest.mark.parametrize("first", range(3))
def test_chunks_that_wrap_keep_8_bit_state_in_whole_blocks(first):
    # moments of other elements would be as far off as updates are large
    shapes = {"a": (100, 90)}
    start = tensors_of(SINGLE, shapes=shapes)
    grads = [{name: grad + 2 for name, grad in tensors_of(SINGLE, 1 + k, shapes).items()} for k in range(6)]
    settings = {"selector": "chunk", "density": 0.9, "seed": first, "state_free_lr_scale": 1.0}
    exact, quantized = run(start, grads, **settings), run(start, grads, **settings, state_dtype="8bit")
    updates = (exact["a"] - start["a"]).flatten(), (quantized["a"] - start["a"]).flatten()
    assert float((updates[0] - updates[1]).norm() / updates[0].norm()) < 0.05


def state_full(optimizer, parameters):
    return [index for index, p in enumerate(parameters.values()) if "exp_avg" in optimizer.state[p]]


@pytest.mark.parametrize(
    ("count", "density", "gap", "expected"),
    [
        (8, 0.25, 2, [[6, 7], [4, 5], [2, 3], [0, 1], [6, 7]]),
        (7, 2 / 7, 1, [[5, 6], [3, 4], [1, 2], [0, 6], [4, 5]]),
    ],
)
@pytest.mark.parametrize("selector", ["block", "block_budget"])
def test_descending_windows(selector, count, density, gap, expected):
    shapes = {f"layers.{index}": (2, 3) for index in range(count)}
    optimizer, parameters = frugal(
        tensors_of(DOUBLE, shapes=shapes), selector=selector, density=density, update_gap=gap
    )
    for window in expected:
        for _ in range(gap):
            step(optimizer, parameters, tensors_of(DOUBLE, shapes=shapes))
            assert state_full(optimizer, parameters) == window


def test_a_falling_density_walks_on_from_where_it_was():
    shapes = {f"layers.{index}": (2, 3) for index in range(8)}
    settings = {"selector": "block", "density": 1.0, "density_end": 0.25, "density_epochs": 3, "update_gap": 1}
    optimizer, parameters = frugal(tensors_of(DOUBLE, shapes=shapes), **settings)
    windows = []
    for _ in range(6):
        step(optimizer, parameters, tensors_of(DOUBLE, shapes=shapes))
        windows.append(state_full(optimizer, parameters))
    # 8, 6, 4, then 2 tensors at a time, from the last one down
    assert windows == [[*range(8)], [*range(2, 8)], [0, 1, 6, 7], [4, 5], [2, 3], [0, 1]]


@pytest.mark.parametrize("selector", ["columns", "rows", "randk", "chunk", "svd", "random"])
def test_a_falling_density_frees_state(selector):
    settings = {"selector": selector, "density": 1.0, "density_end": 0.0, "density_epochs": 4, "update_gap": 1}
    shapes = {"a": (64, 48), "b": (32, 96)}
    optimizer, parameters = frugal(tensors_of(DOUBLE, shapes=shapes), **settings)
    sizes = []
    for epoch in range(6):
        step(optimizer, parameters, tensors_of(DOUBLE, 1 + epoch, shapes))
        sizes.append(sum(state["exp_avg"].numel() for state in optimizer.state.values() if "exp_avg" in state))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert sizes[-1] == 0


@pytest.mark.parametrize("selector", ["block_budget", "chunk", "columns", "rows", "randk"])
def test_state_is_two_values_for_the_density_of_the_elements(selector):
    shapes = {f"layers.{index}.q": (64, 64) for index in range(6)} | {f"layers.{k}.up": (160, 64) for k in range(6)}
    optimizer, parameters = frugal(tensors_of(SINGLE, shapes=shapes), selector=selector, density=0.25, update_gap=1)
    total = sum(p.numel() for p in parameters.values())
    for epoch in range(5):
        step(optimizer, parameters, tensors_of(SINGLE, 1 + epoch, shapes))
        moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
        held = sum(t.nbytes for t in moments)
        largest = 8 * 160 * 64 if selector == "block_budget" else 8 * 64 * len(shapes)
        assert abs(held - 8 * 0.25 * total) <= largest


def test_a_flat_tensor_that_says_nothing_of_its_pieces_is_refused():
    flat = torch.nn.Parameter(flat_of(cuts_at(64)[0], tensors_of(DOUBLE)))
    flat.grad = torch.ones_like(flat)
    optimizer = Frugal([("weight", torch.nn.Parameter(torch.ones(2, 2)))], **SETTINGS, role="split")
    optimizer.add_param_group({"params": [("bias", flat)], "role": "split"})
    with pytest.raises(ValueError, match=r"bias is a flat tensor in a group of role 'split'.*attach_zero_layout"):
        optimizer.step()
