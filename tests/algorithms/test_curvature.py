"""Token shifts: values by hand and worked examples, invariances, precision, and what is refused."""

import math

import mpmath
import pytest
import torch

from rlhf.algorithms.advantages import group_normalised
from rlhf.algorithms.curvature import TokenShifts, token_shifts
from rlhf.algorithms.moment_stream import MomentStream, StepBlock
from rlhf.algorithms.output_head import OutputHead, Rows
from rlhf.algorithms.sgd_shifts import sgd_shifts
from rlhf.algorithms.softmax_moments import logit_change

F64 = torch.float64
# three tokens whose numbers were worked out independently
WEIGHT = torch.tensor([[0.2, -0.1], [0.0, 0.3], [-0.4, 0.1]], dtype=F64)
HIDDEN = torch.tensor([[1.0, 0.5], [-0.5, 1.5], [2.0, -1.0]], dtype=F64)
ACTIONS = torch.tensor([0, 2, 1])
ADVANTAGES = torch.tensor([1.0, -0.8, 0.5], dtype=F64)
EXP_AVG = -torch.tensor([[0.01, -0.02], [0.03, 0.0], [-0.04, 0.02]], dtype=F64)  # of the loss
EXP_AVG_SQ = torch.tensor([[1e-4, 4e-4], [9e-4, 1e-4], [16e-4, 4e-4]], dtype=F64)
STATE = dict(exp_avg_VD=EXP_AVG, exp_avg_sq_VD=EXP_AVG_SQ, step=1)


def sgd(**changes) -> TokenShifts:
    return token_shifts(HIDDEN, WEIGHT, ACTIONS, ADVANTAGES, **(dict(lr=0.1, step_model="sgd") | changes))


def close(tensor: torch.Tensor, expected, rel: float = 1e-10) -> None:
    assert tensor.tolist() == pytest.approx(expected, rel=rel, abs=1e-16)


def by_hand(advantage: float, lr: float, fisher: str = "sampled", **changes) -> TokenShifts:
    hidden = torch.tensor([[1.0, 2.0]], dtype=F64)
    weight, action = torch.zeros(3, 2, dtype=F64), torch.tensor([0])
    advantages = torch.tensor([advantage], dtype=F64)
    return token_shifts(hidden, weight, action, advantages, lr=lr, step_model="sgd", fisher=fisher, **changes)


def test_a_uniform_policy_by_hand():
    shifts = by_hand(1.0, 0.1)
    close(shifts.score_norm_N, [2 / 3])
    close(shifts.hidden_norm_N, [5.0])
    close(shifts.delta_N, [1 / 3])
    close(shifts.variance_N, [1 / 18])
    close(shifts.kappa_first_N * 0.1, [1 / 3])
    close(shifts.objective_N, [13 / 36])
    close(shifts.policy_N, [1 / 18])
    close(shifts.logp_N, [-math.log(3)])
    close(by_hand(1.0, 0.1, "exact").policy_N, [1 / 36])
    close(by_hand(1.0, 0.1, "max").policy_N, [1 / 18])


@pytest.mark.parametrize(
    ("advantage", "lr", "objective", "sampled"),
    [(-1.0, 0.1, 11 / 36, 1 / 18), (-1.0, 1.5, -1.25, 12.5), (1.0, 1.5, 11.25, 12.5), (0.0, 0.1, 0.0, 0.0)],
)
def test_signs_and_large_steps_by_hand(advantage, lr, objective, sampled):
    shifts = by_hand(advantage, lr)
    close(shifts.objective_N, [objective])
    close(shifts.policy_N, [sampled])
    close(by_hand(advantage, lr, "exact").policy_N, [sampled / 2])


def test_a_token_weight_scales_the_step_and_not_the_objective():
    shifts = by_hand(1.0, 0.1, token_weight_N=torch.tensor([0.5], dtype=F64))
    close(shifts.objective_N, [25 / 144])
    close(shifts.policy_N, [1 / 72])


