"""AdaBelief against reference trajectories, the authors' package, and closed forms for noise and constant gradients."""

import math

import pytest
import torch
from adabelief_pytorch import AdaBelief as Published

from rlhf.optim import AdaBelief
from rlhf.optim.rules import AdaBeliefRule

DOUBLE = torch.float64
START = [1.0, -2.0, 0.5, 3.0]
GRADS = [[0.1, -0.2, 0.3, 0.0], [0.2, -0.1, 0.3, 1e-4], [-0.1, 0.4, 0.3, 0.0]]


def trajectory(steps, dtype=DOUBLE, **settings):
    """Weights after each step, and the optimizer's state after the last."""
    parameter = torch.nn.Parameter(torch.tensor(START, dtype=dtype))
    optimizer = AdaBelief([parameter], **{"lr": 1e-2, "weight_decay": 0.1, "impl": "foreach"} | settings)
    after = []
    for step in range(steps):
        parameter.grad = torch.tensor(GRADS[step % 3], dtype=dtype)
        optimizer.step()
        after.append(parameter.detach().clone())
    return after, optimizer.state[parameter]


def assert_reference(actual, *expected, atol=1e-11):
    # references have twelve digits
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=atol)


@pytest.mark.parametrize("impl", ["loop", "foreach"])
def test_decoupled_decay(impl):
    after, state = trajectory(3, impl=impl)
    assert_reference(after[0], 0.987888888889, -1.98688888889, 0.488388888889, 2.997)
    assert_reference(after[1], 0.975732240725, -1.97414981806, 0.476220452628, 2.98573491509)
    assert_reference(after[2], 0.970192189204, -1.97436849463, 0.463488392406, 2.9763897148)
    assert_reference(state["exp_avg"], 0.0161, 0.0148, 0.0813, 9e-6, atol=1e-15)
    assert_reference(
        state["exp_avg_var"], 5.07747771003e-05, 0.0001858930884, 0.0001795739139, 8.1731997001e-12, atol=1e-15
    )


