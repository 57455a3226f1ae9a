"""Roots and logarithms of rationals that are rational themselves."""

import math
from fractions import Fraction

from rlhf.rewards.limits import MAX_BITS, Undefined


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The real root if it is rational, else None."""
    if degree > 64 or (value < 0 and degree % 2 == 0):
        return None
    top, bottom = _integer_root(abs(value.numerator), degree), _integer_root(value.denominator, degree)
    if top is None or bottom is None:
        return None
    return Fraction(-top if value < 0 else top, bottom)


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    if value.bit_length() > 4096:
        return None
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low if low**degree == value else None


def exact_log(number: Fraction, base: Fraction) -> Fraction | None:
    """log_base(number) where it is an integer between -4096 and 4096, else None."""
    if number <= 0 or base <= 0 or base == 1:
        raise Undefined("a logarithm outside its domain")
    if number == 1:
        return Fraction(0)
    if base < 1:
        exact = exact_log(number, 1 / base)
        return None if exact is None else -exact
    size = abs(math.log(number.numerator) - math.log(number.denominator))
    count = round(size / (math.log(base.numerator) - math.log(base.denominator))) if size else 0
    if 0 < count <= 4096 and max(base.numerator.bit_length(), base.denominator.bit_length()) * count <= MAX_BITS:
        for signed in (count, -count):
            if base**signed == number:
                return Fraction(signed)
    return None
