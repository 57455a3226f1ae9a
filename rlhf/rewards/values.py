"""Values of expressions at a point."""

import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache

from rlhf.rewards.arithmetic import Value
from rlhf.rewards.elementary_functions import ElementaryFunctions
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
from rlhf.rewards.limits import ParseError

POINTS = 5
"""Points at which expressions with variables are compared; the last two have negative coordinates."""
NEGATIVE_POINTS = (POINTS - 2, POINTS - 1)


class Values(ElementaryFunctions):
    """Evaluates expressions. Raises as `Arithmetic` does, and `ParseError` for a tree that is not an expression."""

    def evaluate(self, node: Node, point: int, precision: int) -> Value:
        """The value of `node` with its variables at the `point`-th place."""
        self.spend(20)
        match node:
            case Number(value, _):
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


_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})


@cache
def coordinate(name: str, point: int) -> Fraction:
    """The value of variable `name` at a point: between 1/4 and 3, at the last two points also negative."""
    digest = zlib.crc32(f"{name}@{point}".encode("utf-8", "replace"))
    value = Fraction(1, 4) + Fraction(digest % 27_011, 9_973)
    negative = point == POINTS - 1 or (point == POINTS - 2 and digest >> 20 & 1)
    return -value if negative else value