@pytest.mark.parametrize(("impl", "rtol"), [("loop", 2e-7), ("foreach", 5e-7)])
def test_float32_is_as_near_as_its_digits(impl, rtol):
    after, _ = trajectory(3, torch.float32, impl=impl)
    expected = torch.tensor([0.970192189204, -1.97436849463, 0.463488392406, 2.9763897148], dtype=DOUBLE)
    torch.testing.assert_close(after[2].double(), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("impl", ["loop", "foreach"])
def test_rectified(impl):
    after, _ = trajectory(8, rectify=True, impl=impl)
    assert_reference(after[0], 0.998, -1.996, 0.4965, 2.997)
    assert_reference(after[2], 0.993886112585, -1.99108391093, 0.4895104965, 2.99100813911)
    assert_reference(after[4], 0.990161303577, -1.98651868204, 0.482534965017, 2.98502845633)
    assert_reference(after[5], 0.989051004117, -1.98458888895, 0.48169070164, 2.9818737728)
    assert_reference(after[7], 0.986610310664, -1.98060794687, 0.479662152081, 2.97543010446)


@pytest.mark.parametrize("impl", ["loop", "foreach"])
def test_rectified_without_momentum_steps_only_decays_at_first(impl):
    after, _ = trajectory(8, rectify=True, degenerated_to_sgd=False, impl=impl)
    assert_reference(after[4], 0.995009990005, -1.99001998001, 0.497504995002, 2.98502997001)
    assert_reference(after[7], 0.991444465574, -1.98409875144, 0.494587316872, 2.97543161361)


@pytest.mark.parametrize(("steps", "rectify"), [(3, False), (8, True)])
def test_amsgrad_changes_neither_growing_variances_nor_rectified_steps(steps, rectify):
    plain, _ = trajectory(steps, rectify=rectify)
    largest, state = trajectory(steps, rectify=rectify, amsgrad=True)
    for one, other in zip(plain, largest, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)
    assert (state["max_exp_avg_var"] >= state["exp_avg_var"]).all()


def test_coupled_decay():
    after, _ = trajectory(3, weight_decouple=False)
    assert_reference(after[0], 0.988888888889, -1.98888888889, 0.488888888889, 2.98888888889)
    assert_reference(after[2], 0.968569684731, -1.97237510257, 0.464957363623, 2.96495799104)


def test_decay_that_does_not_depend_on_the_learning_rate():
    after, _ = trajectory(3, fixed_decay=True)
    assert_reference(after[0], 0.888888888889, -1.78888888889, 0.438888888889, 2.7)
    assert_reference(after[2], 0.705383797372, -1.44151586264, 0.332732117596, 2.17319925821)


def test_a_large_eps():
    after, _ = trajectory(3, eps=1e-8)
    assert_reference(after[0], 0.987895742488, -1.98689060379, 0.488389651301, 2.997)
    assert_reference(after[2], 0.970203362709, -1.97437288792, 0.463491061096, 2.99073775633)


DECAYS = {"decoupled": {}, "coupled": {"weight_decouple": False}, "fixed": {"fixed_decay": True}}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("rectify", [None, "momentum", "none"])
def test_every_step_is_that_of_the_authors_package(rectify, amsgrad, decay):
    settings = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-12, "weight_decay": 0.05, "amsgrad": amsgrad}
    settings |= {"rectify": rectify is not None, "degenerated_to_sgd": rectify == "momentum"} | DECAYS[decay]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=generator, dtype=DOUBLE), torch.randn(7, generator=generator, dtype=DOUBLE)]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizer = AdaBelief(ours, **settings, impl="foreach")
    published = Published(theirs, **settings, print_change_log=False)
    for step in range(20):
        for one, other in zip(ours, theirs, strict=True):
            # sizes that rise and fall, so that amsgrad differs
            grad = torch.randn(one.shape, generator=generator, dtype=DOUBLE) * (1 + math.sin(step))
            # the package changes the gradient where decay is coupled
            one.grad, other.grad = grad, grad.clone()
        optimizer.step()
        published.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
            for name in optimizer.state[one].keys() - {"step"}:
                torch.testing.assert_close(
                    optimizer.state[one][name], published.state[other][name], rtol=0, atol=1e-15, msg=name
                )


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_the_first_step_is_lr_over_beta1_for_any_gradient(size):
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=DOUBLE))
    parameter.grad = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE) * size
    AdaBelief([parameter], lr=1e-2, betas=(0.9, 0.999), eps=1e-30).step()
    expected = -1e-2 / 0.9 * parameter.grad.sign()
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=0)


def test_for_noise_the_variance_is_0_85_of_the_mean_square():
    parameter = torch.nn.Parameter(torch.zeros(4096))
    optimizer = AdaBelief([parameter], lr=0.0, betas=(0.9, 0.99), eps=1e-30, impl="foreach")
    generator = torch.Generator().manual_seed(0)
    mean_square = torch.zeros(4096)
    for _ in range(700):
        parameter.grad = torch.randn(4096, generator=generator)
        mean_square.lerp_(parameter.grad.square(), 0.01)
        optimizer.step()
    ratio = optimizer.state[parameter]["exp_avg_var"].mean() / mean_square.mean()
    assert float(ratio) == pytest.approx(2 * 0.9**2 / 1.9, abs=2e-3)


def steps_over_lr(gradients, counts, **settings):
    """Sizes of the steps with these numbers, a row each, for gradients that never change."""
    parameter = torch.nn.Parameter(torch.zeros(len(gradients), dtype=DOUBLE))
    optimizer = AdaBelief([parameter], lr=1.0, **settings)
    parameter.grad = torch.tensor(gradients, dtype=DOUBLE)
    sizes = []
    for step in range(1, max(counts) + 1):
        before = parameter.detach().clone()
        optimizer.step()
        if step in counts:
            sizes.append((before - parameter.detach()).tolist())
    return sizes


