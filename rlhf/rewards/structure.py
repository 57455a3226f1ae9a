"""Whether two trees are the same answer: values, points, intervals, sets, lists, relations, matrices, words.

Conventions: sets and solution lists are unordered, points and intervals ordered; open and closed ends differ; a named
value (`x = 5`, `f(x) = 2x`, `D = (0, 1)`) is its value; an inequality in one variable is an interval; units and degree
signs may be dropped, but two different units differ.
"""

import itertools
from fractions import Fraction

from rlhf.rewards.expansion import with_choices, without_name, written_out
from rlhf.rewards.expression import (
    Based,
    Degrees,
    Divide,
    ListOf,
    Matrix,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    SetOf,
    SetOperation,
    Tuple,
    Words,
    is_expression,
    subtract,
    variables,
)
from rlhf.rewards.intervals import MIRRORED, Intervals, is_inequality
from rlhf.rewards.names import is_asked_for, is_name
from rlhf.rewards.numeric import Evaluator
from rlhf.rewards.rounding import is_rounding
from rlhf.rewards.units import conflicting


def same_answer(gold: Node, answer: Node, evaluator: Evaluator) -> bool:
    """True if `answer` says what `gold` says.

    Raises `LimitExceeded` when that cannot be found out within the limits, `Undefined` or `ParseError` when the gold
    answer has no value.
    """
    return _Comparison(evaluator).same(written_out(gold), written_out(answer))


