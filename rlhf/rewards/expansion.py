"""An answer written out before it is compared: values of plus-minus signs, a number times a matrix, C(n, k)."""

import itertools

from rlhf.rewards.expression import (
    MINUS_ONE,
    ONE,
    Add,
    Divide,
    Function,
    ListOf,
    Matrix,
    Multiply,
    Node,
    Number,
    PlusMinus,
    Power,
    Quantity,
    Relation,
    SetOf,
    SetOperation,
    Tuple,
    Variable,
    is_expression,
    rebuild,
    walk,
)
from rlhf.rewards.limits import MAX_ALTERNATIVES, LimitExceeded

_COUNTS = (Variable("C"), Variable("P"))


def written_out(node: Node) -> Node:
    """`node` with plus-minus signs as lists, and numbers before matrices and vectors multiplied in."""
    return _distributed(_expanded(node))


def _expanded(node: Node) -> Node:
    r"""Plus-minus signs written out: `1 \pm x` is the list of its values, merged into a list or set around it."""
    if isinstance(node, Quantity):
        return Quantity(_expanded(node.value), node.unit)
    if isinstance(node, (ListOf, SetOf)):
        items: list[Node] = []
        for item in map(_expanded, node.items):
            items.extend(item.items if isinstance(item, ListOf) else [item])
        return SetOf(tuple(items)) if isinstance(node, SetOf) else ListOf(tuple(items), node.disjunction)
    if isinstance(node, Relation) and node.operators == ("=",):
        right = _expanded(node.sides[1])
        if isinstance(right, ListOf) and not any(isinstance(n, PlusMinus) for n in walk(node.sides[0])):
            return ListOf(tuple(Relation((node.sides[0], value), ("=",)) for value in right.items), right.disjunction)
    signs = {n.index for n in walk(node) if isinstance(n, PlusMinus)}
    if not signs:
        return node
    correlated = any(n.opposite for n in walk(node) if isinstance(n, PlusMinus))
    if 2 ** len(signs) > MAX_ALTERNATIVES and not correlated:
        raise LimitExceeded(f"more than {MAX_ALTERNATIVES} values of plus-minus signs")
    choices = [(1,) * len(signs), (-1,) * len(signs)] if correlated else itertools.product((1, -1), repeat=len(signs))
    return ListOf(tuple(_with_signs(node, dict(zip(sorted(signs), choice, strict=True))) for choice in choices))


def _with_signs(node: Node, signs: dict[int, int]) -> Node:
    if isinstance(node, PlusMinus):
        return ONE if (signs[node.index] > 0) != node.opposite else MINUS_ONE
    return rebuild(node, lambda child: _with_signs(child, signs))


def without_name(node: Node) -> Node:
    """The point of `P(3, -1)`."""
    return node.factors[1] if _is_named_point(node) else node


def with_choices(node: Node) -> Node:
    """A calculation with `C(n, k)` and `P(n, k)` as what they count: the ways to choose, or to arrange, k of n."""
    if isinstance(node, (Add, Divide, Power, Function)):
        return rebuild(node, with_choices)
    if not isinstance(node, Multiply):
        return node
    factors: list[Node] = []
    for factor in map(with_choices, node.factors):
        count = _choices(factors[-1], factor) if factors else None
        if count is None:
            factors.append(factor)
        else:
            factors[-1] = count
    return factors[0] if len(factors) == 1 else Multiply(tuple(factors))


def _choices(name: Node, pair: Node) -> Node | None:
    """The number that `name` followed by `pair` stands for; None unless it is C(n, k) or P(n, k) with 0 <= k <= n."""
    if not isinstance(pair, Tuple) or (pair.opening, pair.closing) != ("(", ")") or len(pair.items) != 2:
        return None
    n, k = pair.items
    if name not in _COUNTS or not (is_expression(n) and is_expression(k)):
        return None
    if isinstance(n, Number) and isinstance(k, Number) and not 0 <= k.value <= n.value:
        return None
    ways = Function("binomial", (n, k))
    return ways if name == Variable("C") else Multiply((ways, Function("factorial", (k,))))


def _is_named_point(node: Node) -> bool:
    return (
        isinstance(node, Multiply)
        and len(node.factors) == 2
        and isinstance(node.factors[0], Variable)
        and len(node.factors[0].name) == 1
        and node.factors[0].name.isupper()
        and isinstance(node.factors[1], Tuple)
    )


def _distributed(node: Node) -> Node:
    """A number times a matrix or vector, multiplied out; structures inside structures likewise."""
    if isinstance(node, Multiply) and not _is_named_point(node) and with_choices(node) == node:
        structures = [f for f in node.factors if isinstance(f, (Matrix, Tuple))]
        if len(structures) == 1:
            scale = tuple(f for f in node.factors if f is not structures[0])
            return rebuild(structures[0], lambda entry: Multiply((*scale, entry)))
    if isinstance(node, (Matrix, Tuple, ListOf, SetOf, SetOperation, Relation)):
        return rebuild(node, _distributed)
    return node
