"""Laws of the grader over generated answers."""

import math
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.rewards import grade

rationals = st.fractions(max_denominator=10**6)
coefficients = st.lists(st.integers(-20, 20), min_size=1, max_size=5)


def latex(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def polynomial(numbers: list[int], reverse: bool = False) -> str:
    terms = [f"{'+' if c >= 0 else '-'}{abs(c)}x^{{{power}}}" for power, c in enumerate(numbers)]
    return " ".join(reversed(terms) if reverse else terms)


def outcome(answer: str, gold: str) -> str:
    return grade(f"\\boxed{{{answer}}}", gold).outcome


@given(rationals)
def test_a_rational_equals_itself_in_every_spelling(value: Fraction) -> None:
    scaled = f"\\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}"
    for spelling in (latex(value), scaled, f"{value.numerator}/{value.denominator}", f"x = {latex(value)}"):
        assert outcome(spelling, latex(value)) == "right"
        assert outcome(latex(value), spelling) == "right"


@given(rationals, rationals)
def test_different_rationals_are_wrong(a: Fraction, b: Fraction) -> None:
    expected = "right" if a == b else "wrong"
    assert outcome(latex(a), latex(b)) == expected
    assert outcome(f"\\sqrt{{2}} + {latex(a)}", f"{latex(b)} + \\sqrt{{2}}") == expected


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
def test_a_decimal_equals_its_fraction_and_nothing_close(value: object) -> None:
    exact = Fraction(str(value))
    assert outcome(str(value), latex(exact)) == "right"
    assert outcome(str(value), latex(exact + Fraction(1, 10**12))) == "wrong"


@given(st.fractions(-(10**4), 10**4, max_denominator=10**4), st.integers(0, 4), st.integers(-3, 3))
def test_a_rounded_value_beside_the_exact_one_counts_where_it_is_its_rounding(
    value: Fraction, places: int, units: int
) -> None:
    """Against the roundings of the decimal module: to the nearest, a tie either way, or cut off."""
    written = Decimal(math.floor(value * 10**places) + units).scaleb(-places)
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    step = Decimal(1).scaleb(-places)
    roundings = {exact.quantize(step, rounding=r) for r in (ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP)}
    answer = f"{latex(value)} \\approx {written:f}"
    if Fraction(written) != value:
        assert outcome(answer, f"{written:f}") == ("right" if written in roundings else "wrong")
    assert outcome(answer, latex(value)) == "right"


@given(st.integers(-9, 9).filter(bool), st.integers(-20, 20), st.integers(1, 30), st.booleans())
@settings(max_examples=60)
def test_an_absolute_value_bounds_an_interval(slope: int, constant: int, bound: int, closed: bool) -> None:
    """Against brute force: which quarters between -60 and 60 the interval and the inequality hold."""
    ends = sorted([Fraction(bound - constant, slope), Fraction(-bound - constant, slope)])
    opening, closing, relation = ("[", "]", "\\le") if closed else ("(", ")", "<")
    answer = f"|{slope}x {constant:+}| {relation} {bound}"
    assert outcome(answer, f"{opening}{latex(ends[0])}, {latex(ends[1])}{closing}") == "right"
    assert outcome(answer, f"{opening}{latex(ends[0])}, {latex(ends[1] + 1)}{closing}") == "wrong"
    for quarter in range(-240, 241):
        inside = abs(slope * Fraction(quarter, 4) + constant) < bound
        assert inside == (ends[0] < Fraction(quarter, 4) < ends[1])


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60)
def test_choices_are_counted(n: int, k: int) -> None:
    n, k = max(n, k), min(n, k)
    for answer in (f"C({n},{k})", f"C_{{{n}}}^{{{k}}}", f"{{}}_{{{n}}}C_{{{k}}}", f"\\binom{{{n}}}{{{k}}}"):
        assert outcome(answer, str(math.comb(n, k))) == "right"
        assert outcome(answer, str(math.comb(n, k) + 1)) == "wrong"
    assert outcome(f"P({n},{k})", str(math.perm(n, k))) == "right"


@given(coefficients, st.integers(0, 4), st.integers(-20, 20))
@settings(max_examples=60)
def test_polynomials_are_equal_when_their_coefficients_are(numbers: list[int], place: int, change: int) -> None:
    assert outcome(polynomial(numbers, reverse=True), polynomial(numbers)) == "right"
    changed = numbers + [0] * (place + 1 - len(numbers))
    changed[place] += change
    assert outcome(polynomial(changed), polynomial(numbers)) == ("right" if change == 0 else "wrong")


@given(st.lists(rationals, min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_lists_are_unordered_and_points_ordered(values: list[Fraction], random: object) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    gold, answer = ", ".join(map(latex, values)), ", ".join(map(latex, shuffled))
    assert outcome(answer, gold) == "right"
    assert outcome(f"\\{{{answer}\\}}", f"\\{{{gold}\\}}") == "right"
    assert outcome(f"({answer})", f"({gold})") == ("right" if values == shuffled else "wrong")
    assert outcome(", ".join(map(latex, [*shuffled, Fraction(7, 1009)])), gold) == "wrong"


@given(st.text(alphabet=st.characters(exclude_categories=())), st.text(alphabet=st.characters(exclude_categories=())))
@settings(max_examples=200)
def test_no_text_raises(text: str, gold: str) -> None:
    """Any code point, lone surrogates too, as gold and in every place of a completion."""
    for completion in (text, f"\\boxed{{{text}}}", f"The answer is {text}", f"<answer>{text}"):
        assert grade(completion, gold, text).outcome in ("right", "wrong", "ungradable")


PIECES = r"""
\frac{ } \sqrt[3]{ ( ) [ ] \{ \} ^{ _{ ! % | , ; 9 2 10^{ x i e \pi \infty \sin \log_2 \binom{ + - * / = < \le \cup \pm
\text{ \begin{pmatrix} \end{pmatrix} & \\ ^\circ \lfloor \gcd( \overline{ \ldots or cm \mathbb{R} ** ' \mid :
"""
pieces = st.sampled_from(PIECES.split())


@given(st.lists(pieces, max_size=30).map("".join), st.lists(pieces, max_size=10).map("".join))
@settings(max_examples=200)
def test_no_arrangement_of_mathematics_raises(answer: str, gold: str) -> None:
    assert grade(f"\\boxed{{{answer}}}", gold).outcome in ("right", "wrong", "ungradable")
    assert grade(f"The answer is {answer}", gold).outcome in ("right", "wrong", "ungradable")
