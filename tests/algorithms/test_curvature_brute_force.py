"""Shifts against dense gradients, Hessians and Fisher matrices by autograd, and steps against torch's own optimizers.

The functions here build everything from the definitions: vec(W, b) as parameters, N x V log-probs, d x d matrices.
"""

from dataclasses import dataclass

import pytest
import torch

from rlhf.algorithms.aggregate_steps import proposed_step, step_shifts
from rlhf.algorithms.curvature import token_shifts
from rlhf.algorithms.output_head import OutputHead, Rows
from rlhf.algorithms.step_models import step_model

F64 = torch.float64


@dataclass
class Case:
    """A random head with its optimizer state, and some tokens, in float64."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    actions: torch.Tensor
    advantages: torch.Tensor
    ratio: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    bias_exp_avg: torch.Tensor | None
    bias_exp_avg_sq: torch.Tensor | None
    step: int
    lr: float
    weight_decay: float
    temperature: float
    logit_scale: float
    softcap: float | None

    def head_settings(self) -> dict:
        return dict(
            temperature=self.temperature,
            logit_scale=self.logit_scale,
            logit_softcap=self.softcap,
            bias_V=self.bias,
        )

    def state(self) -> dict:
        return dict(
            exp_avg_VD=self.exp_avg,
            exp_avg_sq_VD=self.exp_avg_sq,
            bias_exp_avg_V=self.bias_exp_avg,
            bias_exp_avg_sq_V=self.bias_exp_avg_sq,
            step=self.step,
            weight_decay=self.weight_decay,
        )

    def head(self) -> OutputHead:
        cap = None if self.softcap is None else self.softcap / self.temperature
        return OutputHead(Rows(self.weight, self.bias, F64), self.logit_scale / self.temperature, cap)

    def parameters(self) -> torch.Tensor:
        """(V, D), or (V, D + 1) with the bias as last column."""
        return self.weight if self.bias is None else torch.cat([self.weight, self.bias[:, None]], 1)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.bias is None:
            return self.exp_avg, self.exp_avg_sq
        return (
            torch.cat([self.exp_avg, self.bias_exp_avg[:, None]], 1),
            torch.cat([self.exp_avg_sq, self.bias_exp_avg_sq[:, None]], 1),
        )

    def logits(self, parameters: torch.Tensor, token: int) -> torch.Tensor:
        hidden = self.hidden[token]
        if self.bias is not None:
            hidden = torch.cat([hidden, hidden.new_ones(1)])
        y = self.logit_scale * (parameters @ hidden)
        if self.softcap is not None:
            y = self.softcap * torch.tanh(y / self.softcap)
        return y / self.temperature

    def logp(self, parameters: torch.Tensor, token: int) -> torch.Tensor:
        return self.logits(parameters, token).log_softmax(0)


def random_case(seed: int, *, softcap: bool = False, tokens: int = 1) -> Case:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=g))

    vocabulary, width = 2 + below(22), 1 + below(5)
    has_bias = below(2) == 1
    sharpness = (0.1, 0.5, 1.5)[below(3)]
    return Case(
        hidden=normal(tokens, width) * sharpness,
        weight=normal(vocabulary, width),
        bias=normal(vocabulary) if has_bias else None,
        actions=torch.randint(vocabulary, (tokens,), generator=g),
        advantages=normal(tokens),
        ratio=normal(tokens).mul(0.3).exp(),
        exp_avg=normal(vocabulary, width) * 0.1,
        exp_avg_sq=normal(vocabulary, width).square() * 0.01,
        bias_exp_avg=normal(vocabulary) * 0.1 if has_bias else None,
        bias_exp_avg_sq=normal(vocabulary).square() * 0.01 if has_bias else None,
        step=1 + below(50),
        lr=10.0 ** (-1 - below(3)),
        weight_decay=0.1 * below(2),
        temperature=0.5 + 0.25 * below(5),
        logit_scale=0.5 + 0.5 * below(3),
        softcap=1.0 + below(3) if softcap else None,
    )


def token_gradient(case: Case, token: int) -> torch.Tensor:
    """Gradient of A rho exp(log p - log p_now), whose first and second derivatives by log p are A rho."""
    parameters = case.parameters().clone().requires_grad_()
    logp = case.logp(parameters, token)[case.actions[token]]
    surrogate = case.advantages[token] * case.ratio[token] * torch.exp(logp - logp.detach())
    return torch.autograd.grad(surrogate, parameters)[0]


def optimizer_step(case: Case, gradient: torch.Tensor, model: str, momentum: bool = True) -> torch.Tensor:
    """What torch.optim does to the parameters for this gradient of the objective (the bias is not decayed)."""
    decay = -case.lr * case.weight_decay * case.parameters()
    if case.bias is not None:
        decay[:, -1] = 0
    exp_avg, exp_avg_sq = case.moments()
    if model == "adam_row" and momentum:
        parameters = torch.nn.Parameter(case.parameters().clone())
        optimizer = torch.optim.Adam([parameters], lr=case.lr, betas=(0.9, 0.999), eps=1e-8)
        optimizer.state[parameters] = {
            "step": torch.tensor(float(case.step)),
            "exp_avg": exp_avg.clone(),
            "exp_avg_sq": exp_avg_sq.clone(),
        }
        parameters.grad = -gradient
        optimizer.step()
        return parameters.detach() - case.parameters() + decay
    if model == "sgd":
        return case.lr * gradient + decay
    if model == "adam_row":
        second = (0.999 * exp_avg_sq + 0.001 * gradient**2) / (1 - 0.999 ** (case.step + 1))
        return case.lr * gradient / (second.sqrt() + 1e-8) + decay
    preconditioner = 1 / ((exp_avg_sq / (1 - 0.999**case.step)).sqrt() + 1e-8)
    if momentum:
        gradient = (0.1 * gradient - 0.9 * exp_avg) / (1 - 0.9 ** (case.step + 1))
    return case.lr * preconditioner * gradient + decay


class DenseToken:
    """One token's gradient, Hessian and Fisher matrices by autograd over vec(W, b)."""

    def __init__(self, case: Case, token: int) -> None:
        base, action = case.parameters(), case.actions[token]
        now = case.logp(base, token)
        coefficient = case.advantages[token] * case.ratio[token]
        self.flat = base.flatten()
        self.coefficient = coefficient

        def logp(flat: torch.Tensor) -> torch.Tensor:
            return case.logp(flat.view(base.shape), token)

        self.surrogate = lambda flat: coefficient * torch.exp(logp(flat)[action] - now[action])
        self.kl = lambda flat: (now.exp() * (now - logp(flat))).sum()
        self.gradient = torch.autograd.functional.jacobian(self.surrogate, self.flat)
        self.score = torch.autograd.functional.jacobian(lambda flat: logp(flat)[action], self.flat)
        self.hessian = torch.autograd.functional.hessian(self.surrogate, self.flat)
        self.fisher = torch.autograd.functional.hessian(self.kl, self.flat)

    def shifts(self, step: torch.Tensor) -> dict[str, object]:
        """m_H, both m_F, KL and the objective's change of a step."""
        x = step.flatten()
        first = self.gradient @ x
        return {
            "first": about(first),
            "objective": about(first + x @ self.hessian @ x / 2),
            "sampled": about((self.score @ x) ** 2 / 2),
            "exact": about(x @ self.fisher @ x / 2),
            # these are differences of numbers of size 1 and of the coefficient
            "kl": about(self.kl(self.flat + x), 1e-14),
            "change": about(self.surrogate(self.flat + x) - self.coefficient, 1e-14 * (1 + abs(self.coefficient))),
        }


