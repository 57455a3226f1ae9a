"""How sure a figure of a benchmark is: 95 % intervals over its questions, never of zero width.

The question is what is drawn at random; its samples are not independent of each other. So a statistic is first averaged
within each question, and the spread between questions gives the standard error (Miller 2024, "Adding Error Bars to
Evals", arXiv 2411.00640). Treating every sample as a draw of its own gives intervals that are several
times too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mpmath

from rlhf.training.statistics import Z_95, wilson_interval

CONFIDENCE = 0.95
_NEWTON_STEPS = 200
# own context: the digits of another user of mpmath are neither used nor changed
_exact = mpmath.mp.clone()
_exact.dps = 30


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval and standard error, all in the figure's own unit (shares in [0, 1], tokens)."""

    value: float
    low: float
    high: float
    standard_error: float


def over_questions(values: Sequence[float], upper: float = 1.0) -> Estimate:
    """The mean of one statistic a question, each in [0, `upper`], and how sure it is.

    - Every value 0 or `upper` (one verdict a question: a single sample, maj@k, best-of-k): Wilson's score interval.
    - Else the interval clustered by question: standard error = sample standard deviation of the questions / sqrt(n),
      Student's t with n - 1 degrees, clipped to [0, `upper`].
    - Where the questions show no spread (all alike, or only one): Wilson's interval on the questions, rounded outwards
      to whole questions, so that the interval has a width. The standard error is then that interval's half width over
      1.96: it stands in for one that the data cannot give.

    Raises ValueError without questions, or where a value is outside [0, `upper`].
    """
    n = len(values)
    if n == 0:
        raise ValueError("an estimate needs at least one question, got none")
    outside = [v for v in values if not 0 <= v <= upper]
    if outside:
        raise ValueError(f"a value of {outside[0]} is outside [0, {upper}], the range of this statistic")
    mean = min(math.fsum(values) / n, upper)
    has_spread = min(values) != max(values)
    error = standard_error(values) if has_spread else None
    if has_spread and not all(v in (0, upper) for v in values):
        half = student_t_critical(n - 1) * error
        return Estimate(mean, max(0.0, mean - half), min(upper, mean + half), error)
    share = mean / upper if upper else 0.0
    low = wilson_interval(math.floor(round(share * n, 9)), n)[0] * upper
    high = wilson_interval(math.ceil(round(share * n, 9)), n)[1] * upper
    return Estimate(mean, low, high, (high - low) / (2 * Z_95) if error is None else error)


def over_changes(changes: Sequence[float]) -> Estimate:
    """The mean of paired changes, one a question, each in [-1, 1]: Student's t interval with n - 1 degrees.

    Clipped to [-1, 1]. Without a spread (all alike, or one question) nothing but a bound on what was not seen is known:
    a share s of the questions, s = Wilson's upper bound for 0 of n, may change otherwise, by anything in [-1, 1].
    Raises ValueError without questions.
    """
    n = len(changes)
    if n == 0:
        raise ValueError("a comparison needs at least one question, got none")
    mean = math.fsum(changes) / n
    if min(changes) == max(changes):
        unseen = wilson_interval(0, n)[1]
        low, high = mean - unseen * (1 + mean), mean + unseen * (1 - mean)
        return Estimate(mean, low, high, (high - low) / (2 * Z_95))
    error = standard_error(changes)
    half = student_t_critical(n - 1) * error
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half), error)


def standard_error(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1) over sqrt(n). Raises ValueError for fewer than two values."""
    n = len(values)
    if n < 2:
        raise ValueError(f"a standard error needs at least two values, got {n}")
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def paired_proportions_interval(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """95 % interval of the change of a proportion on the same questions, (gained - lost) / n.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Stat. Med. 17:2635, method 10: Wilson's intervals of both proportions, joined with their correlation phi, which is
    corrected for continuity where it is positive. The interval lies in [-1, 1] and has a width without any change, too.
    Raises ValueError without questions or with a negative count.
    """
    counts = (both, gained, lost, neither)
    n = sum(counts)
    if n == 0 or min(counts) < 0:
        raise ValueError(f"a paired interval needs four counts of questions, at least one in all, got {counts}")
    before, after = (both + lost) / n, (both + gained) / n
    low_before, high_before = wilson_interval(both + lost, n)
    low_after, high_after = wilson_interval(both + gained, n)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    agreement = both * neither - gained * lost
    if agreement > 0:
        agreement = max(agreement - n / 2, 0)
    phi = agreement / math.sqrt(margins) if margins else 0.0

    def joined(of_after: float, of_before: float) -> float:
        # 0 at most by rounding: it is a sum of squares for any |phi| <= 1
        return math.sqrt(max(0.0, of_after**2 - 2 * phi * of_after * of_before + of_before**2))

    change = (gained - lost) / n
    return (
        change - joined(after - low_after, high_before - before),
        change + joined(high_after - after, before - low_before),
    )


def student_t_p_value(t: float, degrees: int) -> float:
    """P(|T| >= |t|) under Student's t: I_x(v/2, 1/2) with x = v / (v + t^2).

    Abramowitz and Stegun 1964, eq. 26.5.27 (I is the regularised incomplete beta function).
    Raises ValueError for less than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {degrees}")
    if math.isinf(t):
        return 0.0
    return float(_two_sided(_exact.mpf(t), degrees))


@lru_cache(maxsize=1024)
def student_t_critical(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence`: 2.2281 for 10 degrees and 0.95.

    Raises ValueError for less than one degree of freedom or a confidence outside (0, 1).
    """
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"a quantile of Student's t needs degrees >= 1 and 0 < confidence < 1, got {degrees}, {confidence}"
        )
    v, level = _exact.mpf(degrees), 1 - _exact.mpf(repr(confidence))
    peak = _exact.gamma((v + 1) / 2) / (_exact.sqrt(v * _exact.pi) * _exact.gamma(v / 2))
    # P(|T| >= t) is convex and falling for t > 0: Newton's steps from 0 never overshoot
    t = _exact.mpf(0)
    for _ in range(_NEWTON_STEPS):
        density = peak * (1 + t * t / v) ** (-(v + 1) / 2)
        step = (_two_sided(t, degrees) - level) / (2 * density)
        t += step
        if abs(step) <= 1e-18 * t:
            break
    return float(t)


def _two_sided(t: mpmath.mpf, degrees: int) -> mpmath.mpf:
    v = _exact.mpf(degrees)
    return _exact.betainc(v / 2, 0.5, 0, v / (v + t * t), regularized=True)