class _Comparison:
    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.intervals = Intervals(evaluator)

    def same(self, gold: Node, answer: Node) -> bool:
        self.evaluator.spend(50)
        if gold == answer:
            return True
        if isinstance(gold, Quantity) and isinstance(answer, Quantity) and conflicting(gold.unit, answer.unit):
            return False
        gold, answer = _without_unit(gold), _without_unit(answer)
        scalars = is_expression(gold), is_expression(answer)
        if scalars == (True, False):  # `C(10, 5)` is a number beside a number, else the point called C
            answer = with_choices(answer)
        elif scalars == (False, True):
            gold = with_choices(gold)
        elif scalars == (False, False):
            gold, answer = without_name(gold), without_name(answer)
        if is_expression(gold) and is_expression(answer):
            return self.evaluator.equal(gold, answer)
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return self.same_relation(gold, answer)
        if isinstance(gold, Based) or isinstance(answer, Based):
            return _same_based(gold, answer)
        if isinstance(gold, Ratio) or isinstance(answer, Ratio):
            return self.same_ratio(gold, answer)
        return self.same_structure(gold, answer)

    def same_structure(self, gold: Node, answer: Node) -> bool:
        for one, other in ((gold, answer), (answer, gold)):
            if isinstance(one, (ListOf, SetOf)) and len(one.items) == 1 and not isinstance(other, (ListOf, SetOf)):
                return self.same(gold, one.items[0]) if one is answer else self.same(one.items[0], answer)
        if isinstance(gold, (ListOf, SetOf)) and isinstance(answer, (ListOf, SetOf)):
            return self.same_items(_named_values(gold), _named_values(answer), gold, answer)
        if isinstance(gold, Tuple) and isinstance(answer, Tuple):
            brackets = (gold.opening, gold.closing) == (answer.opening, answer.closing)
            return brackets and self.same_in_order(gold.items, answer.items)
        for one, other in ((gold, answer), (answer, gold)):
            if isinstance(one, Tuple) and isinstance(other, ListOf) and (one.opening, one.closing) == ("(", ")"):
                if other.disjunction or any(map(is_inequality, other.items)) or _named_values(other) != other.items:
                    continue  # values of one unknown are no point
                return self.same_in_order(gold.items, answer.items)  # a point or list without its parentheses
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            return (
                gold.kind == answer.kind
                and len(gold.rows) == len(answer.rows)
                and all(map(self.same_in_order, gold.rows, answer.rows))
            )
        if isinstance(gold, Words) or isinstance(answer, Words):
            return False
        if is_expression(gold) and isinstance(answer, ListOf) and answer.disjunction:
            return all(self.same(gold, item) for item in answer.items)  # `\frac{3}{5} or 0.6`
        return self.same_sets(gold, answer)

    def same_in_order(self, gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
        return len(gold) == len(answer) and all(map(self.same, gold, answer))

    def same_items(self, gold: tuple[Node, ...], answer: tuple[Node, ...], one: Node, other: Node) -> bool:
        """Equal as multisets: every item of the answer is some item of the gold, and none is used twice."""
        if len(gold) != len(answer):
            intervals = self.intervals.of(one), self.intervals.of(other)
            return None not in intervals and self.same_intervals(*intervals)
        if all(map(_comparable_at_once, gold, answer)) and self.same_in_order(gold, answer):
            return True
        left = list(answer)
        for item in gold:
            found = next((i for i, candidate in enumerate(left) if self.same(item, candidate)), None)
            if found is None:
                return False
            left.pop(found)
        return True

    # relations

    def same_relation(self, gold: Node, answer: Node) -> bool:
        gold, answer = _without_rounding_of_names(gold), _without_rounding_of_names(answer)
        for one in (gold, answer):
            if isinstance(one, Relation) and "≈" in one.operators:
                return self.same_rounded(one, gold, answer)
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            if len(gold.sides) == len(answer.sides) and gold.operators == answer.operators:
                if all(itertools.starmap(self.same_side, zip(gold.sides, answer.sides, strict=True))):
                    return True
            if self.equivalent(gold, answer):
                return True
            if set(gold.operators) <= {"=", "in"} and set(answer.operators) <= {"=", "in"}:
                return False
        for one, other in ((gold, answer), (answer, gold)):
            if isinstance(one, Relation) and not isinstance(other, Relation):
                value = self.value_of(one)
                if value is not None:
                    return self.same(value, other) if one is gold else self.same(other, value)
        return self.same_sets(gold, answer)

    def same_rounded(self, relation: Relation, gold: Node, answer: Node) -> bool:
        r"""`\frac{5}{7} \approx 0.714` is 5/7, or 0.714 where the other answer is written so (5/7 rounds to it)."""
        place = relation.operators.index("≈")
        value, rounded = relation.sides[place], relation.sides[-1]
        if not (is_expression(value) and is_expression(rounded)) or variables(value) | variables(rounded):
            return False
        precise = Relation(relation.sides[: place + 1], relation.operators[:place]) if place else value
        other = answer if relation is gold else gold
        if self.same(precise, answer) if relation is gold else self.same(gold, precise):
            return True
        numeral = (self.value_of(other) or other) if isinstance(other, Relation) else other
        exact, near = self.evaluator.order(value), self.evaluator.order(rounded)
        if not isinstance(exact, Fraction) or not isinstance(near, Fraction) or not self.same(rounded, numeral):
            return False
        return is_rounding(rounded, near, exact) and is_rounding(numeral, near, exact)

    def same_side(self, gold: Node, answer: Node) -> bool:
        if is_name(gold) and is_name(answer) and not isinstance(gold, Words):
            return gold == answer or (
                is_expression(gold) and is_expression(answer) and self.evaluator.equal(gold, answer)
            )
        return self.same(gold, answer)

    def equivalent(self, gold: Relation, answer: Relation) -> bool:
        """Relations between expressions, up to a constant factor and the order of the sides."""
        if not all(map(is_expression, (*gold.sides, *answer.sides))):
            return False
        left, right = _differences(gold), _differences(answer)
        if len(left) != len(right) or "in" in gold.operators:
            return False
        for operator, difference in left:
            match = next(
                (
                    pair
                    for pair in right
                    if pair[0] == operator
                    and self.evaluator.proportional(difference, pair[1], positive=operator in ("<", "<="))
                ),
                None,
            )
            if match is None:
                return False
            right.remove(match)
        return True

    def value_of(self, relation: Relation) -> Node | None:
        """What a chain of equations says the answer is: the value of a name, or of a calculation that adds up."""
        if not set(relation.operators) <= {"=", "in"}:
            return None
        sides = list(relation.sides)
        if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
            sides.reverse()
        if is_name(sides[0]) or (is_asked_for(sides[0]) and not variables(sides[-1])):
            sides = sides[1:]
        elif not all(map(is_expression, sides)) or (variables(sides[0]) and not variables(sides[-1])):
            return None
        value = sides[-1]
        for side in sides[:-1]:
            if is_expression(side) and is_expression(value) and variables(side) <= variables(value):
                if not self.evaluator.equal(side, value):
                    return None
        return value

    def same_ratio(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Ratio) and isinstance(answer, Ratio):
            if self.same_in_order(gold.parts, answer.parts):
                return True
            if (gold.clock and answer.clock) or len(gold.parts) != 2 or len(answer.parts) != 2:
                return False
            return self.same(Divide(*gold.parts), Divide(*answer.parts))
        ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
        if len(ratio.parts) != 2 or ratio.clock or not is_expression(other) or not all(map(is_expression, ratio.parts)):
            return False
        return self.evaluator.equal(other, Divide(*ratio.parts))

    # sets of real numbers

    def same_sets(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.name == answer.name:
            if gold.name == "difference":
                if self.same_in_order(gold.parts, answer.parts):
                    return True
            elif self.same_items(gold.parts, answer.parts, gold, answer):
                return True
        left, right = self.intervals.of(gold), self.intervals.of(answer)
        if left is None or right is None or not self.same_intervals(left, right):
            return False
        names = [variables(n) for n in (gold, answer) if isinstance(n, (Relation, ListOf)) and variables(n)]
        return len(names) < 2 or names[0] == names[1]

    def same_intervals(self, gold: list[Tuple], answer: list[Tuple]) -> bool:
        return len(gold) == len(answer) and self.same_items(tuple(gold), tuple(answer), ListOf(()), ListOf(()))


def _without_rounding_of_names(node: Node) -> Node:
    """`x = 5` for `x \\approx 5`."""
    if isinstance(node, Relation) and node.operators == ("≈",) and is_name(node.sides[0]):
        return Relation(node.sides, ("=",))
    return node


def _without_unit(node: Node) -> Node:
    while isinstance(node, (Quantity, Degrees)):
        node = node.value
    return node


def _comparable_at_once(gold: Node, answer: Node) -> bool:
    return isinstance(gold, (Number, Divide)) == isinstance(answer, (Number, Divide))


def _named_values(node: ListOf | SetOf) -> tuple[Node, ...]:
    """The items; `x = 1, x = 2` gives the values of x."""
    names = {
        i.sides[0] if isinstance(i, Relation) and i.operators == ("=",) and is_name(i.sides[0]) else None
        for i in node.items
    }
    if len(names) == 1 and None not in names:
        return tuple(item.sides[1] for item in node.items)
    first = node.items[0] if node.items else None
    if isinstance(first, Relation) and first.operators == ("=",) and is_name(first.sides[0]):
        if not any(isinstance(item, Relation) for item in node.items[1:]):
            return (first.sides[1], *node.items[1:])  # `x = 1, 2`
    return node.items


def _same_based(gold: Node, answer: Node) -> bool:
    """Digits and base agree; an answer without a base is in the gold's, a gold answer without one is decimal."""
    gold_digits, gold_base = _digits(gold)
    digits, base = _digits(answer)
    return digits is not None and gold_digits == digits and base in (None, gold_base or "10")


def _digits(node: Node) -> tuple[str | None, str | None]:
    if isinstance(node, Based):
        return node.digits, node.base
    if isinstance(node, Number) and node.value.denominator == 1 and node.value.numerator.bit_length() < 10_000:
        return str(node.value.numerator), None
    return None, None


def _differences(relation: Relation) -> list[tuple[str, Node]]:
    """A chain as pairs (operator, right - left or left - right), with > turned into <."""
    pairs = []
    for index, operator in enumerate(relation.operators):
        left, right = relation.sides[index], relation.sides[index + 1]
        if operator in MIRRORED:
            operator, left, right = MIRRORED[operator], right, left
        pairs.append((operator, subtract(right, left)))
    return pairs