def about(value: torch.Tensor, rounding: float = 1e-18) -> object:
    return pytest.approx(float(value), rel=1e-9, abs=float(rounding))


MODELS = [("sgd", True), ("adam_frozen", True), ("adam_frozen", False), ("adam_row", True), ("adam_row", False)]


def shifts_of(case: Case, model: str, momentum: bool, fisher: str, vocab_chunk: int):
    return token_shifts(
        case.hidden,
        case.weight,
        case.actions,
        case.advantages,
        lr=case.lr,
        step_model=model,
        momentum=momentum,
        fisher=fisher,
        ratio_N=case.ratio,
        vocab_chunk=vocab_chunk,
        **case.head_settings(),
        **case.state(),
    )


# 40 seeds x 5 models = 200 cases, each head with its own sizes, bias or none, temperature, scale and decay
@pytest.mark.parametrize("seed", range(40))
def test_shifts_equal_the_dense_gradient_hessian_and_fisher(seed):
    case = random_case(seed)
    dense = DenseToken(case, 0)
    for model, momentum in MODELS:
        expected = dense.shifts(optimizer_step(case, token_gradient(case, 0), model, momentum))
        sampled, exact, largest = (
            shifts_of(case, model, momentum, fisher, 1 + seed % 7) for fisher in ("sampled", "exact", "max")
        )
        assert float(sampled.objective_N) == expected["objective"], (model, momentum)
        assert float(sampled.policy_N) == expected["sampled"], (model, momentum)
        assert float(exact.policy_N) == expected["exact"], (model, momentum)
        assert float(largest.policy_N) == max(float(sampled.policy_N), float(exact.policy_N))
        assert float(sampled.kappa_first_N) * case.lr == expected["first"], (model, momentum)


