"""Sets of real numbers as unions of intervals: interval notation, inequalities, the real line without points."""

from rlhf.rewards.expression import (
    Constant,
    ListOf,
    Node,
    Relation,
    SetOf,
    SetOperation,
    Tuple,
    Variable,
    is_expression,
    negate,
    variables,
)
from rlhf.rewards.numeric import Evaluator

_INFINITY = Constant("infinity")
MIRRORED = {">": "<", ">=": "<="}
_REALS = Variable("real numbers")


class Intervals:
    """Reads sets as intervals; needs an evaluator to put their ends in order."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def of(self, node: Node) -> list[Tuple] | None:
        """A union of disjoint intervals and points in increasing order; None if `node` is not such a set."""
        if node == _REALS:
            return [_interval(negate(_INFINITY), _INFINITY)]
        if isinstance(node, Tuple):
            return [node] if len(node.items) == 2 and all(map(is_expression, node.items)) else None
        if isinstance(node, SetOf):
            return [Tuple("[", (item, item), "]") for item in node.items if is_expression(item)]
        if isinstance(node, Relation):
            return self._solution(node)
        if isinstance(node, ListOf) and (node.disjunction or len(node.items) == 1):
            node = SetOperation("union", node.items)
        if isinstance(node, SetOperation) and node.name == "union":
            parts = [self.of(part) for part in node.parts]
            return None if None in parts else self._sorted_union([i for part in parts for i in part])
        if isinstance(node, SetOperation) and node.name == "difference" and isinstance(node.parts[1], SetOf):
            parts = self.of(node.parts[0])
            for point in node.parts[1].items:
                parts = self._without(parts, point)
            return parts
        return None

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
        brackets = ["[" if o == "<=" else "(" for o in operators]
        if len(sides) == 3 and isinstance(sides[1], Variable) and not variables(sides[0]) | variables(sides[2]):
            return [Tuple(brackets[0], (sides[0], sides[2]), "]" if operators[1] == "<=" else ")")]
        if len(sides) == 2 and isinstance(sides[0], Variable) and not variables(sides[1]):
            return [Tuple("(", (negate(_INFINITY), sides[1]), "]" if operators[0] == "<=" else ")")]
        if len(sides) == 2 and isinstance(sides[1], Variable) and not variables(sides[0]):
            return [Tuple(brackets[0], (sides[0], _INFINITY), ")")]
        return None

    def _sorted_union(self, parts: list[Tuple]) -> list[Tuple] | None:
        """Parts in increasing order, those that touch (`[0,1)`, `[1,2]`) joined; unsorted where ends have no order."""
        keyed = []
        for part in parts:
            ends = [None if variables(end) else self._evaluator.order(end) for end in part.items]
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

    def _without(self, parts: list[Tuple] | None, point: Node) -> list[Tuple] | None:
        if parts is None or not is_expression(point) or variables(point):
            return None
        place = self._evaluator.order(point)
        result = []
        for part in parts:
            low, high = (self._evaluator.order(end) for end in part.items)
            if place is not None and low is not None and high is not None and low < place < high:
                result += [
                    Tuple(part.opening, (part.items[0], point), ")"),
                    Tuple("(", (point, part.items[1]), part.closing),
                ]
            else:
                result.append(part)
        return result


def _interval(low: Node, high: Node) -> Tuple:
    return Tuple("(", (low, high), ")")
