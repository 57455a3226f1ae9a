"""The built-in reward functions against values worked out by hand."""

import pytest

from rlhf.data.types import Verdict
from rlhf.rewards import functions


@pytest.mark.parametrize(("outcome", "reward"), [("right", 1.0), ("wrong", 0.0), ("ungradable", 0.0)])
def test_correctness(outcome: str, reward: float) -> None:
    assert functions.correctness(Verdict(outcome)) == reward  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "shape", "reward"),
    [
        (r"so \boxed{5}", "boxed", 1.0),
        (r"\boxed{4} or \boxed{5}", "boxed", 0.0),
        (r"\boxed{}", "boxed", 0.0),
        (r"\boxed{5", "boxed", 0.0),
        ("5", "boxed", 0.0),
        ("<think>a</think><answer>5</answer>", "think_answer", 1.0),
        (" <think>a\nb</think>\n<answer>5</answer>\n", "think_answer", 1.0),
        ("<think>a</think> so <answer>5</answer>", "think_answer", 0.0),
        ("x<think>a</think><answer>5</answer>", "think_answer", 0.0),
        ("<think>a</think><answer>5</answer>x", "think_answer", 0.0),
        ("<think>a</think><think>b</think><answer>5</answer>", "think_answer", 0.0),
        ("<answer>5</answer><think>a</think>", "think_answer", 0.0),
        ("<think></think><answer></answer>" * 30_000, "think_answer", 0.0),
        (" -1,234.5\n", "number_only", 1.0),
        ("12", "number_only", 1.0),
        ("12.", "number_only", 0.0),
        ("is 12", "number_only", 0.0),
        ("12,34", "number_only", 0.0),
        ("１２", "number_only", 0.0),
    ],
)
def test_format(text: str, shape: str, reward: float) -> None:
    assert functions.format(text, shape) == reward  # type: ignore[arg-type]


@pytest.mark.parametrize(("tokens", "reward"), [(0, 0.0), (64, -0.25), (256, -1.0), (4000, -1.0)])
def test_length(tokens: int, reward: float) -> None:
    assert functions.length(tokens, 256) == reward


@pytest.mark.parametrize(
    ("ids", "ngram", "reward"),
    [
        ([1, 2, 3, 4, 5], 2, 0.0),
        ([1, 2, 1, 2, 1], 2, 2 / 4 - 1),  # 12 21 12 21
        ([7] * 11, 2, 1 / 10 - 1),
        ([1, 2], 4, 0.0),
        ([], 1, 0.0),
        ([1, 1, 2], 1, 2 / 3 - 1),
    ],
)
def test_repetition(ids: list[int], ngram: int, reward: float) -> None:
    assert functions.repetition(ids, ngram) == pytest.approx(reward, abs=1e-15)


@pytest.mark.parametrize(("tokens", "reward"), [(10, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (200, -1.0)])
def test_soft_overlong_follows_the_paper(tokens: int, reward: float) -> None:
    """DAPO eq. 13 with L_max = 100 and L_cache = 20: ((L_max - L_cache) - |y|) / L_cache in between."""
    assert functions.soft_overlong(tokens, max_tokens=100, buffer_tokens=20) == reward
