"""Intervals over questions: published figures, tables of Student's t, and coverage counted by simulation."""

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.intervals import (
    over_changes,
    over_questions,
    paired_proportions_interval,
    standard_error,
    student_t_critical,
    student_t_p_value,
)
from rlhf.training.statistics import wilson_interval


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(10, 30, 0.192, 0.512), (20, 30, 0.488, 0.808), (400, 500, 0.763, 0.833), (93, 100, 0.863, 0.966)],
)
def test_one_verdict_a_question_is_wilson(right: int, n: int, low: float, high: float) -> None:
    estimate = over_questions([1.0] * right + [0.0] * (n - right))
    assert (estimate.low, estimate.high) == wilson_interval(right, n)
    assert (round(estimate.low, 3), round(estimate.high, 3)) == (low, high)
    share = right / n
    assert estimate.value == share
    # the sample standard deviation of n verdicts, over sqrt(n): what lm-eval prints beside exact_match
    assert estimate.standard_error == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)), rel=1e-12)


def test_clustered_interval_by_hand() -> None:
    # mean 0.5, squared deviations 0.0625 + 0 + 0.0625, so sd 0.25; t(2) = 4.302653
    estimate = over_questions([0.25, 0.5, 0.75])
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(0.25 / math.sqrt(3), rel=1e-15)
    # 4.302653 x 0.144338 = 0.62: clipped on both sides
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    four = over_questions([0.4, 0.5, 0.5, 0.6])
    half = 3.182446305 * math.sqrt(0.02 / 3 / 4)
    assert (four.low, four.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)


def test_range_of_a_statistic_in_tokens() -> None:
    values = [100.0, 140.0, 180.0, 120.0]
    estimate = over_questions(values, upper=200.0)
    half = 3.182446305 * numpy.std(values, ddof=1) / 2
    assert (estimate.low, estimate.high) == pytest.approx((135 - half, 135 + half), abs=1e-6)
    full = over_questions([256.0] * 50, upper=256.0)
    assert (full.low, full.high) == pytest.approx((256 * wilson_interval(50, 50)[0], 256.0), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1.0] * 30, wilson_interval(30, 30)[0], 1.0),
        ([0.0] * 30, 0.0, wilson_interval(0, 30)[1]),
        ([0.5] * 30, *wilson_interval(15, 30)),
        # 4.5 questions: rounded outwards
        ([0.5] * 9, wilson_interval(4, 9)[0], wilson_interval(5, 9)[1]),
        # 3 x 0.1 is 0.30000000000000004: the rounding must not add a question at the upper end
        ([0.1] * 10, *wilson_interval(1, 10)),
        ([0.625], 0.0, 1.0),
        ([1.0], wilson_interval(1, 1)[0], 1.0),
    ],
)
def test_no_spread_falls_back_to_wilson(values: list[float], low: float, high: float) -> None:
    estimate = over_questions(values)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)
    assert estimate.value == pytest.approx(values[0], abs=1e-15)
    assert estimate.standard_error == pytest.approx((high - low) / 2 / 1.959964, rel=1e-9)


@given(st.lists(st.integers(0, 8).map(lambda c: c / 8), min_size=1, max_size=40))
def test_interval_has_a_width_and_holds_its_value(values: list[float]) -> None:
    estimate = over_questions(values)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high
    assert estimate.standard_error > 0
    change = over_changes([v - 0.5 for v in values])
    assert -1 <= change.low <= change.value <= change.high <= 1
    assert change.low < change.high


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one question"):
        over_questions([])
    with pytest.raises(ValueError, match=r"1\.5 is outside \[0, 1"):
        over_questions([0.5, 1.5])
    with pytest.raises(ValueError, match="outside"):
        over_questions([math.nan, 0.5])
    with pytest.raises(ValueError, match="at least two values, got 1"):
        standard_error([1.0])
    with pytest.raises(ValueError, match="degree"):
        student_t_critical(0)
    with pytest.raises(ValueError, match="degree"):
        student_t_p_value(1.0, 0)