@pytest.mark.parametrize(
    ("eps", "of_large", "of_small"),
    [
        (1e-16, {1: 1.111, 10: 1.64, 100: 4.96}, {1: 1.05}),
        (1e-12, {1: 1.11, 10: 1.63, 100: 4.90}, {1: 0.0316}),
        (1e-8, {1: 0.304, 10: 0.311, 100: 0.316}, {1: 3.16e-4}),
        pytest.param(1e-16, {1000: 20.0, 3000: 66.8, 10000: 1846.0}, {3000: 3.16}, marks=pytest.mark.slow),
        pytest.param(1e-12, {1000: 16.9, 3000: 28.6, 10000: 31.6}, {}, marks=pytest.mark.slow),
    ],
)
def test_steps_grow_where_a_gradient_stays(eps, of_large, of_small):
    sizes = dict(zip(of_large, steps_over_lr([1e-3, 1e-6], list(of_large), eps=eps), strict=True))
    # the references have three digits
    assert [sizes[step][0] for step in of_large] == pytest.approx(list(of_large.values()), rel=6e-3)
    assert [sizes[step][1] for step in of_small] == pytest.approx(list(of_small.values()), rel=6e-3)


def test_the_length_that_rectification_looks_at():
    betas = {"betas": (0.9, 0.999), "weight_decay": 0.0, "eps": 1e-16, "eps_mode": "accumulate"}
    group = betas | {"fixed_decay": False, "weight_decouple": True, "rectify": True, "degenerated_to_sgd": True}
    kinds = [AdaBeliefRule().numbers(group, 1.0, float(step))["kind"] for step in range(1, 7)]
    assert kinds == ["momentum"] * 5 + ["rectified"]
    # length 5.9942 at step 6: the step over lr * m / sqrt(s) is 0.004263
    numbers = AdaBeliefRule().numbers(group, 1.0, 6.0)
    assert numbers["step_size"] / numbers["correction"] == pytest.approx(0.004263, abs=5e-7)


def test_an_added_eps_leaves_the_stored_moment_alone_and_is_that_of_a_long_accumulation():
    eps, beta2 = 1e-8, 0.9
    _, accumulated = trajectory(1, eps=eps)
    _, additive = trajectory(1, eps=eps, eps_mode="additive")
    assert float(accumulated["exp_avg_var"][3]) == eps
    assert float(additive["exp_avg_var"][3]) == 0
    many = 300
    (last,) = steps_over_lr([1e-3, 1e-5], [many], betas=(0.9, beta2), eps=eps * (1 - beta2))
    (last_additive,) = steps_over_lr([1e-3, 1e-5], [many], betas=(0.9, beta2), eps=eps, eps_mode="additive")
    # accumulated, eps is added to the root too
    assert last == pytest.approx(last_additive, rel=1.1e-5)


def test_an_added_eps_in_closed_form():
    ((first,),) = steps_over_lr([1e-3], [1], eps=1e-6, eps_mode="additive")
    assert first == pytest.approx(1e-3 / math.sqrt((0.9e-3) ** 2 + 1e-6), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "would divide 0 by 0"),
        ({"eps": 0.0, "rectify": True}, "would divide 0 by 0"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"betas": (0.9, 1.0)}, r"each must be in \[0, 1\)"),
        ({"eps_mode": "inside"}, "choose accumulate or additive"),
        ({"eps_mode": "additive", "rectify": True}, "choose one"),
        ({"max_update_rms": 0.0}, "must be above 0"),
        ({"max_update_rms": 1.0, "rectify": True}, "turn one of them off"),
        ({"impl": "fused"}, "choose one of auto, foreach, compiled, loop"),
        ({"state_dtype": "int4"}, "choose one of float32, bfloat16, 8bit"),
        ({"param_precision": "fp8"}, "choose one of native, sr, split16, split8"),
        ({"role": "dense"}, "choose one of full, split, matrix"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaBelief([torch.nn.Parameter(torch.zeros(2))], **settings)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(TypeError, match="AdaBelief has no setting amsgrd: it has role, impl"):
        AdaBelief([torch.nn.Parameter(torch.zeros(2))], amsgrd=True)


def test_settings_of_one_group_are_checked_before_it_is_one():
    optimizer = AdaBelief([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_a_sparse_gradient_is_refused():
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"AdaBelief takes dense gradients, and that of weight is sparse"):
        AdaBelief(table.named_parameters()).step()


def test_a_parameter_that_is_not_contiguous_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(3, 2).mT)
    parameter.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"call \.contiguous\(\) first"):
        AdaBelief([parameter]).step()
