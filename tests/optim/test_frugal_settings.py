"""FRUGAL's other rules, its gates, gradients that are missing, and settings that are refused."""

import copy

import pytest
import torch

from rlhf.optim import AdaBelief, Frugal, build_param_groups
from tests.optim.frugal_runs import COORDINATES, frugal, gradients_of, run, step, tensors_of

DOUBLE = torch.float64
SUBSPACES = ("svd", "random")


def assert_same(actual, expected, atol=0.0):
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=atol)


def signed_sgd(start, grads, step_of):
    """Weights after steps of `step_of(gradient)` with decoupled decay."""
    weights = {name: tensor.clone() for name, tensor in start.items()}
    for each in grads:
        for name, tensor in weights.items():
            tensor.mul_(1 - 1e-3).sub_(step_of(each[name]))
    return weights


@pytest.mark.parametrize("selector", ["columns", "block_budget"])
def test_adabelief_as_the_state_full_rule(selector):
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 8)
    ours = run(start, grads, selector=selector, density=1.0, state_full_rule="adabelief")
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    optimizer = AdaBelief(parameters.values(), lr=1e-2, weight_decay=0.1, eps=1e-16, impl="foreach")
    for each in grads:
        step(optimizer, parameters, each)
    assert_same(ours, {name: parameter.detach() for name, parameter in parameters.items()})


def test_lion_as_the_state_full_rule_in_closed_form():
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 8)
    ours = run(start, grads, selector="columns", density=1.0, state_full_rule="lion", betas=(0.9, 0.99))
    for name, tensor in start.items():
        weight, momentum = tensor.clone(), torch.zeros_like(tensor)
        for each in grads:
            direction = (0.9 * momentum + 0.1 * each[name]).sign()
            weight = weight * (1 - 1e-3) - 1e-2 * direction
            momentum = 0.99 * momentum + 0.01 * each[name]
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", ["adabelief", "lion"])
@pytest.mark.parametrize("selector", ["columns", "block_budget", "svd"])
def test_other_rules_keep_their_own_state(rule, selector):
    optimizer, parameters = frugal(tensors_of(DOUBLE), selector=selector, state_full_rule=rule)
    for each in gradients_of(DOUBLE, 4):
        step(optimizer, parameters, each)
    names = {"adabelief": {"exp_avg", "exp_avg_var"}, "lion": {"exp_avg"}}[rule]
    found = [{name for name in state if name.startswith("exp_avg")} for state in optimizer.state.values()]
    assert names in found and all(each in (names, set()) for each in found)


@pytest.mark.parametrize("selector", [*COORDINATES, *SUBSPACES])
def test_sgd_and_nothing_as_state_free_rules(selector):
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 4)
    settings = {"density": 0.0, "selector": selector}
    assert_same(
        run(start, grads, **settings, state_free_rule="sgd"),
        signed_sgd(start, grads, lambda grad: 0.5e-2 * grad),
        1e-15,
    )
    assert_same(run(start, grads, **settings, state_free_rule="none"), signed_sgd(start, grads, lambda grad: 0 * grad))


@pytest.mark.parametrize("selector", ["columns", "svd"])
def test_learning_rate_scales_leave_decay_alone(selector):
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 1)
    settings = {"selector": selector, "density": 0.5, "lr": 1e-2}
    halved = run(start, grads, **settings, state_full_lr_scale=0.5, state_free_lr_scale=0.1)
    at_half_lr = run(start, grads, **settings | {"lr": 0.5e-2}, weight_decay=0.2, state_free_lr_scale=0.1)
    assert_same(halved, at_half_lr, 1e-15)


@pytest.mark.parametrize("selector", [*COORDINATES, *SUBSPACES])
def test_gradients_in_the_dead_zone_count_as_zero(selector):
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 1)
    rms = torch.cat([grad.flatten() for grad in grads[0].values()]).square().mean().sqrt()
    ours = run(start, grads, selector=selector, density=0.0, sign_deadzone=0.7)
    expected = signed_sgd(start, grads, lambda grad: 0.5e-2 * grad.sign() * (grad.abs() > 0.7 * rms))
    assert_same(ours, expected)
    moved = sum(int((ours[name] != tensor * (1 - 1e-3)).sum()) for name, tensor in start.items())
    assert 20 < moved < sum(tensor.numel() for tensor in start.values()) - 20


@pytest.mark.parametrize("selector", [*COORDINATES, *SUBSPACES])
def test_a_batch_without_advantage_moves_only_what_has_moments(selector):
    start = tensors_of(DOUBLE)
    noise = [{name: grad * 1e-20 for name, grad in each.items()} for each in gradients_of(DOUBLE, 1)]
    settings = {"selector": selector, "weight_decay": 0.0}
    without = run(start, noise, **settings, density=0.0)
    assert_same(without, start)
    # the sign of rounding noise is a full step where nothing stops it
    with_noise = run(start, noise, **settings, density=0.0, min_grad_rms=0.0)
    assert all(float((with_noise[name] - start[name]).abs().max()) == pytest.approx(0.5e-2) for name in start)


def test_moments_go_on_in_a_batch_without_advantage():
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 3)
    quiet = [*grads[:2], {name: grad * 1e-20 for name, grad in grads[2].items()}]
    settings = {"selector": "columns", "weight_decay": 0.0}
    ours = run(start, quiet, **settings)
    expected = run(start, [*grads[:2], {name: grad * 0 for name, grad in grads[2].items()}], **settings)
    assert_same(ours, expected, 1e-15)