def test_three_tokens_with_sgd():
    shifts = sgd()
    close(shifts.score_norm_N, [0.581221517929735, 0.604554647381867, 0.909132221993213])
    close(shifts.hidden_norm_N, [1.25, 2.5, 5.0])
    curvature = [0.213578879624066, 0.227045596347304, 0.320934547996059]  # v^T F v
    close(shifts.variance_N / (0.1 * ADVANTAGES * shifts.hidden_norm_N) ** 2, curvature)
    gradient_norm = ADVANTAGES.abs() * (shifts.score_norm_N * shifts.hidden_norm_N).sqrt()
    close(gradient_norm, [0.852365471738602, 0.983507720259983, 1.066027803338879])
    close(shifts.objective_N, [0.073623311407471, 0.094513691975919, 0.121541322265874])
    close(shifts.policy_N, [0.002639206663317, 0.007309726433420, 0.025828793658322], rel=1e-9)
    exact = [0.001668584997063, 0.004540911926946, 0.010029204624877]
    close(sgd(fisher="exact").policy_N, exact, rel=1e-9)


def test_the_whole_adam_step_of_a_row():
    found = {f: sgd(lr=0.01, step_model="adam_row", fisher=f, **STATE) for f in ("sampled", "exact")}
    shifts = found["sampled"]
    close(shifts.delta_N, [0.00686546792824393, -0.00781096550749116, 0.0218768543516077])
    close(shifts.variance_N[:1], [2.93528968093142e-5])
    close(shifts.objective_N, [0.00687435880477615, 0.00624265709522331, 0.0110145975093025])
    close(shifts.policy_N, [2.3567324936873e-5, 3.05055910796084e-5, 2.39298378160729e-4])
    close(found["exact"].policy_N, [1.46764484046571e-5, 2.28614526175814e-5, 8.69577111634383e-5])


def test_before_the_first_step_adam_row_takes_zero_moments_if_they_are_given():
    zeros = torch.zeros_like(WEIGHT)
    shifts = sgd(lr=0.01, step_model="adam_row", exp_avg_VD=zeros, exp_avg_sq_VD=zeros)
    close(shifts.objective_N[:1], [0.0185549874087487])
    close(shifts.policy_N[:1], [1.70948323714714e-4])
    fallback = sgd(lr=0.01, step_model="adam_row")
    close(fallback.objective_N[:1], [0.00727497519078423])
    close(fallback.policy_N[:1], [2.63920666331676e-5])
    assert all(torch.equal(a, b) for a, b in zip(fallback, sgd(lr=0.01), strict=True))


def test_adam_with_a_frozen_second_moment():
    found = {f: sgd(lr=0.01, step_model="adam_frozen", fisher=f, **STATE) for f in ("sampled", "exact")}
    close(found["sampled"].objective_N, [0.00895625821616584, 0.0076030789983237, 0.0120788323381309])
    close(found["sampled"].policy_N, [3.99722347271109e-5, 4.52463317918841e-5, 2.8754850313118e-4])
    close(found["exact"].policy_N, [2.48811378036899e-5, 3.63318857676191e-5, 1.110640785242e-4])


def test_preconditioned_gradient_ascent_without_momentum():
    settings = dict(lr=0.01, step_model="adam_frozen", momentum=False, **STATE)
    found = {f: sgd(fisher=f, **settings) for f in ("sampled", "exact")}
    close(found["sampled"].objective_N, [0.0169242830327254, 0.0186431682786552, 0.0228696644458057])
    close(found["sampled"].policy_N, [1.42330464057134e-4, 2.73575154877059e-4, 1.02031146373024e-3])
    close(found["exact"].policy_N, [8.99450161995892e-5, 1.86291206363139e-4, 4.5423713121031e-4])


