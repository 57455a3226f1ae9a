r"""Atoms of an expression: numbers, names, brackets, functions and their arguments."""

from fractions import Fraction

from rlhf.rewards.expression import (
    MINUS_ONE,
    Constant,
    Divide,
    Function,
    Multiply,
    Node,
    Number,
    Power,
    SetOf,
    Tuple,
    Variable,
    negate,
)
from rlhf.rewards.limits import MAX_LITERAL_DIGITS, LimitExceeded, ParseError
from rlhf.rewards.token_reader import TokenReader

CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",), "\\{": ("\\}",)}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}


class AtomParser(TokenReader):
    """Reads atoms. How atoms make expressions, and expressions lists, is up to the subclasses."""

    def atom(self) -> Node:
        token = self.next()
        match token.kind:
            case "number":
                return number(token.text)
            case "variable":
                return Constant(token.text) if token.text in ("e", "i") else Variable(token.text)
            case "constant":
                return Constant(token.text)
            case "function":
                return self.nested(lambda: self.function(token.text))
            case "command":
                return self.nested(lambda: self.command(token.text))
            case "symbol" if token.text in ("(", "[", "\\{"):
                return self.nested(lambda: self.bracketed(token.text))
            case "symbol" if token.text == "{":
                self.position -= 1
                return self.group()
            case "symbol" if token.text in ("|", "\\|"):
                return self.absolute_value(token.text)
        raise ParseError(f"{token.text or 'the end'!r} where a value was expected")

    def absolute_value(self, bar: str) -> Node:
        self.bars += 1
        node = Function("abs", (self.sum(),))
        self.bars -= 1
        self.expect(bar)
        return node

    def bracketed(self, opening: str) -> Node:
        closing = CLOSERS[opening]
        if self.token.text in closing:
            self.next()
            if opening == "\\{":
                return SetOf(())
            raise ParseError("empty brackets")
        self.closers.append(opening)
        bars, self.bars = self.bars, 0
        items, _ = self.items(closing)
        if opening == "\\{" and len(items) == 1 and self.accept("|", ":"):
            items = [self.listing(closing)]
            builder = True
        else:
            builder = False
        self.bars = bars
        self.closers.pop()
        end = self.next().text
        if end not in closing:
            raise ParseError(f"a bracket {opening!r} that is not closed")
        if builder:
            return items[0]
        if opening == "\\{":
            return SetOf(tuple(items))
        if len(items) == 1 and (opening, end) in (("(", ")"), ("[", "]")):
            return items[0]
        return Tuple("(", tuple(items), ")") if opening == "langle" else Tuple(opening, tuple(items), end)

    def function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        while self.token.text in ("_", "^"):
            if self.next().text == "_":
                base = self.nested(self.script)
            else:
                exponent = self.nested(self.script)
        if name == "sqrt":
            return self.command("sqrt")
        if exponent == MINUS_ONE and name in _INVERSE:
            name, exponent = _INVERSE[name], None
        arguments = self.function_arguments()
        if name == "log":
            node: Node = Function("log", (arguments[0], base or Number(Fraction(10))))
        elif name == "cbrt":
            node = Function("root", (arguments[0], Number(Fraction(3))))
        elif base is not None or (len(arguments) != 1 and name not in ("max", "min", "gcd", "lcm")):
            raise ParseError(f"{name} with these arguments")
        else:
            node = Function(name, tuple(arguments))
        return Power(node, exponent) if exponent is not None else node

    def function_arguments(self) -> list[Node]:
        if self.token.text in ("(", "["):
            opening = self.next().text
            self.closers.append(opening)
            items, _ = self.items(CLOSERS[opening])
            self.closers.pop()
            if self.next().text not in CLOSERS[opening]:
                raise ParseError("the argument of a function is not closed")
            return items
        sign = self.accept("-", "+")
        factors = [self.power()]
        while self.starts_factor() and self.token.kind != "function" and self.token.text not in ("(", "["):
            factors.append(self.power())
        while self.accept("/"):
            factors = [Divide(Multiply(tuple(factors)), self.power())]
        node = factors[0] if len(factors) == 1 else Multiply(tuple(factors))
        return [negate(node) if sign and sign.text == "-" else node]


def number(text: str) -> Number:
    """An exact literal; raises `LimitExceeded` above `MAX_LITERAL_DIGITS` digits or a huge exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_LITERAL_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > MAX_LITERAL_DIGITS:
        raise LimitExceeded("a number with too many digits")
    return Number(Fraction(text), len(mantissa.partition(".")[2]) - int(exponent or 0))
