"""Values of expressions at a point: exact rationals where possible, else complex floating-point numbers."""

import math
import threading
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from types import ModuleType
from typing import Any

from rlhf.rewards.exact import exact_log, exact_root
from rlhf.rewards.expression import (
    Add,
    Constant,
    Degrees,
    Divide,
    Function,
    Multiply,
    Node,
    Number,
    Power,
    Variable,
    walk,
)
from rlhf.rewards.limits import MAX_BITS, MAX_FACTORIAL, MAX_WORK, LimitExceeded, ParseError, Undefined

PRECISIONS = (160, 320, 480)
POINTS = 5
"""Points at which expressions with variables are compared; the last two have negative coordinates."""
NEGATIVE_POINTS = (POINTS - 2, POINTS - 1)
FLOAT_COST = 400
"""Work units of one floating-point operation, against one per bit of an exact operation."""

Value = Any  # Fraction, float (plus or minus infinity), or (real, imaginary) of mpmath's raw numbers

floating_point = threading.RLock()  # mpmath's caches of pi and log 2 are not thread-safe


@cache
def libmp() -> ModuleType:
    import mpmath.libmp  # slow to import (0.3 s) and needed only for irrational values

    return mpmath.libmp


class Values:
    """Evaluates expressions within the work budget of one grading call.

    Raises `LimitExceeded` when the budget or a size limit is exceeded, `Undefined` where there is no value, and
    `ParseError` for a tree that is not an expression.
    """

    def __init__(self) -> None:
        self.work = MAX_WORK
        self.real_only = False

    def spend(self, amount: int) -> None:
        self.work -= amount
        if self.work < 0:
            raise LimitExceeded("comparing the answers takes more work than allowed")

    def evaluate(self, node: Node, point: int, precision: int) -> Value:
        """The value of `node` with its variables at the `point`-th place."""
        self.spend(20)
        match node:
            case Number(value):
                return value
            case Variable(name):
                return coordinate(name, point)
            case Constant(name):
                return self._constant(name, precision)
            case Add(terms):
                return self._reduce(self._add, terms, point, precision)
            case Multiply(factors):
                return self._reduce(self._multiply, factors, point, precision)
            case Divide(numerator, denominator):
                top = self.evaluate(numerator, point, precision)
                return self._divide(top, self.evaluate(denominator, point, precision), precision)
            case Power(base, exponent):
                return self._power(
                    self.evaluate(base, point, precision), self.evaluate(exponent, point, precision), precision
                )
            case Function(name, arguments):
                values = [self._argument(name, a, point, precision) for a in arguments]
                return self._function(name, values, precision)
            case Degrees(value):
                return self.evaluate(value, point, precision)
        raise ParseError(f"a {type(node).__name__.lower()} inside an expression")

    def _reduce(self, operation: Callable[..., Value], nodes: tuple[Node, ...], point: int, precision: int) -> Value:
        total = self.evaluate(nodes[0], point, precision)
        for node in nodes[1:]:
            total = operation(total, self.evaluate(node, point, precision), precision)
        return total

    def _argument(self, name: str, node: Node, point: int, precision: int) -> Value:
        value = self.evaluate(node, point, precision)
        if name in _TRIGONOMETRIC and any(isinstance(n, Degrees) for n in walk(node)):
            value = self._multiply(value, self._constant("pi", precision), precision)
            value = self._divide(value, Fraction(180), precision)
        return value

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
        return _checked(libmp().mpc_mul(self._float(a, precision), self._float(b, precision), precision, "n"))

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
        return _checked(libmp().mpc_div(self._float(a, precision), self._float(b, precision), precision, "n"))

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
        return _checked(mp.mpc_pow(b, e, precision, "n"))

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


_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_RECIPROCALS = {"cot": "tan", "sec": "cos", "csc": "sin", "coth": "tanh", "sech": "cosh", "csch": "sinh"}
_MPC_NAMES = {
    "sin": "mpc_sin", "cos": "mpc_cos", "tan": "mpc_tan", "arcsin": "mpc_asin", "arccos": "mpc_acos",
    "arctan": "mpc_atan", "sinh": "mpc_sinh", "cosh": "mpc_cosh", "tanh": "mpc_tanh", "exp": "mpc_exp",
}  # fmt: skip


@cache
def coordinate(name: str, point: int) -> Fraction:
    """The value of variable `name` at a point: between 1/4 and 3, at the last two points also negative."""
    digest = zlib.crc32(f"{name}@{point}".encode("utf-8", "replace"))
    value = Fraction(1, 4) + Fraction(digest % 27_011, 9_973)
    negative = point == POINTS - 1 or (point == POINTS - 2 and digest >> 20 & 1)
    return -value if negative else value


def _call(name: str, argument: tuple[Any, Any], precision: int) -> tuple[Any, Any]:
    try:
        return _checked(getattr(libmp(), name)(argument, precision, "n"))
    except (ZeroDivisionError, OverflowError) as error:
        raise Undefined(f"{name} has no value: {error}") from error
    except ValueError as error:
        if isinstance(error, (Undefined, LimitExceeded)):
            raise
        raise Undefined(f"{name} has a pole: {error}") from error


def magnitude(value: tuple[Any, Any]) -> float:
    """About log2 |value|; minus infinity for zero."""
    sizes = [part[2] + part[3] for part in value if part[1]]
    return max(sizes) if sizes else -math.inf


def _checked(value: tuple[Any, Any]) -> tuple[Any, Any]:
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
