"""Sums, products, quotients and powers of two values: exact rationals where possible, else complex floating-point."""

import math
import threading
from fractions import Fraction
from functools import cache
from types import ModuleType
from typing import Any

from rlhf.rewards.exact import exact_root
from rlhf.rewards.limits import MAX_BITS, MAX_WORK, LimitExceeded, Undefined

PRECISIONS = (160, 320, 480)
"""Bits of a floating-point value: a second and a third look where two values agree at the one before."""
FLOAT_COST = 400
"""Work units of one floating-point operation, against one per bit of an exact operation."""

Value = Any  # Fraction, float (plus or minus infinity), or (real, imaginary) of mpmath's raw numbers

floating_point = threading.RLock()  # mpmath's caches of pi and log 2 are not thread-safe


@cache
def libmp() -> ModuleType:
    import mpmath.libmp  # slow to import (0.3 s) and needed only for irrational values

    return mpmath.libmp


class Arithmetic:
    """Calculates within the work budget of one grading call.

    Raises `LimitExceeded` when the budget or a size limit is exceeded, and `Undefined` where there is no value.
    """

    def __init__(self) -> None:
        self.work = MAX_WORK
        self.real_only = False

    def spend(self, amount: int) -> None:
        self.work -= amount
        if self.work < 0:
            raise LimitExceeded("comparing the answers takes more work than allowed")

    def _exact(self, value: Fraction) -> Fraction:
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
        if bits > MAX_BITS:
            raise LimitExceeded(f"an exact number of more than {MAX_BITS} bits")
        self.spend(bits)
        return value

    def _float(self, value: Value, precision: int) -> tuple[Any, Any]:
        self.spend(FLOAT_COST)
        if isinstance(value, float):
            raise Undefined("infinity inside a calculation")
        if isinstance(value, Fraction):
            mp = libmp()
            return mp.from_rational(value.numerator, value.denominator, precision, mp.round_nearest), mp.fzero
        return value

    def _constant(self, name: str, precision: int) -> Value:
        if name == "infinity":
            return math.inf
        mp = libmp()
        if name == "i":
            return mp.fzero, mp.fone
        return (mp.mpf_pi if name == "pi" else mp.mpf_e)(precision, mp.round_nearest), mp.fzero

    def _add(self, a: Value, b: Value, precision: int) -> Value:
        if isinstance(a, float) or isinstance(b, float):
            if isinstance(a, float) and isinstance(b, float) and a != b:
                raise Undefined("infinity minus infinity")
            return a if isinstance(a, float) else b
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._exact(a + b)
        return libmp().mpc_add(self._float(a, precision), self._float(b, precision), precision, "n")

    def _multiply(self, a: Value, b: Value, precision: int) -> Value:
        if isinstance(a, float) or isinstance(b, float):
            return self._signed_infinity(a) * self._signed_infinity(b) * math.inf
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._exact(a * b)
        if a == 0 or b == 0:
            return Fraction(0)
        return checked(libmp().mpc_mul(self._float(a, precision), self._float(b, precision), precision, "n"))

    def _signed_infinity(self, value: Value) -> int:
        if isinstance(value, (Fraction, float)) and value != 0:
            return 1 if value > 0 else -1
        raise Undefined("infinity times something without a sign")

    def _divide(self, a: Value, b: Value, precision: int) -> Value:
        if isinstance(b, float) and isinstance(a, Fraction):
            return Fraction(0)
        if is_zero(b):
            raise Undefined("division by zero")
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._exact(a / b)
        return checked(libmp().mpc_div(self._float(a, precision), self._float(b, precision), precision, "n"))

    def _power(self, base: Value, exponent: Value, precision: int) -> Value:
        if isinstance(base, float) or isinstance(exponent, float):
            raise Undefined("a power of infinity")
        if is_zero(base):
            if isinstance(exponent, Fraction) and exponent >= 0:
                return Fraction(int(exponent == 0))
            raise Undefined("a negative power of zero")
        if not isinstance(exponent, Fraction):
            return self._float_power(base, exponent, precision)
        if isinstance(base, Fraction):
            if exponent.denominator == 1:
                return self._integer_power(base, exponent.numerator)
            root = exact_root(base, exponent.denominator)
            if root is not None:
                return self._integer_power(root, exponent.numerator)
        if exponent.denominator % 2 and exponent.denominator > 1 and is_negative(base):
            # the real odd root, as school has it: (-8)^(1/3) = -2
            size = self._float_power(self._multiply(base, Fraction(-1), precision), exponent, precision)
            return self._multiply(size, Fraction(-1 if exponent.numerator % 2 else 1), precision)
        if self.real_only and exponent.denominator > 1 and is_negative(base):
            raise Undefined("an even root of a negative number, among real numbers")
        return self._float_power(base, exponent, precision)

    def _integer_power(self, base: Fraction, exponent: int) -> Fraction:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) != 1 and (bits - 1) * abs(exponent) > MAX_BITS:
            raise LimitExceeded(f"a power of more than {MAX_BITS} bits")
        return self._exact(base ** (exponent % 2 if abs(base) == 1 else exponent))

    def _float_power(self, base: Value, exponent: Value, precision: int) -> Value:
        mp = libmp()
        b, e = self._float(base, precision), self._float(exponent, precision)
        if magnitude(e) > 16 or abs(magnitude(b)) > 4096:
            raise LimitExceeded("a power too large to compute")
        if e == (mp.from_rational(1, 2, precision), mp.fzero):
            return mp.mpc_sqrt(b, precision, "n")
        return checked(mp.mpc_pow(b, e, precision, "n"))


def magnitude(value: tuple[Any, Any]) -> float:
    """About log2 |value|; minus infinity for zero."""
    sizes = [part[2] + part[3] for part in value if part[1]]
    return max(sizes) if sizes else -math.inf


def checked(value: tuple[Any, Any]) -> tuple[Any, Any]:
    """`value` itself, if it is finite and of a size to compute with."""
    for _, mantissa, exponent, _ in value:
        if not mantissa and exponent:
            raise Undefined("the value is not finite")
    if abs(magnitude(value)) > 10 * MAX_BITS and magnitude(value) != -math.inf:
        raise LimitExceeded("a number too large or too small to compute with")
    return value


def is_zero(value: Value) -> bool:
    return value == 0 if isinstance(value, (Fraction, float)) else magnitude(value) == -math.inf


def is_real(value: Value) -> bool:
    if isinstance(value, (Fraction, float)):
        return True
    imaginary = value[1]
    return not imaginary[1] or imaginary[2] + imaginary[3] < magnitude(value) - PRECISIONS[0] // 2


def is_negative(value: Value) -> bool:
    if isinstance(value, (Fraction, float)):
        return value < 0
    return is_real(value) and bool(value[0][0])
