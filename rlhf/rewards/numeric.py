"""Values of expressions, and whether two are equal: exact rationals where possible, else two precisions compared.

Rational arithmetic is exact. What is irrational is computed with complex floating-point numbers of 160 bits and, where
two values agree, again with 320 bits: a true equality agrees to the last bits or its difference shrinks with the
precision; a near miss (sqrt(2) against its first 40 decimals, 1/2^99 against 1/2^98) keeps its difference.
Expressions with variables are compared at fixed pseudo-random rational points (Schwartz-Zippel).
"""

import math
from collections.abc import Callable
from fractions import Fraction

from rlhf.rewards.arithmetic import (
    PRECISIONS,
    Value,
    floating_point,
    is_negative,
    is_real,
    is_zero,
    libmp,
    magnitude,
)
from rlhf.rewards.expression import Constant, Node, variables, walk
from rlhf.rewards.limits import Undefined
from rlhf.rewards.values import NEGATIVE_POINTS, POINTS, Values

GUARD_BITS = 60
"""Bits that rounding and cancellation may cost in an equality."""


class Evaluator(Values):
    """Compares expressions within the work budget of one grading call."""

    def equal(self, a: Node, b: Node) -> bool:
        """True if two expressions have the same value, at every probed point where `a` is defined and real.

        Raises `Undefined` if `a` has no value anywhere.
        """
        if a == b:
            return True
        names = variables(a) | variables(b)
        points = range(POINTS) if names else range(1)
        with floating_point:
            complex_allowed = any(n == Constant("i") for n in walk(a)) or not names
            verdicts = []
            for only_real in (True, False):
                for point in points:
                    verdict = self._equal_at(a, b, point, only_real and not complex_allowed)
                    if verdict is False:
                        return False
                    if verdict is True:
                        verdicts.append(point)
                if len(verdicts) >= min(2, len(points)):
                    return True
        raise Undefined("the expression has no value")

    def _equal_at(self, a: Node, b: Node, point: int, only_real: bool) -> bool | None:
        """None where `a` is undefined (or not real, if it has to be): the point says nothing."""
        self.real_only = only_real
        try:
            left = self.evaluate(a, point, PRECISIONS[0])
        except Undefined:
            return None
        finally:
            self.real_only = False
        if only_real and not is_real(left):
            return None
        if only_real and point in NEGATIVE_POINTS and not self._is_real_at(b, point):
            return None  # ln x + ln y against ln(xy): the domains differ, the values do not
        try:
            return self.equal_values(lambda p: self.evaluate(a, point, p), lambda p: self.evaluate(b, point, p))
        except Undefined:
            return False

    def _is_real_at(self, node: Node, point: int) -> bool:
        self.real_only = True
        try:
            return is_real(self.evaluate(node, point, PRECISIONS[0]))
        except Undefined:
            return False
        finally:
            self.real_only = False

    def proportional(self, a: Node, b: Node, positive: bool) -> bool:
        """True if a / b is the same non-zero constant (a positive one, if `positive`) at all probed points."""
        with floating_point:
            agreed = 0
            for point in range(1, POINTS):
                try:
                    first, second = self.evaluate(a, 0, PRECISIONS[0]), self.evaluate(b, 0, PRECISIONS[0])
                    here, there = self.evaluate(a, point, PRECISIONS[0]), self.evaluate(b, point, PRECISIONS[0])
                    if any(is_zero(v) for v in (first, second, here, there)):
                        if is_zero(first) != is_zero(second) or is_zero(here) != is_zero(there):
                            return False
                        continue
                    if positive and is_negative(self._divide(first, second, PRECISIONS[0])):
                        return False
                    same = self.equal_values(
                        lambda p, q=point: self._cross(a, 0, b, q, p), lambda p, q=point: self._cross(a, q, b, 0, p)
                    )
                except Undefined:
                    continue
                if not same:
                    return False
                agreed += 1
            return agreed >= 2

    def _cross(self, a: Node, point_a: int, b: Node, point_b: int, precision: int) -> Value:
        return self._multiply(self.evaluate(a, point_a, precision), self.evaluate(b, point_b, precision), precision)

    def equal_values(self, left: Callable[[int], Value], right: Callable[[int], Value]) -> bool:
        """Compare two computations, given as functions of the precision in bits."""
        previous: float | None = None
        for precision in PRECISIONS:
            a, b = left(precision), right(precision)
            if isinstance(a, float) or isinstance(b, float) or (isinstance(a, Fraction) and isinstance(b, Fraction)):
                return type(a) is type(b) and a == b
            a, b = self._float(a, precision), self._float(b, precision)
            difference = magnitude(libmp().mpc_sub(a, b, precision, "n"))
            scale = max(magnitude(a), magnitude(b))
            if previous is None:
                if difference > -40 and difference - scale > -40:
                    return False
            elif difference - scale < GUARD_BITS - precision or difference < previous - (PRECISIONS[0] - GUARD_BITS):
                return True
            elif previous != -math.inf:
                return False
            previous = difference
        return False

    def order(self, node: Node) -> float | Fraction | None:
        """A number to sort real constants by (for the ends of intervals); None without a real value."""
        with floating_point:
            try:
                value = self.evaluate(node, 0, PRECISIONS[0])
            except Undefined:
                return None
            if isinstance(value, (Fraction, float)):
                return value
            return Fraction(*libmp().to_rational(value[0])) if is_real(value) else None