def test_adam_frozen_is_sgd_at_step_0():
    zeros = torch.zeros_like(WEIGHT)
    for state in ({}, dict(exp_avg_VD=zeros, exp_avg_sq_VD=zeros)):
        first = sgd(step_model="adam_frozen", step=0, **state)
        assert all(torch.equal(a, b) for a, b in zip(first, sgd(), strict=True))


@pytest.mark.parametrize(
    ("ratio", "objective", "sampled", "exact"),
    [
        (1.3, 0.124915501463416, 0.00446025926100533, 0.0028199086450365),
        (0.7, 0.0359327412047213, 0.00129321126502521, 8.17606648560878e-4),
    ],
)
def test_the_importance_ratio_scales_the_advantage(ratio, objective, sampled, exact):
    ratios = torch.full((3,), ratio, dtype=F64)
    close(sgd(ratio_N=ratios).objective_N[:1], [objective])
    close(sgd(ratio_N=ratios).policy_N[:1], [sampled])
    close(sgd(ratio_N=ratios, fisher="exact").policy_N[:1], [exact])


def confident(lr: float, fisher: str = "sampled", dtype: torch.dtype = F64) -> TokenShifts:
    weight = torch.tensor([[0.1], [0.0], [0.0]], dtype=dtype)
    hidden, advantages = torch.tensor([[100.0]], dtype=dtype), torch.ones(1, dtype=dtype)
    return token_shifts(hidden, weight, torch.tensor([0]), advantages, lr=lr, step_model="sgd", fisher=fisher)


def test_the_sampled_fisher_understates_the_shift_of_a_confident_token():
    shifts = confident(2.0)
    close(shifts.score_norm_N, [1.236467621097e-8], rel=1e-7)
    close(shifts.delta_N, [2.47293524219e-4], rel=1e-7)
    close(shifts.variance_N, [6.7350420409e-4], rel=1e-7)
    close(shifts.objective_N, [-8.94280007819e-5], rel=1e-7)
    close(shifts.policy_N, [3.05770435604e-8], rel=1e-7)
    close(confident(2.0, "exact").policy_N, [3.36752102050e-4], rel=1e-7)
    close(confident(1.0).objective_N, [3.94663808593e-5], rel=1e-7)


def test_published_settings_reject_a_token_by_its_gradient_norm():
    # sampled Fisher: m_F >= 1e-4 at lr 1.5e-5 is |v|^2 |h|^2 |A| >= 942.8
    for advantage, is_below in ((941.0, True), (944.0, False)):
        shifts = by_hand(advantage * 0.3, 1.5e-5)  # |v|^2 |h|^2 = 10/3
        assert (float(shifts.policy_N) < 1e-4) == is_below
    one_right = group_normalised(torch.tensor([1.0] + [0.0] * 7, dtype=F64), 1e-4)
    close(one_right[:2], [2.47417393208683, -0.353453418869547])
    half_right = group_normalised(torch.tensor([1.0, 0.0] * 4, dtype=F64), 1e-4)
    close(half_right.abs(), [0.935239379426864] * 8)


@pytest.mark.parametrize("fisher", ["sampled", "exact", "max"])
def test_closed_forms_from_sums_of_probabilities(fisher):
    hidden, weight, actions, advantages, _ = random_tokens(12)
    ratio, weights = torch.rand(9, dtype=F64) + 0.5, torch.rand(9, dtype=F64)
    settings = dict(lr=0.3, fisher=fisher, ratio_N=ratio, token_weight_N=weights)
    expected = token_shifts(hidden, weight, actions, advantages, step_model="sgd", temperature=0.7, **settings)
    p = (hidden @ weight.t() / 0.7).softmax(1).scatter(1, actions[:, None], 0.0)
    found = sgd_shifts(
        expected.logp_N,
        p.square().sum(1),
        (p**3).sum(1),
        expected.log_normalizer_N,
        hidden.square().sum(1),
        advantages,
        gain=1 / 0.7,
        **settings,
    )
    same(found, expected, rtol=1e-10)


