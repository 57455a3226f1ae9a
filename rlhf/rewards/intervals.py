"""Sets of real numbers as unions of intervals: interval notation, inequalities, the real line without points."""

from fractions import Fraction

from rlhf.rewards.expression import (
    MINUS_ONE,
    ONE,
    ZERO,
    Add,
    Constant,
    Divide,
    Function,
    ListOf,
    Multiply,
    Node,
    Relation,
    SetOf,
    SetOperation,
    Tuple,
    Variable,
    is_expression,
    negate,
    rebuild,
    subtract,
    variables,
)
from rlhf.rewards.numeric import Evaluator

_INFINITY = Constant("infinity")
MIRRORED = {">": "<", ">=": "<="}
_REALS = Variable("real numbers")
MAX_PAIRS = 400
"""Largest number of pairs of intervals that are intersected."""


class Intervals:
    """Reads sets as intervals; needs an evaluator to put their ends in order."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def of(self, node: Node) -> list[Tuple] | None:
        """A union of disjoint intervals and points in increasing order; None if `node` is not such a set."""
        if node == _REALS:
            return [_WHOLE_LINE]
        if isinstance(node, Tuple):
            return [node] if len(node.items) == 2 and all(map(is_expression, node.items)) else None
        if isinstance(node, SetOf):
            points = [Tuple("[", (item, item), "]") for item in node.items if is_expression(item)]
            return points if len(points) == len(node.items) else None
        if isinstance(node, Relation):
            return self._solution(node)
        if isinstance(node, ListOf):
            return self._listed(node)
        if isinstance(node, SetOperation):
            return self._combined(node.name, node.parts)
        if isinstance(node, Add) and len(node.terms) == 2 and isinstance(node.terms[1], Multiply):
            minus, *removed = node.terms[1].factors
            if minus == MINUS_ONE and len(removed) == 1 and isinstance(removed[0], SetOf):
                return self._combined("difference", (node.terms[0], removed[0]))  # \mathbb{R} - \{0\}
        return None

    def _listed(self, node: ListOf) -> list[Tuple] | None:
        """Alternatives joined by "or"; inequalities in one variable, all of which hold."""
        if node.disjunction or len(node.items) == 1:
            return self._combined("union", node.items)
        if all(map(is_inequality, node.items)) and len({variables(item) for item in node.items}) == 1:
            return self._combined("intersection", node.items)
        return None

    def _combined(self, name: str, nodes: tuple[Node, ...]) -> list[Tuple] | None:
        parts = [self.of(node) for node in nodes]
        if None in parts:
            return None
        if name == "union":
            return self._sorted_union([interval for part in parts for interval in part])
        result = self._sorted_union(parts[0])
        for part in parts[1:]:
            other = self._sorted_union(part)
            if result is not None and other is not None and name == "difference":
                other = self._complement(other)
            if result is None or other is None or len(result) * len(other) > MAX_PAIRS:
                return None
            result = self._intersection(result, other)
        return result

    def _solution(self, relation: Relation) -> list[Tuple] | None:
        """The interval of an inequality between one variable and constants."""
        sides, operators = list(relation.sides), list(relation.operators)
        if operators == ["in"]:
            return self.of(sides[1])
        if not all(map(is_expression, sides)):
            return None
        if operators in (["!="], ["="]):
            name, bound = sides if isinstance(sides[0], Variable) else sides[::-1]
            if not isinstance(name, Variable) or variables(bound):
                return None
            if operators == ["="]:
                return [Tuple("[", (bound, bound), "]")]
            return [_interval(negate(_INFINITY), bound), _interval(bound, _INFINITY)]
        if set(operators) <= {">", ">="}:
            sides.reverse()
            operators = [MIRRORED[o] for o in reversed(operators)]
        if not set(operators) <= {"<", "<="}:
            return None
        if len(sides) == 2 and any(map(_is_absolute_value, sides)):
            return self._distance(sides[0], operators[0], sides[1])
        brackets = ["[" if o == "<=" else "(" for o in operators]
        if len(sides) == 3 and isinstance(sides[1], Variable) and not variables(sides[0]) | variables(sides[2]):
            return [Tuple(brackets[0], (sides[0], sides[2]), "]" if operators[1] == "<=" else ")")]
        if len(sides) == 2 and isinstance(sides[0], Variable) and not variables(sides[1]):
            return [Tuple("(", (negate(_INFINITY), sides[1]), "]" if operators[0] == "<=" else ")")]
        if len(sides) == 2 and isinstance(sides[1], Variable) and not variables(sides[0]):
            return [Tuple(brackets[0], (sides[0], _INFINITY), ")")]
        return None

    def _distance(self, low: Node, operator: str, high: Node) -> list[Tuple] | None:
        """(1, 5) for `|x - 3| < 2`, the two intervals beside it for `|x - 3| >= 2`: linear in x, the bound above 0."""
        inside = _is_absolute_value(low)
        size, bound = (low, high) if inside else (high, low)
        if not isinstance(size, Function) or len(variables(size)) != 1 or variables(bound):
            return None
        (name,) = variables(size)
        constant, at_one = (_with_value(size.arguments[0], name, number) for number in (ZERO, ONE))
        slope = subtract(at_one, constant)
        steepness, radius = self._order(slope), self._order(bound)
        if not steepness or radius is None or radius <= 0:
            return None
        line = Add((Multiply((slope, Variable(name))), constant))
        if not self._evaluator.equal(size.arguments[0], line):
            return None
        low, high = (Divide(subtract(end, constant), slope) for end in (negate(bound), bound))
        if steepness < 0:
            low, high = high, low
        if inside:
            return [Tuple("[", (low, high), "]") if operator == "<=" else _interval(low, high)]
        left, right = (")", "(") if operator == "<" else ("]", "[")
        return [Tuple("(", (negate(_INFINITY), low), left), Tuple(right, (high, _INFINITY), ")")]

    def _sorted_union(self, parts: list[Tuple]) -> list[Tuple] | None:
        """Parts in increasing order, those that touch (`[0,1)`, `[1,2]`) joined; unsorted where ends have no order."""
        keyed = []
        for part in parts:
            ends = [self._order(end) for end in part.items]
            if None in ends:
                return parts
            keyed.append((ends[0], ends[1], part))
        keyed.sort(key=lambda entry: (entry[0], entry[1]))
        joined = keyed[:1]
        for low, high, part in keyed[1:]:
            _, end, before = joined[-1]
            if low == end and (before.closing == "]" or part.opening == "["):
                merged = Tuple(before.opening, (before.items[0], part.items[1]), part.closing)
                joined[-1] = (joined[-1][0], high, merged)
            else:
                joined.append((low, high, part))
        return [part for _, _, part in joined]

    def _complement(self, parts: list[Tuple]) -> list[Tuple] | None:
        """What lies outside disjoint intervals in increasing order."""
        if any(variables(end) for part in parts for end in part.items):
            return None
        gaps, low, bracket = [], negate(_INFINITY), "("
        for part in parts:
            gaps.append(Tuple(bracket, (low, part.items[0]), ")" if part.opening == "[" else "]"))
            low, bracket = part.items[1], "(" if part.closing == "]" else "["
        gaps.append(Tuple(bracket, (low, _INFINITY), ")"))
        return [gap for gap in gaps if self._holds_something(gap)]

    def _intersection(self, one: list[Tuple], other: list[Tuple]) -> list[Tuple] | None:
        if any(self._order(end) is None for part in (*one, *other) for end in part.items):
            return None
        pairs = [self._overlap(a, b) for a in one for b in other]
        return [pair for pair in pairs if self._holds_something(pair)]

    def _overlap(self, a: Tuple, b: Tuple) -> Tuple:
        # of two equal ends, the open one is the stricter
        low = max((a, b), key=lambda part: (self._order(part.items[0]), part.opening == "("))
        high = min((a, b), key=lambda part: (self._order(part.items[1]), part.closing == "]"))
        return Tuple(low.opening, (low.items[0], high.items[1]), high.closing)

    def _holds_something(self, part: Tuple) -> bool:
        low, high = map(self._order, part.items)
        if low is None or high is None:
            return True
        return low < high or (low == high and (part.opening, part.closing) == ("[", "]"))

    def _order(self, end: Node) -> float | Fraction | None:
        return None if variables(end) else self._evaluator.order(end)


def is_inequality(node: Node) -> bool:
    """True for a relation that bounds something: <, <=, >, >=, != or a chain of them."""
    return isinstance(node, Relation) and set(node.operators) <= {"<", "<=", ">", ">=", "!="}


def _is_absolute_value(node: Node) -> bool:
    return isinstance(node, Function) and node.name == "abs"


def _with_value(node: Node, name: str, value: Node) -> Node:
    """`node` with `value` in the place of the variable `name`."""
    if node == Variable(name):
        return value
    return rebuild(node, lambda child: _with_value(child, name, value))


def _interval(low: Node, high: Node) -> Tuple:
    return Tuple("(", (low, high), ")")


_WHOLE_LINE = _interval(negate(_INFINITY), _INFINITY)
