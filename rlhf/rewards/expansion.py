"""An answer written out before it is compared: the values of plus-minus signs, a number times a matrix."""

import itertools

from rlhf.rewards.expression import (
    MINUS_ONE,
    ONE,
    ListOf,
    Matrix,
    Multiply,
    Node,
    PlusMinus,
    Quantity,
    Relation,
    SetOf,
    SetOperation,
    Tuple,
    Variable,
    rebuild,
    walk,
)
from rlhf.rewards.limits import MAX_ALTERNATIVES, LimitExceeded


def written_out(node: Node) -> Node:
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


def _names_a_point(node: Node) -> bool:
    """True for the P of the point P(3, -1)."""
    return isinstance(node, Variable) and len(node.name) == 1 and node.name.isupper()


def _distributed(node: Node) -> Node:
    """A number times a matrix or vector, multiplied out; structures inside structures likewise."""
    if isinstance(node, Multiply):
        structures = [f for f in node.factors if isinstance(f, (Matrix, Tuple))]
        if len(structures) == 1:
            scale = tuple(f for f in node.factors if f is not structures[0])
            if isinstance(structures[0], Tuple) and len(scale) == 1 and _names_a_point(scale[0]):
                return _distributed(structures[0])
            return rebuild(structures[0], lambda entry: Multiply((*scale, entry)))
    if isinstance(node, (Matrix, Tuple, ListOf, SetOf, SetOperation, Relation)):
        return rebuild(node, _distributed)
    return node
