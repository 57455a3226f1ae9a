"""Generalised advantages against their definition, and the two ends of the trace."""

import pytest
import torch

from rlhf.algorithms.generalised_advantages import (
    generalised_advantages,
    length_adaptive_decay,
    value_loss,
    value_targets,
)

REWARDS, VALUES = (0.1, 0.0, -0.2, 1.0), (0.3, 0.5, 0.4, 0.7)


def by_definition(discount: float, decay: float) -> list[float]:
    """sum_k (discount decay)^k delta_{t+k}, term by term."""
    following = [*VALUES[1:], 0.0]
    deltas = [r + discount * n - v for r, n, v in zip(REWARDS, following, VALUES, strict=True)]
    return [sum((discount * decay) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
def test_advantages_equal_their_definition(discount: float, decay: float) -> None:
    found = generalised_advantages(REWARDS, VALUES, trace_decay=decay, discount=discount)
    assert found == pytest.approx(by_definition(discount, decay), abs=1e-12)


def test_with_decay_1_targets_are_returns_whatever_the_values() -> None:
    returns = [sum(REWARDS[t:]) for t in range(4)]
    for values in (VALUES, (0.0,) * 4, (5.0, -3.0, 2.0, 9.0)):
        assert value_targets(REWARDS, values, trace_decay=1.0) == pytest.approx(returns, abs=1e-12)


def test_with_decay_0_targets_are_one_step_backups() -> None:
    expected = [r + 0.9 * v for r, v in zip(REWARDS, [*VALUES[1:], 0.0], strict=True)]
    assert value_targets(REWARDS, VALUES, trace_decay=0.0, discount=0.9) == pytest.approx(expected, abs=1e-12)


def test_true_values_leave_no_advantage() -> None:
    returns = [sum(REWARDS[t:]) for t in range(4)]
    assert generalised_advantages(REWARDS, returns, trace_decay=0.95) == pytest.approx([0.0] * 4, abs=1e-12)


def test_an_empty_completion_has_none() -> None:
    assert generalised_advantages((), (), trace_decay=0.95) == ()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="4 rewards but 2 values"):
        generalised_advantages(REWARDS, VALUES[:2], trace_decay=0.95)


def test_the_adaptive_decay_grows_with_the_length() -> None:
    assert length_adaptive_decay(100, 0.05) == pytest.approx(0.8)
    assert length_adaptive_decay(1000, 0.05) == pytest.approx(0.98)
    assert length_adaptive_decay(10, 0.05) == length_adaptive_decay(0, 0.05) == 0.0


def test_clipping_takes_the_larger_loss_and_stops_the_gradient_of_what_went_too_far() -> None:
    value = torch.tensor([0.9, 0.45], requires_grad=True)
    target, old = torch.tensor([1.0, 1.0]), torch.tensor([0.4, 0.4])
    loss = value_loss(value, target, old, clip=0.1)
    # 0.9 is kept at 0.5: the larger loss is of the kept value, which no longer depends on the critic
    assert loss.tolist() == pytest.approx([0.125, 0.55**2 / 2])
    loss.sum().backward()
    assert value.grad.tolist() == pytest.approx([0.0, -0.55])
    assert value_loss(value, target, old, clip=None).tolist() == pytest.approx([0.005, 0.55**2 / 2])