@pytest.mark.parametrize("seed", range(100, 110))
def test_a_softcap_is_exact_in_the_fisher_matrix_and_in_the_first_order(seed):
    case = random_case(seed, softcap=True)
    dense = DenseToken(case, 0)
    for model, momentum in MODELS:
        expected = dense.shifts(optimizer_step(case, token_gradient(case, 0), model, momentum))
        sampled, exact = (shifts_of(case, model, momentum, fisher, 3) for fisher in ("sampled", "exact"))
        assert float(sampled.policy_N) == expected["sampled"], (model, momentum)
        assert float(exact.policy_N) == expected["exact"], (model, momentum)
        assert float(sampled.kappa_first_N) * case.lr == expected["first"], (model, momentum)


@pytest.mark.parametrize("seed", range(200, 210))
def test_one_step_of_several_tokens_at_each_of_them(seed):
    case = random_case(seed, tokens=3)
    weights = torch.tensor([0.5, 0.0, 0.3], dtype=F64)
    gradient = sum(weight * token_gradient(case, token) for token, weight in enumerate(weights))
    dense = [DenseToken(case, token) for token in range(3)]
    shifts = shifts_of(case, "sgd", True, "sampled", 4)
    for name in ("sgd", "adam_frozen", "adam_row"):
        step = optimizer_step(case, gradient, name)
        proposed = proposed_step(
            case.head(),
            step_model(name, case.head(), **case.state()),
            case.hidden,
            case.actions,
            case.advantages * case.ratio,
            weights,
            shifts.log_normalizer_N,
            lr=case.lr,
            token_chunk=2,
            vocab_chunk=4,
        )
        # the reference step is a difference of parameters
        torch.testing.assert_close(proposed, step, rtol=1e-9, atol=1e-14)
        width = case.weight.shape[1]
        found = step_shifts(
            case.hidden,
            case.weight,
            case.actions,
            case.advantages,
            step[:, :width],
            ratio_N=case.ratio,
            delta_bias_V=None if case.bias is None else step[:, width],
            token_chunk=2,
            vocab_chunk=4,
            **case.head_settings(),
        )
        for token in range(3):
            expected = dense[token].shifts(step)
            assert float(found.objective_N[token]) == expected["objective"]
            assert float(found.sampled_policy_N[token]) == expected["sampled"]
            assert float(found.exact_policy_N[token]) == expected["exact"]
            assert float(found.kl_N[token]) == expected["kl"]
            assert float(found.objective_change_N[token]) == expected["change"]