@pytest.mark.parametrize("selector", [*COORDINATES, *SUBSPACES])
def test_maximize_is_the_step_of_the_negative_gradient(selector):
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 5)
    negative = [{name: -grad for name, grad in each.items()} for each in grads]
    assert_same(run(start, negative, selector=selector, maximize=True), run(start, grads, selector=selector))


@pytest.mark.parametrize("selector", [*COORDINATES, *SUBSPACES])
def test_tensors_without_a_gradient_wait_and_others_do_not(selector):
    # a boundary between epochs lies after the third step, where "a" has no gradient; "c" never has one
    start, grads = tensors_of(DOUBLE), gradients_of(DOUBLE, 8)
    optimizer, parameters = frugal(start, selector=selector)
    expected, all_parameters = frugal(start, selector=selector)
    for index, each in enumerate(grads):
        step(expected, all_parameters, each)
        for name, parameter in parameters.items():
            is_missing = name == "c" or (name == "a" and index == 3)
            parameter.grad = None if is_missing else each[name].clone()
        optimizer.step()
    assert torch.equal(parameters["c"], start["c"]) and parameters["c"] not in optimizer.state
    for name in ("b", "d"):
        assert torch.equal(parameters[name], all_parameters[name])
    state = optimizer.state[parameters["a"]]
    assert float(state["updates"]) == 7 and float(state["epoch"]) == 2
    assert parameters["a"].isfinite().all()


def test_random_state_of_torch_is_left_alone():
    before = torch.random.get_rng_state()
    for selector in (*COORDINATES, *SUBSPACES):
        run(tensors_of(DOUBLE), gradients_of(DOUBLE, 4), selector=selector)
    start = {name: tensor.bfloat16() for name, tensor in tensors_of(DOUBLE).items()}
    run(start, gradients_of(DOUBLE, 2), selector="columns", param_precision="sr", state_dtype="8bit")
    assert torch.equal(torch.random.get_rng_state(), before)


class TiedModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(12, 8)
        self.hidden = torch.nn.Linear(8, 8, bias=False)
        self.head = torch.nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.hidden(self.embedding(tokens)))


def test_a_tied_weight_is_updated_once_and_state_full():
    torch.manual_seed(0)
    model = TiedModel().double()
    groups = build_param_groups(model, optimizer="frugal", min_split_numel=0, min_split_dim=0)
    optimizer = Frugal(groups, lr=1e-2, density=0.5)
    assert {group["role"]: group["param_names"] for group in optimizer.param_groups} == {
        "full": ["embedding.weight"], "split": ["hidden.weight"]
    }  # fmt: skip
    model(torch.arange(12)).square().sum().backward()
    untied = copy.deepcopy(model.embedding.weight.detach())
    optimizer.step()
    assert float(optimizer.state[model.embedding.weight]["step"]) == 1
    # a first step of Adam has the size of the learning rate
    torch.testing.assert_close(
        (model.embedding.weight.detach() - untied).abs(), torch.full_like(untied, 1e-2), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.5}, r"density is 1.5 .*must be in \[0, 1\]"),
        ({"density": 0.5, "density_end": -0.1}, r"to -0.1.*must be in \[0, 1\]"),
        ({"density_end": 0.1, "density_epochs": 0}, "density_epochs is 0"),
        ({"update_gap": 0}, "update_gap is 0"),
        ({"update_gap": 2.5}, "update_gap is 2.5"),
        ({"selector": "svg"}, "choose one of auto, block, block_budget, chunk, columns, rows, randk, svd, random"),
        ({"order": "up"}, "choose one of ascending, descending, mirror, random"),
        ({"state_full_rule": "adam"}, "choose one of adamw, adabelief, lion"),
        ({"state_free_rule": "same"}, "choose one of sign, sgd, none"),
        ({"state_mode": "forget"}, "choose one of reset, project, keep"),
        ({"rounding": "up"}, "choose one of nearest, upstream"),
        ({"state_full_lr_scale": -1.0}, "state_full_lr_scale is -1.0"),
        ({"state_free_lr_scale": -1.0}, "state_free_lr_scale is -1.0"),
        ({"sign_deadzone": -1.0}, "sign_deadzone is -1.0"),
        ({"min_grad_rms": -1.0}, "min_grad_rms is -1.0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"state_mode": "project", "selector": "chunk"}, "state_mode project needs the selector"),
        (
            {"state_mode": "project", "selector": "columns", "state_full_rule": "adabelief", "rectify": True},
            "rectify takes one step count",
        ),
        ({"state_full_rule": "adabelief", "eps": 0.0}, "would divide 0 by 0"),
        ({"role": "matrix"}, "Frugal takes groups of role full and split"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Frugal([torch.nn.Parameter(torch.zeros(2, 2))], **{"role": "split"} | settings)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(TypeError, match="Frugal has no setting rho: it has role"):
        Frugal([torch.nn.Parameter(torch.zeros(2, 2))], rho=0.25)


def test_an_odd_mirror_is_refused_when_tensors_are_known():
    optimizer, parameters = frugal(tensors_of(DOUBLE), selector="block", order="mirror", density=0.25)
    with pytest.raises(ValueError, match="mirror takes half"):
        step(optimizer, parameters, gradients_of(DOUBLE, 1)[0])


def test_a_gradient_that_is_not_finite_has_no_singular_vectors():
    optimizer, parameters = frugal(tensors_of(DOUBLE), selector="svd", skip_nonfinite=False)
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors_of(DOUBLE).items()}
    with pytest.raises(ValueError, match="NaN or infinite"):
        step(optimizer, parameters, bad)
