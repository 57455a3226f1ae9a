r"""Is a written number what a value rounds to? `\frac{5}{7} \approx 0.714` may stand for 0.714, `\approx 0.72` not."""

from fractions import Fraction

from rlhf.rewards.expression import MINUS_ONE, Degrees, Multiply, Node, Number, Power, Quantity

_TEN = Number(Fraction(10))
MAX_EXPONENT = 1000
"""Largest power of ten of a numeral that is looked at."""


def is_rounding(numeral: Node, rounded: Fraction, value: Fraction) -> bool:
    """True if `value`, rounded to the nearest or cut off at the last written place of `numeral`, is `rounded`.

    `rounded` is the value of `numeral`. Anything but a written number (a fraction, a root) is no rounding.
    """
    unit = last_place(numeral)
    if unit is None:
        return False
    cut_off = 0 <= abs(value) - abs(rounded) < unit and value * rounded >= 0
    return cut_off or abs(value - rounded) <= unit / 2


def last_place(node: Node) -> Fraction | None:
    r"""One unit in the last written place: 1/100 of 3.50, 100 of `1.2 \times 10^3`; None of what is no numeral."""
    match node:
        case Number(_, decimals) if decimals is not None:
            return Fraction(10) ** -decimals
        case Quantity(value, _) | Degrees(value):
            return last_place(value)
        case Multiply((first, second)) if first == MINUS_ONE:
            return last_place(second)
        case Multiply((mantissa, Power(base, Number(exponent)))) if base == _TEN:
            unit = last_place(mantissa)
            if unit is not None and exponent.denominator == 1 and abs(exponent) <= MAX_EXPONENT:
                return unit * Fraction(10) ** exponent
    return None
