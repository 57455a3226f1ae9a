"""The streamed head against ordinary autograd on full logits."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from rlhf.models.head import HeadSettings, policy_head, token_statistics
from rlhf.models.head_block import block_rows
from rlhf.models.precision import cpu_has_bfloat16_matmul

N, V, D = 23, 301, 24
# one token a block, a few, an uneven last block, all at once
BLOCK_BYTES = [1, 5 * V * 4, 12 * V * 8, None]
VARIANTS = [
    HeadSettings(),
    HeadSettings(temperature=0.6),
    HeadSettings(logit_softcap=2.0),
    HeadSettings(temperature=1.7, logit_softcap=3.0, logit_scale=0.4),
]


def make_inputs(dtype: torch.dtype, has_bias: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = dict(hidden_ND=torch.randn(N, D, dtype=dtype), weight_VD=torch.randn(V, D, dtype=dtype) * 0.5)
    if has_bias:
        tensors["bias_V"] = torch.randn(V, dtype=dtype)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def plain(inputs: dict[str, torch.Tensor], target_N: torch.Tensor, settings: HeadSettings) -> tuple[torch.Tensor, ...]:
    logits = F.linear(inputs["hidden_ND"], inputs["weight_VD"], inputs.get("bias_V")) * settings.logit_scale
    if settings.logit_softcap is not None:
        logits = settings.logit_softcap * torch.tanh(logits / settings.logit_softcap)
    logp_NV = (logits / settings.temperature).log_softmax(-1)
    return logp_NV.gather(1, target_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(-1), logp_NV.exp()


def clipped_loss(seed: int, dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]:
    """A clipped surrogate with a KL estimate and an entropy bonus."""
    generator = torch.Generator().manual_seed(seed)
    old_N, advantage_N, weight_N = torch.randn(3, N, generator=generator, dtype=torch.float64).to(dtype)

    def objective(logp_n: torch.Tensor, entropy_n: torch.Tensor, rows: slice) -> torch.Tensor:
        ratio = (logp_n - (logp_n.detach() + 0.3 * old_N[rows])).exp()
        surrogate = -torch.minimum(ratio * advantage_N[rows], ratio.clamp(0.8, 1.2) * advantage_N[rows])
        kl = (-0.3 * ratio.log()).exp() - 1 + 0.3 * ratio.log()
        return weight_N[rows] * (surrogate + 0.05 * kl - 0.1 * entropy_n)

    return objective


def gradients(loss: torch.Tensor, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(inputs.values())))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_autograd_for_every_block_size(dtype, settings, has_bias):
    inputs, target_N = (
        make_inputs(dtype, has_bias),
        torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(2)),
    )
    objective = clipped_loss(3, dtype)
    # the oracle in float64, so that float32 is not measured against float32's own rounding
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    logp_N, entropy_N, p_NV = plain(exact, target_N, settings)
    loss_N = clipped_loss(3, torch.float64)(logp_N, entropy_N, slice(None))
    expected = gradients(loss_N.sum(), exact)
    relative = 1e-6 if dtype == torch.float32 else 1e-12

    def close(found: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor | None = None) -> bool:
        found, wanted = found.detach().double(), wanted.detach()
        size = wanted.abs().max() if size is None else size.detach()
        return float((found - wanted).abs().max()) <= relative * max(1.0, float(size))

    for block_bytes in BLOCK_BYTES:
        blocked = HeadSettings(settings.temperature, settings.logit_softcap, settings.logit_scale, block_bytes)
        one = policy_head(**inputs, target_N=target_N, objective=objective, settings=blocked, with_extras=True)
        two = token_statistics(**inputs, target_N=target_N, settings=blocked)
        two_loss = objective(two.logp_N, two.entropy_N, slice(None)).sum()
        # a sum is as exact as its largest terms
        terms = loss_N.abs().sum()
        assert close(one.loss, loss_N.sum(), terms) and close(two_loss, loss_N.sum(), terms)
        for statistics in (one, two):
            assert close(statistics.logp_N, logp_N) and close(statistics.entropy_N, entropy_N)
        assert close(one.collision_N, p_NV.square().sum(-1)) and close(one.max_prob_N, p_NV.amax(-1))
        for found_one, found_two, wanted in zip(
            gradients(one.loss, inputs), gradients(two_loss, inputs), expected, strict=True
        ):
            assert close(found_one, wanted) and close(found_two, wanted)
        assert not one.logp_N.requires_grad and not one.entropy_N.requires_grad


def test_incoming_gradient_scales_and_unused_outputs_cost_nothing():
    inputs, target_N = make_inputs(torch.float64, False), torch.arange(N)
    objective = clipped_loss(3, torch.float64)
    plain_gradients = gradients(policy_head(**inputs, target_N=target_N, objective=objective).loss, inputs)
    scaled = gradients(policy_head(**inputs, target_N=target_N, objective=objective).loss * -2.5, inputs)
    for one, other in zip(plain_gradients, scaled, strict=True):
        torch.testing.assert_close(other, -2.5 * one)
    statistics = token_statistics(**inputs, target_N=target_N)
    by_entropy = gradients(statistics.entropy_N.sum(), inputs)
    expected = gradients(plain(inputs, target_N, HeadSettings())[1].sum(), inputs)
    for one, other in zip(by_entropy, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_needs_a_gradient_gets_one():
    inputs, target_N = make_inputs(torch.float64, False), torch.arange(N)
    objective = clipped_loss(3, torch.float64)
    expected = gradients(policy_head(**inputs, target_N=target_N, objective=objective).loss, inputs)
    frozen = dict(inputs, weight_VD=inputs["weight_VD"].detach())
    loss = policy_head(**frozen, target_N=target_N, objective=objective).loss
    torch.testing.assert_close(torch.autograd.grad(loss, frozen["hidden_ND"])[0], expected[0], rtol=0, atol=0)
    with torch.no_grad():
        silent = policy_head(**inputs, target_N=target_N, objective=objective)
    assert silent.loss == loss and not silent.loss.requires_grad


def test_a_loss_that_ignores_the_policy_has_zero_gradients():
    inputs, target_N = make_inputs(torch.float64, True), torch.arange(N)
    out = policy_head(**inputs, target_N=target_N, objective=lambda logp_n, entropy_n, rows: torch.ones_like(logp_n))
    assert out.loss == N
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients(out.loss, inputs))


def test_no_tokens_give_a_loss_of_zero_with_zero_gradients():
    inputs = make_inputs(torch.float32, False)
    inputs["hidden_ND"] = torch.empty(0, D, requires_grad=True)
    out = policy_head(
        **inputs, target_N=torch.empty(0, dtype=torch.long), objective=lambda logp_n, entropy_n, rows: logp_n
    )
    assert out.loss == 0 and out.logp_N.shape == (0,)
    hidden, weight = gradients(out.loss, inputs)
    assert hidden.shape == (0, D) and weight.shape == (V, D) and float(weight.abs().max()) == 0


def test_extreme_logits_stay_finite_and_exact():
    hidden_ND = torch.tensor([[1.0], [1.0], [-1.0]], requires_grad=True)
    weight_VD = torch.tensor([[3e4], [0.0], [-3e4]], requires_grad=True)
    target_N = torch.tensor([0, 2, 0])
    out = policy_head(
        hidden_ND, weight_VD, target_N, lambda logp_n, entropy_n, rows: logp_n + entropy_n, settings=HeadSettings()
    )
    assert out.logp_N.tolist() == [0.0, -6e4, -6e4] and out.entropy_N.tolist() == [0.0, 0.0, 0.0]
    by_hidden, by_weight = torch.autograd.grad(out.loss, (hidden_ND, weight_VD))
    # token 1: gradient of logits is (-1, 0, 1); token 2: (1, 0, -1)
    assert by_hidden.flatten().tolist() == [0.0, -6e4, 6e4]
    assert by_weight.flatten().tolist() == [-2.0, 0.0, 2.0]


def test_bfloat16_inputs_keep_float32_statistics():
    inputs, target_N = make_inputs(torch.float32, False), torch.arange(N)
    half = {name: tensor.detach().bfloat16().requires_grad_() for name, tensor in inputs.items()}
    rounded = {name: tensor.detach().double().requires_grad_() for name, tensor in half.items()}
    objective = clipped_loss(3, torch.float32)
    out = policy_head(**half, target_N=target_N, objective=objective)
    logp_N, entropy_N, _ = plain(rounded, target_N, HeadSettings())
    assert out.loss.dtype == out.logp_N.dtype == out.entropy_N.dtype == torch.float32
    # logits of about 10 are rounded to 8 bits where the products are bfloat16, and not at all where they are float32
    tolerance = 0.08 if cpu_has_bfloat16_matmul() else 1e-5
    assert float((out.logp_N - logp_N).detach().abs().max()) < tolerance
    assert float((out.entropy_N - entropy_N).detach().abs().max()) < tolerance
    expected = gradients(clipped_loss(3, torch.float64)(logp_N, entropy_N, slice(None)).sum(), rounded)
    for found, wanted in zip(gradients(out.loss, half), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert F.cosine_similarity(found.double().flatten(), wanted.flatten(), dim=0) > 0.9995


def test_autocast_gives_float32_losses_and_gradients_in_the_parameters_precision():
    inputs, target_N = make_inputs(torch.float32, False), torch.arange(N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = policy_head(**inputs, target_N=target_N, objective=clipped_loss(3, torch.float32))
    assert out.loss.dtype == torch.float32
    expected = policy_head(**inputs, target_N=target_N, objective=clipped_loss(3, torch.float32))
    for found, wanted in zip(gradients(out.loss, inputs), gradients(expected.loss, inputs), strict=True):
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(target_N=torch.zeros(3, dtype=torch.long)), "23 hidden states"),
        (dict(weight_VD=torch.randn(V, D + 1)), r"\(N, D\) and \(V, D\)"),
        (dict(bias_V=torch.zeros(4)), "bias"),
        (dict(objective=lambda logp_n, entropy_n, rows: logp_n.sum()), "one loss a token"),
    ],
)
def test_misfits_are_refused(change, message):
    arguments = dict(
        hidden_ND=torch.randn(N, D),
        weight_VD=torch.randn(V, D),
        target_N=torch.arange(N),
        objective=lambda logp_n, entropy_n, rows: logp_n,
    )
    with pytest.raises(ValueError, match=message):
        policy_head(**(arguments | change))


def test_a_second_backward_is_refused():
    inputs = make_inputs(torch.float32, False)
    out = policy_head(**inputs, target_N=torch.arange(N), objective=lambda logp_n, entropy_n, rows: logp_n)
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        out.loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["one pass", "two passes"])
def test_extra_memory_is_a_tenth_of_the_logits(peak_bytes, head):
    count, vocabulary, hidden_size = 4096, 49_152, 576
    torch.manual_seed(0)
    hidden_ND = torch.randn(count, hidden_size, requires_grad=True)
    weight_VD = (torch.randn(vocabulary, hidden_size) * 0.05).requires_grad_()
    target_N = torch.randint(0, vocabulary, (count,))

    def run() -> tuple[torch.Tensor, ...]:
        if head == "one pass":
            loss = policy_head(hidden_ND, weight_VD, target_N, lambda logp_n, entropy_n, rows: logp_n - entropy_n).loss
        else:
            statistics = token_statistics(hidden_ND, weight_VD, target_N)
            loss = (statistics.logp_N - statistics.entropy_N).sum()
        return torch.autograd.grad(loss, (hidden_ND, weight_VD))

    returned = 4 * (count + vocabulary) * hidden_size
    extra = peak_bytes(run) - returned
    # something was measured: a block of logits is 48 MiB
    assert 40e6 < extra < count * vocabulary * 4 / 10, f"{extra / 1e6:.1f} MB beyond inputs and gradients"


def test_blocks_are_even():
    class Wide:
        vocabulary, dtype = 1000, torch.float32
        weight_VD = torch.empty(0)

    assert block_rows(100, Wide, 40 * 4000) == 34  # three blocks of 34, 34 and 32, not 40, 40 and 20
    assert block_rows(100, Wide, 1) == 1
    assert block_rows(0, Wide, None) == 1