# upper 2.5 % points of any printed table
@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (29, 2.045), (49, 2.010),
     (100, 1.984), (10**6, 1.960)],
)  # fmt: skip
def test_student_t_table(degrees: int, table: float) -> None:
    assert student_t_critical(degrees) == pytest.approx(table, abs=5.1e-4)
    assert student_t_p_value(student_t_critical(degrees), degrees) == pytest.approx(0.05, abs=1e-12)


def test_student_t_other_levels() -> None:
    assert student_t_critical(10, 0.90) == pytest.approx(1.812461, abs=1e-6)
    assert student_t_critical(10, 0.99) == pytest.approx(3.169273, abs=1e-6)
    assert student_t_critical(1, 0.999) == pytest.approx(636.619, abs=1e-3)


@given(st.floats(0, 200))
def test_student_t_closed_forms(t: float) -> None:
    assert student_t_p_value(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-13)
    assert student_t_p_value(t, 2) == pytest.approx(1 - t / math.sqrt(t * t + 2), abs=1e-13)
    cosine = 4 / (4 + t * t)
    assert student_t_p_value(-t, 4) == pytest.approx(1 - t / math.sqrt(4 + t * t) * (1 + cosine / 2), abs=1e-13)


# (both, gained, lost, neither) with published limits: an example of Newcombe 1998 (Stat. Med. 17:2635);
# Fagerland, Lydersen and Laake 2014 (Stat. Med. 33:2850), airway hyper-responsiveness and complete response
@pytest.mark.parametrize(
    ("counts", "low", "high", "digits"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404, 4),
        ((1, 7, 1, 12), 0.026, 0.507, 3),
        ((59, 16, 6, 80), 0.0046, 0.1186, 4),
    ],
)
def test_newcombe_published(counts: tuple[int, int, int, int], low: float, high: float, digits: int) -> None:
    interval = paired_proportions_interval(*counts)
    assert tuple(round(x, digits) for x in interval) == (low, high)
    both, gained, lost, neither = counts
    assert paired_proportions_interval(both, lost, gained, neither) == pytest.approx((-interval[1], -interval[0]))


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_newcombe_has_a_width_and_stays_inside(counts: tuple[int, int, int, int]) -> None:
    low, high = paired_proportions_interval(*counts)
    change = (counts[1] - counts[2]) / sum(counts)
    assert -1 - 1e-12 <= low <= change <= high <= 1 + 1e-12
    assert low < high


def test_newcombe_refusals() -> None:
    with pytest.raises(ValueError, match="four counts"):
        paired_proportions_interval(0, 0, 0, 0)
    with pytest.raises(ValueError, match="four counts"):
        paired_proportions_interval(3, -1, 0, 0)


def test_changes_without_spread() -> None:
    unseen = wilson_interval(0, 50)[1]
    still = over_changes([0.0] * 50)
    assert (still.value, still.low, still.high) == pytest.approx((0, -unseen, unseen))
    up = over_changes([1.0] * 50)
    assert (up.value, up.low, up.high) == pytest.approx((1, 1 - 2 * unseen, 1))


def test_coverage_of_the_clustered_interval() -> None:
    """1,500 evaluations of 40 questions x 8 samples: the clustered interval holds the truth, the naive one does not."""
    generator = numpy.random.default_rng(20261124)
    runs, questions, samples = 1500, 40, 8
    # the difficulty of a question is Beta(1, 0.6): most are easy or hopeless; true mean 1 / 1.6
    truth = 1 / 1.6
    chances = generator.beta(1.0, 0.6, (runs, questions))
    shares = generator.binomial(samples, chances) / samples
    clustered = naive = 0
    for row in shares:
        estimate = over_questions(row.tolist())
        clustered += estimate.low <= truth <= estimate.high
        low, high = wilson_interval(round(row.sum() * samples), questions * samples)
        naive += low <= truth <= high
    # binomial error of the counted coverage: 0.006
    assert 0.93 <= clustered / runs <= 0.97
    assert naive / runs < 0.75
