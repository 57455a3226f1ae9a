"""The tree of an answer: expressions with a value, and the structures (tuples, sets, relations) built from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction


class Node:
    """Base of all nodes. Nodes are immutable and compare by identity of structure."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Number(Node):
    """A rational; `decimals`, where it was written as a numeral, is how many places behind the point it has."""

    value: Fraction
    decimals: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Constant(Node):
    """`pi`, `e`, `i` (the imaginary unit) or `infinity`."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable(Node):
    name: str


@dataclass(frozen=True, slots=True)
class PlusMinus(Node):
    r"""The sign of the `index`-th \pm of an answer; `opposite` for \mp, the other sign of the same index."""

    index: int
    opposite: bool = False


@dataclass(frozen=True, slots=True)
class Add(Node):
    terms: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Multiply(Node):
    factors: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Divide(Node):
    numerator: Node
    denominator: Node


@dataclass(frozen=True, slots=True)
class Power(Node):
    base: Node
    exponent: Node


@dataclass(frozen=True, slots=True)
class Function(Node):
    """A named function; `root` takes (radicand, degree), `log` (argument, base), `binomial` (n, k)."""

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Degrees(Node):
    """A value with a degree sign: the bare number, except inside a trigonometric function."""

    value: Node


@dataclass(frozen=True, slots=True)
class Tuple(Node):
    """A point, vector, or interval: ordered, and its brackets count ('(' or '[' open, ')' or ']' close)."""

    opening: str
    items: tuple[Node, ...]
    closing: str


@dataclass(frozen=True, slots=True)
class SetOf(Node):
    r"""\{...\}: unordered."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ListOf(Node):
    """Values side by side without brackets: the solutions of a problem, unordered. `disjunction` if joined by "or"."""

    items: tuple[Node, ...]
    disjunction: bool = False


@dataclass(frozen=True, slots=True)
class SetOperation(Node):
    """`union`, `intersection` or `difference` of sets."""

    name: str
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix(Node):
    kind: str
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation(Node):
    """A chain `sides[0] operators[0] sides[1] ...`; operators: = < <= > >= != in, and ~ for congruent and the like."""

    sides: tuple[Node, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio(Node):
    """a : b (: c ...), also a time of day; `clock` if written with two digits after the colon."""

    parts: tuple[Node, ...]
    clock: bool


@dataclass(frozen=True, slots=True)
class Based(Node):
    """Digits with an explicit number base, `1011_2`."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Quantity(Node):
    """A value and the unit it was given in (canonical where known)."""

    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Words(Node):
    """Text: a name, a day, yes or no; lower case, single spaces."""

    text: str


@dataclass(frozen=True, slots=True)
class Ellipsis(Node):
    """The dots of a listing."""


EXPRESSIONS = (Number, Constant, Variable, PlusMinus, Add, Multiply, Divide, Power, Function, Degrees)
ONE, MINUS_ONE, ZERO = Number(Fraction(1)), Number(Fraction(-1)), Number(Fraction(0))


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below `node`."""
    for name in node.__slots__:
        value = getattr(node, name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, Node):
                    yield item
                elif isinstance(item, tuple):
                    yield from item


def walk(node: Node) -> Iterator[Node]:
    """`node` and everything below it."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(children(current))


def variables(node: Node) -> frozenset[str]:
    """Names of the free variables below `node`."""
    return frozenset(n.name for n in walk(node) if isinstance(n, Variable))


def is_expression(node: Node) -> bool:
    """True if `node` has a scalar value: no structure occurs in it."""
    return all(isinstance(n, EXPRESSIONS) for n in walk(node))


def negate(node: Node) -> Node:
    """-node."""
    if isinstance(node, Number):
        return Number(-node.value, node.decimals)
    return Multiply((MINUS_ONE, node))


def subtract(left: Node, right: Node) -> Node:
    """left - right."""
    return Add((left, negate(right)))


def rebuild(node: Node, change: Callable[[Node], Node]) -> Node:
    """`node` with `change` applied to each node directly below it."""
    arguments = []
    for name in node.__slots__:
        value = getattr(node, name)
        if isinstance(value, Node):
            value = change(value)
        elif isinstance(value, tuple):
            value = tuple(
                change(v) if isinstance(v, Node) else tuple(map(change, v)) if isinstance(v, tuple) else v
                for v in value
            )
        arguments.append(value)
    return type(node)(*arguments)