def test_closed_forms_keep_the_digits_of_a_confident_token_in_float32():
    # logits (10, 0, 0)
    others = math.exp(-10) / (1 + 2 * math.exp(-10))
    logp = torch.tensor([-math.log1p(2 * math.exp(-10))])
    square, cube = torch.tensor([2 * others**2]), torch.tensor([2 * others**3])
    one = torch.ones(1)
    shifts = sgd_shifts(logp, square, cube, one, one, one, lr=1.0)
    close(shifts.score_norm_N, [1.23646761718e-8], rel=1e-6)
    close(shifts.variance_N, [1.6837605e-12], rel=1e-6)
    with pytest.raises(ValueError, match="lr must be a finite number"):
        sgd_shifts(logp, square, cube, one, one, one, lr=-1.0)
    with pytest.raises(ValueError, match=r"others_cube_N has shape \(2,\), expected \(1,\)"):
        sgd_shifts(logp, square, torch.ones(2), one, one, one, lr=1.0)


# invariances


def random_tokens(seed: int, count: int = 9, vocabulary: int = 23, width: int = 5, dtype: torch.dtype = F64):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=g, dtype=F64)
    weight = torch.randn(vocabulary, width, generator=g, dtype=F64)
    actions = torch.randint(vocabulary, (count,), generator=g)
    advantages = torch.randn(count, generator=g, dtype=F64)
    state = dict(
        exp_avg_VD=torch.randn(vocabulary, width, generator=g, dtype=F64) * 0.1,
        exp_avg_sq_VD=torch.randn(vocabulary, width, generator=g, dtype=F64).square() * 0.01,
        step=7,
    )
    state = {name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    return hidden.to(dtype), weight.to(dtype), actions, advantages.to(dtype), state


MODELS = ["sgd", "adam_frozen", "adam_row"]


def same(left: TokenShifts, right: TokenShifts, rtol: float = 1e-11) -> None:
    for name, a, b in zip(TokenShifts._fields, left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("model", MODELS)
def test_kappas_give_the_shifts_at_any_learning_rate(model):
    *tokens, state = random_tokens(0)
    settings = dict(step_model=model, fisher="exact", weight_decay=0.1, **state)
    one = token_shifts(*tokens, lr=1e-2, **settings)
    for lr in (3e-3, 1e-5, 0.0):
        other = token_shifts(*tokens, lr=lr, **settings)
        torch.testing.assert_close(other.policy_N, lr**2 * one.kappa_policy_N, rtol=1e-12, atol=0)
        expected_N = lr * one.kappa_first_N + lr**2 * one.kappa_second_N
        torch.testing.assert_close(other.objective_N, expected_N, rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", MODELS)
def test_the_order_of_the_vocabulary_does_not_matter(model):
    hidden, weight, actions, advantages, state = random_tokens(1)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(2))
    moved = {name: value[order] if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    settings = dict(lr=1e-2, step_model=model, vocab_chunk=7)
    here = token_shifts(hidden, weight, actions, advantages, **settings, **state)
    there = token_shifts(hidden, weight[order], order.argsort()[actions], advantages, **settings, **moved)
    same(here, there)


@pytest.mark.parametrize("model", MODELS)
def test_a_shift_of_all_logits_does_not_matter(model):
    hidden, weight, actions, advantages, state = random_tokens(2)
    settings = dict(lr=1e-2, step_model=model, fisher="max", **state)
    here = token_shifts(hidden, weight, actions, advantages, **settings)
    there = token_shifts(hidden, weight + torch.randn(5, dtype=F64), actions, advantages, **settings)
    same(here._replace(log_normalizer_N=there.log_normalizer_N), there, rtol=1e-9)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_chunks_do_not_matter(model, softcap):
    *tokens, state = random_tokens(3)
    settings = dict(lr=1e-2, step_model=model, fisher="exact", logit_softcap=softcap, **state)
    whole = token_shifts(*tokens, **settings)
    for token_chunk, vocab_chunk in ((1, 1), (2, 7), (100, 23), (4, 22)):
        same(whole, token_shifts(*tokens, token_chunk=token_chunk, vocab_chunk=vocab_chunk, **settings))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_token_spoils_itself_alone(model, bad):
    hidden, weight, actions, advantages, state = random_tokens(4)
    settings = dict(lr=1e-2, step_model=model, vocab_chunk=7, **state)
    clean = token_shifts(hidden, weight, actions, advantages, **settings)
    others = torch.arange(9) != 3
    for spoil_hidden in (True, False):
        spoiled_hidden, spoiled_advantages = hidden.clone(), advantages.clone()
        if spoil_hidden:
            spoiled_hidden[3, 0] = bad
        else:
            spoiled_advantages[3] = bad
        found = token_shifts(spoiled_hidden, weight, actions, spoiled_advantages, **settings)
        assert not bool(found.objective_N[3].isfinite())
        for a, b in zip(clean, found, strict=True):
            assert torch.equal(a[others], b[others])


@pytest.mark.parametrize("model", MODELS)
def test_banned_ids_are_as_if_absent_and_a_banned_action_is_not_finite(model):
    hidden, weight, _, advantages, state = random_tokens(5)
    actions = torch.arange(9)
    moments = dict(bias_exp_avg_V=torch.ones(23, dtype=F64), bias_exp_avg_sq_V=torch.ones(23, dtype=F64))
    bias = torch.zeros(23, dtype=F64)
    bias[8:16] = -math.inf
    settings = dict(lr=1e-2, step_model=model, weight_decay=0.1)
    state |= moments
    found = token_shifts(hidden, weight, actions, advantages, bias_V=bias, vocab_chunk=4, **settings, **state)
    assert found.objective_N.isfinite().tolist() == [True] * 8 + [False]
    kept = torch.cat([torch.arange(8), torch.arange(16, 23)])
    fewer = {n: v[kept] if isinstance(v, torch.Tensor) else v for n, v in state.items()}
    expected = token_shifts(
        hidden[:8], weight[kept], actions[:8], advantages[:8], bias_V=bias[kept], **settings, **fewer
    )
    same(TokenShifts(*(value[:8] for value in found)), expected)


def test_a_token_without_a_gradient_proposes_no_step():
    hidden, weight, actions, advantages, state = random_tokens(6)
    advantages[2] = 0
    shifts = token_shifts(hidden, weight, actions, advantages, lr=1e-2, step_model="adam_frozen", **state)
    assert float(shifts.objective_N[2]) == float(shifts.policy_N[2]) == 0
    assert bool((shifts.policy_N != 0)[torch.arange(9) != 2].all())


def test_two_shards_of_the_vocabulary_merge_into_one():
    hidden, weight, actions, _, state = random_tokens(7)
    fixed, scale = state["exp_avg_VD"], state["exp_avg_sq_VD"]

    def moments(rows: slice):
        head = OutputHead(Rows(weight[rows], None, F64), 1.0, None)
        stream = MomentStream(head, hidden, actions - rows.start, (4, 5))
        for columns in stream.columns():
            for tokens in stream.token_blocks():
                step = StepBlock(fixed[rows][columns], scale[rows][columns])
                stream.visit(tokens, columns, weight[rows][columns], step)
        return stream.moments

    whole = moments(slice(0, 23))
    merged = moments(slice(0, 11))
    merged.merge_(moments(slice(11, 23)))
    for a, b in zip(logit_change(whole, 0.3), logit_change(merged, 0.3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_nothing_given_is_changed_and_no_graph_is_kept():
    hidden, weight, actions, advantages, state = random_tokens(8)
    hidden.requires_grad_()
    weight.requires_grad_()
    given = [hidden, weight, advantages, state["exp_avg_VD"], state["exp_avg_sq_VD"]]
    before = [tensor.detach().clone() for tensor in given]
    for model in MODELS:
        shifts = token_shifts(
            hidden, weight, actions, advantages, lr=0.1, step_model=model, weight_decay=0.1, top_k=None, **state
        )
        assert not any(tensor.requires_grad for tensor in shifts)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_no_tokens_no_shifts():
    hidden, weight, actions, advantages, state = random_tokens(9)
    for model in MODELS:
        shifts = token_shifts(hidden[:0], weight, actions[:0], advantages[:0], lr=0.1, step_model=model, **state)
        assert all(tensor.shape == (0,) for tensor in shifts)


# precision


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_float32_is_within_1e_5_of_float64(model, fisher):
    hidden, weight, actions, advantages, state = random_tokens(10, 40, 200, 8, torch.float32)
    wide = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    settings = dict(lr=1e-3, step_model=model, fisher=fisher, vocab_chunk=64)
    narrow = token_shifts(hidden, weight, actions, advantages, **settings, **state)
    exact = token_shifts(hidden.double(), weight.double(), actions, advantages.double(), **settings, **wide)
    assert narrow.objective_N.dtype == torch.float32
    for name in ("objective_N", "policy_N", "score_norm_N", "delta_N", "variance_N"):
        found, expected = getattr(narrow, name).double(), getattr(exact, name)
        # delta and the first order may pass through 0 where momentum and the token's own gradient oppose each other
        scale = exact.variance_N.sqrt() if name == "delta_N" else expected.abs()
        if name == "objective_N":
            scale = advantages.double().abs() * exact.variance_N.sqrt().maximum(exact.delta_N.abs())
        if name == "policy_N" and fisher == "sampled":
            scale = expected.maximum(exact.variance_N)
        assert bool(((found - expected).abs() <= 1e-5 * scale).all()), name


def two_level_policy(p_action: float, others: int, hidden: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A head (V, 1) and one state: the action has p_action, the others share the rest in the ratios 1, 2, ...."""
    rest = torch.arange(1, others + 1, dtype=F64)
    logits = torch.cat([torch.tensor([p_action], dtype=F64), rest / rest.sum() * (1 - p_action)]).log()
    return torch.full((1, 1), hidden, dtype=F64), (logits / hidden)[:, None]


@pytest.mark.parametrize("p_action", [1 - 1e-6, 0.5, 1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("others", [1, 2, 50])
def test_confident_and_unlikely_tokens_keep_their_digits(p_action, others):
    hidden, weight = two_level_policy(p_action, others, 4.0)
    hidden, weight = hidden.float(), weight.float()
    action, advantage = torch.tensor([0]), torch.ones(1)
    arguments = dict(lr=0.1, step_model="sgd", fisher="exact", vocab_chunk=8)
    expected = exact_sgd_shifts(hidden, weight, 0.1)
    for dtype, rel in ((torch.float32, 1e-5), (F64, 1e-12)):
        shifts = token_shifts(hidden.to(dtype), weight.to(dtype), action, advantage.to(dtype), **arguments)
        for name, value in expected.items():
            assert float(getattr(shifts, name)) == pytest.approx(float(value), rel=rel), (name, dtype)


def exact_sgd_shifts(hidden: torch.Tensor, weight: torch.Tensor, lr: float) -> dict[str, mpmath.mpf]:
    with mpmath.workdps(60):
        h = mpmath.mpf(float(hidden))
        weights = [mpmath.exp(mpmath.mpf(w) * h) for w in weight[:, 0].tolist()]
        total = mpmath.fsum(weights)
        p = [w / total for w in weights]
        u = [mpmath.mpf(lr) * h**2 * ((k == 0) - p_k) for k, p_k in enumerate(p)]
        mean = mpmath.fsum(a * b for a, b in zip(p, u, strict=True))
        variance = mpmath.fsum(a * (b - mean) ** 2 for a, b in zip(p, u, strict=True))
        delta = u[0] - mean
        return {
            "delta_N": delta,
            "variance_N": variance,
            "policy_N": variance / 2,
            "objective_N": delta + (delta**2 - variance) / 2,
            "logp_N": mpmath.log(p[0]),
        }


def test_bfloat16_is_read_exactly_also_under_autocast():
    hidden, weight, actions, advantages, _ = random_tokens(11, 40, 200, 8, torch.float32)
    half_hidden, half_weight = hidden.bfloat16(), weight.bfloat16()
    settings = dict(lr=1e-3, step_model="sgd")
    expected = token_shifts(half_hidden.float(), half_weight.float(), actions, advantages, **settings)
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            found = token_shifts(half_hidden, half_weight, actions, advantages, **settings)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lr=-0.1), "lr must be a finite number that is not negative, got -0.1"),
        (dict(lr=math.nan), "lr must be a finite number that is not negative, got nan"),
        (dict(fisher="empirical"), "unknown fisher 'empirical': choose sampled, exact or max"),
        (dict(step_model="lion"), "unknown step model 'lion': choose sgd, adam_frozen or adam_row"),
        (dict(step=-1), "step counts the optimizer steps already taken, got -1"),
        (dict(step_model="adam_frozen", step=1), "adam_frozen at step 1 needs the optimizer's moments of the LM head"),
        (dict(step_model="adam_row", step=3), "adam_row at step 3 needs the optimizer's moments of the LM head"),
        (
            dict(STATE, step_model="adam_frozen", exp_avg_VD=torch.zeros(3, 4)),
            r"exp_avg_VD has shape \(3, 4\), but the LM head weight \(3, 2\)",
        ),
        (
            dict(STATE, step_model="adam_frozen", bias_V=torch.zeros(3)),
            "needs the moments of the LM head's bias too: give bias_exp_avg_V",
        ),
        (dict(bias_V=torch.zeros(4)), r"bias_V has shape \(4,\), expected \(3,\)"),
        (dict(ratio_N=torch.ones(2)), r"ratio_N has shape \(2,\), expected \(3,\)"),
        (dict(token_weight_N=torch.ones(1)), r"token_weight_N has shape \(1,\), expected \(3,\)"),
        (dict(objective_slope_N=torch.ones(4)), r"objective_slope_N has shape \(4,\), expected \(3,\)"),
        (dict(temperature=0.0), "temperature must be above 0 for log-probs to exist, got 0.0"),
        (dict(logit_softcap=0.0), "logit_softcap must be above 0, got 0.0: use None for no softcap"),
        (dict(token_chunk=0), "token_chunk must be at least 1, got 0: use None for the default"),
        (dict(vocab_chunk=-3), "vocab_chunk must be at least 1, got -3: use None for the default"),
        (dict(top_k=0), "top_k must be at least 1, got 0: use None for the whole vocabulary"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sgd(**changes)


def test_shapes_and_ids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"hidden states \(3, 1\) and LM head weight \(3, 2\) must be"):
        token_shifts(HIDDEN[:, :1], WEIGHT, ACTIONS, ADVANTAGES, lr=0.1)
    with pytest.raises(ValueError, match=r"actions_N has shape \(2,\), expected \(3,\)"):
        token_shifts(HIDDEN, WEIGHT, ACTIONS[:2], ADVANTAGES, lr=0.1)
    with pytest.raises(ValueError, match=r"advantages_N has shape \(2,\), expected \(3,\)"):
        token_shifts(HIDDEN, WEIGHT, ACTIONS, ADVANTAGES[:2], lr=0.1)
    for wrong in (3, -1):
        actions = torch.tensor([0, wrong, 1])
        with pytest.raises(ValueError, match="every action must be an id in"):
            token_shifts(HIDDEN, WEIGHT, actions, ADVANTAGES, lr=0.1)
