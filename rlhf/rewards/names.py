"""What may stand left of an equals sign as the name of a value."""

from rlhf.rewards.expression import (
    MINUS_ONE,
    Add,
    Constant,
    Divide,
    Function,
    Multiply,
    Node,
    SetOperation,
    Tuple,
    Variable,
    Words,
    is_expression,
    variables,
)

_FUNCTION_LETTERS = frozenset("fghpqrstuvwyACFGHPQRSTUVXYS")


def is_name(node: Node) -> bool:
    """True for x, f(x), f(2), P(A \\cap B), AB, |AB|, sin x, (x, y), words."""
    if isinstance(node, (Variable, Words)):
        return True
    if isinstance(node, Constant):
        return node.name in ("e", "i")
    if isinstance(node, Tuple):
        return all(map(is_name, node.items))
    if isinstance(node, Function):
        return bool(variables(node))
    if isinstance(node, Multiply):
        head, rest = node.factors[0], node.factors[1:]
        if isinstance(head, Variable) and head.name[0] in _FUNCTION_LETTERS and len(rest) == 1:
            return is_expression(rest[0]) or isinstance(rest[0], (Tuple, SetOperation))
        return all(isinstance(f, (Variable, Constant, Function)) for f in node.factors)
    return False


def is_asked_for(node: Node) -> bool:
    """True for a sum or quotient of variables without a number: what `x + y = 42` or `dy/dx = 3` says the value of."""
    if isinstance(node, Add):
        return len(set(node.terms)) == len(node.terms) and all(map(_is_signed_variable, node.terms))
    return isinstance(node, Divide) and is_name(node.numerator) and is_name(node.denominator)


def _is_signed_variable(node: Node) -> bool:
    if isinstance(node, Multiply) and node.factors[0] == MINUS_ONE and len(node.factors) == 2:
        node = node.factors[1]
    return isinstance(node, Variable)
