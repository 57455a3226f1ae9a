"""Values of functions: roots, logarithms, factorials, binomials, rounding, trigonometry."""

import math
from fractions import Fraction
from typing import Any

from rlhf.rewards.arithmetic import (
    FLOAT_COST,
    Arithmetic,
    Value,
    checked,
    is_negative,
    is_real,
    is_zero,
    libmp,
    magnitude,
)
from rlhf.rewards.exact import exact_log
from rlhf.rewards.limits import MAX_BITS, MAX_FACTORIAL, LimitExceeded, ParseError, Undefined


class ElementaryFunctions(Arithmetic):
    """Calculates functions of values, by their names in `rlhf.rewards.expression.Function`."""

    def _function(self, name: str, values: list[Value], precision: int) -> Value:
        if name == "root":
            radicand, degree = values
            return self._power(radicand, self._divide(Fraction(1), degree, precision), precision)
        if name == "log":
            number, base = values
            if isinstance(number, Fraction) and isinstance(base, Fraction):
                exact = exact_log(number, base)
                if exact is not None:
                    return exact
            return self._divide(
                self._function("ln", [number], precision), self._function("ln", [base], precision), precision
            )
        if name == "binomial":
            return self._binomial(values[0], values[1], precision)
        if name in ("max", "min", "gcd", "lcm"):
            return _of_rationals(name, values)
        (value,) = values
        if name == "factorial":
            return self._factorial(value, precision)
        if name in ("abs", "floor", "ceil"):
            return self._rounding(name, value, precision)
        return self._analytic(name, value, precision)

    def _factorial(self, value: Value, precision: int) -> Value:
        if isinstance(value, Fraction) and value.denominator == 1:
            if value < 0:
                raise Undefined("the factorial of a negative integer")
            if value > MAX_FACTORIAL:
                raise LimitExceeded(f"a factorial above {MAX_FACTORIAL}!")
            self.spend(200 * int(value))
            return self._exact(Fraction(math.factorial(int(value))))
        shifted = self._float(self._add(value, Fraction(1), precision), precision)
        if magnitude(shifted) > 10:
            raise LimitExceeded("a factorial too large to compute")
        self.spend(20 * FLOAT_COST)
        return _call("mpc_gamma", shifted, precision)

    def _binomial(self, n: Value, k: Value, precision: int) -> Value:
        if not (isinstance(k, Fraction) and k.denominator == 1 and isinstance(n, Fraction)):
            top = self._factorial(n, precision)
            rest = self._factorial(self._add(n, self._multiply(k, Fraction(-1), precision), precision), precision)
            return self._divide(top, self._multiply(self._factorial(k, precision), rest, precision), precision)
        if k < 0:
            return Fraction(0)
        if n.denominator == 1 and n >= 0:
            k = min(k, n - k) if k <= n else k
        if k > MAX_FACTORIAL or abs(n) > 10**9:
            raise LimitExceeded("a binomial coefficient too large to compute")
        if n.denominator == 1 and n >= 0:
            self.spend(200 * int(k))
            if int(k) * max(1, int(n).bit_length()) > 2 * MAX_BITS:
                raise LimitExceeded("a binomial coefficient too large to compute")
            return self._exact(Fraction(math.comb(int(n), int(k))))
        product = Fraction(1)
        for j in range(int(k)):
            product = self._exact(product * (n - j) / (j + 1))
        return product

    def _rounding(self, name: str, value: Value, precision: int) -> Value:
        if isinstance(value, float):
            return abs(value) if name == "abs" else value
        if isinstance(value, Fraction):
            return {"abs": abs, "floor": lambda v: Fraction(math.floor(v)), "ceil": lambda v: Fraction(math.ceil(v))}[
                name
            ](value)
        mp = libmp()
        if name == "abs":
            return mp.mpc_abs(self._float(value, precision), precision, "n"), mp.fzero
        if not is_real(value) or magnitude(value) > precision // 2:
            raise Undefined(f"the {name} of a complex or huge number")
        nearest = mp.mpf_nint(value[0], precision, "n")
        gap = mp.mpf_sub(value[0], nearest, precision, "n")
        if gap == mp.fzero or gap[2] + gap[3] < -precision // 2:
            return Fraction(mp.to_int(nearest))
        return Fraction(mp.to_int((mp.mpf_floor if name == "floor" else mp.mpf_ceil)(value[0], precision, "n")))

    def _analytic(self, name: str, value: Value, precision: int) -> Value:
        if is_zero(value) and name in ("sin", "tan", "arcsin", "arctan", "sinh", "tanh"):
            return Fraction(0)
        if name == "ln":
            if is_zero(value):
                raise Undefined("the logarithm of zero")
            if self.real_only and is_negative(value):
                raise Undefined("the logarithm of a negative number, among real numbers")
            if value == 1:
                return Fraction(0)
            self.spend(4 * FLOAT_COST)
            return _call("mpc_log", self._float(value, precision), precision)
        if name in _RECIPROCALS:
            return self._divide(Fraction(1), self._analytic(_RECIPROCALS[name], value, precision), precision)
        if name in ("arccot", "arcsec", "arccsc"):
            inverse = self._divide(Fraction(1), value, precision)
            return self._analytic(
                {"arccot": "arctan", "arcsec": "arccos", "arccsc": "arcsin"}[name], inverse, precision
            )
        number = self._float(value, precision)
        if magnitude(number) > 16:
            raise LimitExceeded(f"{name} of a number too large")
        self.spend(4 * FLOAT_COST)
        return _call(_MPC_NAMES[name], number, precision)


_RECIPROCALS = {"cot": "tan", "sec": "cos", "csc": "sin", "coth": "tanh", "sech": "cosh", "csch": "sinh"}
_MPC_NAMES = {
    "sin": "mpc_sin", "cos": "mpc_cos", "tan": "mpc_tan", "arcsin": "mpc_asin", "arccos": "mpc_acos",
    "arctan": "mpc_atan", "sinh": "mpc_sinh", "cosh": "mpc_cosh", "tanh": "mpc_tanh", "exp": "mpc_exp",
}  # fmt: skip


def _call(name: str, argument: tuple[Any, Any], precision: int) -> tuple[Any, Any]:
    try:
        return checked(getattr(libmp(), name)(argument, precision, "n"))
    except (ZeroDivisionError, OverflowError) as error:
        raise Undefined(f"{name} has no value: {error}") from error
    except ValueError as error:
        if isinstance(error, (Undefined, LimitExceeded)):
            raise
        raise Undefined(f"{name} has a pole: {error}") from error


def _of_rationals(name: str, values: list[Value]) -> Value:
    if not values or not all(isinstance(v, Fraction) for v in values):
        raise ParseError(f"{name} of something other than rational numbers")
    if name in ("max", "min"):
        return (max if name == "max" else min)(values)
    if any(v.denominator != 1 for v in values):
        raise ParseError(f"{name} of something other than integers")
    if name == "lcm" and sum(v.numerator.bit_length() for v in values) > MAX_BITS:
        raise LimitExceeded("a least common multiple too large to compute")
    return Fraction((math.gcd if name == "gcd" else math.lcm)(*(v.numerator for v in values)))
