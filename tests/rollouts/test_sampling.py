"""The draw itself: inversion, truncation and random numbers, against closed forms."""

import numpy as np
import pytest
import torch

from rlhf.config.rollouts import SamplingConfig
from rlhf.rollouts.sampling import draw, truncate, uniform_stream, uniforms


def test_random_numbers_are_a_function_of_seed_and_position() -> None:
    for seed in (0, 1, 2**63 - 1):
        numbers = uniforms(seed, 500)
        assert np.array_equal(uniforms(seed, 7), numbers[:7])
        stream = uniform_stream(seed)
        assert [next(stream) for _ in range(500)] == numbers.tolist()
        assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.06
    # 32 bits would not tell these apart
    assert not np.isclose(uniforms(5, 50), uniforms(5 + 2**32, 50)).any()
    # no stream is a shifted copy of its neighbour
    assert not np.isclose(uniforms(5, 51)[1:], uniforms(6, 50)).any()


@pytest.mark.parametrize("vocabulary", [3, 255, 256, 257, 1000])
def test_a_draw_inverts_the_cumulative_distribution(vocabulary: int) -> None:
    torch.manual_seed(vocabulary)
    logits_V = torch.randn(vocabulary) * 2
    logits_V[::3] = -torch.inf
    probability_V = logits_V.double().softmax(-1)
    cumulative_V = probability_V.cumsum(-1)
    uniform_B = torch.cat([torch.rand(500, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)])
    drawn = draw(logits_V.expand(len(uniform_B), -1), uniform_B, SamplingConfig())
    expected_B = torch.searchsorted(cumulative_V, uniform_B, right=True)
    # a number within float32 rounding of a boundary may fall on either side
    margin_B = (cumulative_V[None] - uniform_B[:, None]).abs().amin(-1)
    clear_B = margin_B > 1e-6
    assert clear_B.sum() > 490
    assert torch.equal(drawn.token_B[clear_B], expected_B[clear_B])
    assert (probability_V[drawn.token_B] > 0).all(), "a token of probability 0 was drawn"
    torch.testing.assert_close(drawn.logp_B.double(), probability_V[drawn.token_B].log(), atol=1e-5, rtol=0)


def test_unlikely_tokens_keep_their_probability() -> None:
    # 60,000 tokens of 1e-8 behind one of nearly 1: a float32 running sum would lose them all
    logits_V = torch.full((60_001,), 1e-8).log()
    logits_V[0] = 0.0
    uniform_B = torch.tensor([0.5, 0.9995, 0.9999, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(logits_V.expand(4, -1), uniform_B, SamplingConfig())
    total = 1 + 60_000e-8
    expected = [0, *[int((uniform * total - 1) / 1e-8) + 1 for uniform in uniform_B[1:].tolist()]]
    assert drawn.token_B.tolist() == pytest.approx(expected, abs=30)
    assert drawn.token_B[0] == 0 and drawn.token_B[-1] == 60_000


def test_temperature_scales_and_zero_takes_the_most_likely() -> None:
    logits_BV = torch.tensor([[1.0, 3.0, 2.0]])
    uniform_B = torch.tensor([0.999], dtype=torch.float64)
    warm = draw(logits_BV, uniform_B, SamplingConfig(temperature=2.0))
    assert warm.token_B.item() == 2
    assert warm.logp_B.item() == pytest.approx((logits_BV / 2).log_softmax(-1)[0, 2].item(), abs=1e-6)
    greedy = draw(logits_BV, uniform_B, SamplingConfig(temperature=0, top_p=0.1, top_k=1))
    assert greedy.token_B.item() == 1
    assert greedy.logp_B.item() == pytest.approx(logits_BV.log_softmax(-1)[0, 1].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, {0, 1, 2, 3, 4}),
        (2, 1.0, {0, 1}),
        (9, 1.0, {0, 1, 2, 3, 4}),
        (4, 1.0, {0, 1, 2, 3, 4}),  # tokens 3 and 4 are tied at the fourth place
        (0, 0.399, {0}),
        (0, 0.41, {0, 1}),
        (0, 0.699, {0, 1}),
        (0, 0.001, {0}),
        (2, 0.6, {0, 1}),  # 0.4 of the 0.7 that top_k leaves is 0.571
        (2, 0.57, {0}),
    ],
)
def test_truncation_keeps_the_smallest_set(top_k: int, top_p: float, kept: set[int]) -> None:
    probability_V = torch.tensor([0.4, 0.3, 0.2, 0.05, 0.05], dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 2, 1])  # the most likely token need not be the first
    truncated_V = truncate(probability_V[order].log()[None], top_k, top_p)[0]
    assert {int(order[i]) for i in truncated_V.isfinite().nonzero()} == kept
    drawn = draw(
        probability_V.log().float().expand(200, -1),
        torch.linspace(0, 1, 201, dtype=torch.float64)[:-1],
        SamplingConfig(top_k=top_k, top_p=top_p),
    )
    assert set(drawn.token_B.tolist()) == kept
    renormalised = probability_V[drawn.token_B] / probability_V[sorted(kept)].sum()
    torch.testing.assert_close(drawn.logp_B.double(), renormalised.log(), atol=1e-5, rtol=0)


def test_not_a_number_is_not_hidden() -> None:
    logits_BV = torch.tensor([[1.0, torch.nan, 2.0], [1.0, 0.0, 2.0]])
    for temperature in (0.0, 1.0):
        drawn = draw(logits_BV, torch.tensor([0.3, 0.3], dtype=torch.float64), SamplingConfig(temperature=temperature))
        assert drawn.logp_B.isfinite().tolist() == [False, True]
