r"""Atoms of an expression: numbers, names, brackets, functions, LaTeX commands, matrices."""

from collections.abc import Callable
from fractions import Fraction

from rlhf.rewards.expression import (
    MINUS_ONE,
    Constant,
    Divide,
    Function,
    ListOf,
    Matrix,
    Multiply,
    Node,
    Number,
    Power,
    SetOf,
    Tuple,
    Variable,
    negate,
)
from rlhf.rewards.latex import Token
from rlhf.rewards.limits import MAX_DEPTH, MAX_LITERAL_DIGITS, LimitExceeded, ParseError

END = Token("end", "")
RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "approx": "≈", "equiv": "~",
              "cong": "~", "sim": "~", "subset": "~", "parallel": "~", "perp": "~"}  # fmt: skip
CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",), "\\{": ("\\}",)}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}
DECORATIONS = frozenset(
    {"overline", "bar", "vec", "hat", "widehat", "overrightarrow", "overleftrightarrow", "underline", "tilde", "dot"}
)
_ENVIRONMENTS = frozenset(
    {"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array", "cases", "dcases"}
)
_NAMED_SETS = {"R": "real numbers"}
_LETTER_NAMES = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell angle triangle hbar odot clubsuit diamondsuit
heartsuit spadesuit star square aleph nabla partial
"""
LETTER_COMMANDS = frozenset(_LETTER_NAMES.split())


class AtomParser:
    """Reads tokens and atoms. How atoms make expressions, and expressions lists, is up to the subclasses."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.signs = 0
        self.closers: list[str] = []

    # reading tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.position] if self.position < len(self.tokens) else END

    def ahead(self, count: int = 1) -> Token:
        place = self.position + count
        return self.tokens[place] if place < len(self.tokens) else END

    def next(self) -> Token:
        token = self.token
        self.position += 1
        return token

    def accept(self, *texts: str) -> Token | None:
        if self.token.kind in ("symbol", "command", "separator") and self.token.text in texts:
            return self.next()
        return None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise ParseError(f"{text!r} expected, {self.token.text or 'the end'!r} found")

    def nested(self, read: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LimitExceeded(f"an expression nested deeper than {MAX_DEPTH}")
        node = read()
        self.depth -= 1
        return node

    # what the subclasses add

    def items(self, closers: tuple[str, ...]) -> tuple[list[Node], set[str]]:
        """The values up to a closing bracket, and the separators between them."""
        raise NotImplementedError

    def item(self) -> Node:
        """One value of a list."""
        raise NotImplementedError

    def listing(self, closers: tuple[str, ...] = ()) -> Node:
        """A list, or its only value."""
        raise NotImplementedError

    def set_expression(self) -> Node:
        """A sum, or sets joined by operations."""
        raise NotImplementedError

    def relation(self, first: Node) -> Node:
        """`first`, or the relation that it begins."""
        raise NotImplementedError

    def sum(self) -> Node:
        """Terms with signs."""
        raise NotImplementedError

    def power(self) -> Node:
        """An atom with its postfixes and exponent."""
        raise NotImplementedError

    def script(self) -> Node:
        """An exponent or subscript."""
        raise NotImplementedError

    def group(self) -> Node:
        """What stands between braces."""
        raise NotImplementedError

    def subscript_text(self) -> str:
        """The tokens of a brace group, run together."""
        raise NotImplementedError

    def starts_factor(self) -> bool:
        """True if the next token can begin the next factor of an implicit product."""
        raise NotImplementedError

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

    def argument(self) -> Node:
        r"""One argument of a command: a brace group or, as in TeX, one token; of a number one digit (`\frac34`)."""
        if self.token.text == "{":
            return self.group()
        token = self.token
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.position] = Token("number", token.text[1:])
            return number(token.text[0])
        return self.atom()

    def command(self, name: str) -> Node:
        match name:
            case "frac":
                return Divide(self.argument(), self.argument())
            case "binom":
                return Function("binomial", (self.argument(), self.argument()))
            case "sqrt":
                return self.root()
            case "lfloor" | "lceil":
                node = self.sum()
                self.expect("rfloor" if name == "lfloor" else "rceil")
                return Function("floor" if name == "lfloor" else "ceil", (node,))
            case "langle":
                return self.bracketed("langle")
            case "begin":
                return self.matrix()
            case "emptyset":
                return SetOf(())
            case "mathbb":
                letter = self.argument()
                if not isinstance(letter, Variable):
                    raise ParseError("a set that is not named by a letter")
                return Variable(_NAMED_SETS.get(letter.name, f"set {letter.name}"))
        if name in DECORATIONS:
            start = self.position
            self.argument()
            return Variable(name + " " + "".join(t.text for t in self.tokens[start : self.position]))
        if name in LETTER_COMMANDS:
            return Variable(name.removeprefix("var"))
        raise ParseError(f"the command \\{name}")

    def root(self) -> Node:
        degree: Node | None = None
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        if self.token.text == "(":
            self.next()
            radicand = self.bracketed("(")
        elif self.token.kind == "number":
            # \sqrt12 is \sqrt{1}2 in TeX, but nobody who writes it means that
            radicand = self.atom()
        else:
            radicand = self.argument()
        return Function("root", (radicand, degree or Number(Fraction(2))))

    def matrix(self) -> Node:
        kind = self.environment_name()
        if kind == "array" and self.token.text == "{":
            self.subscript_text()
        if kind not in _ENVIRONMENTS:
            raise ParseError(f"the environment {kind}")
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while True:
            row.append(self.listing(("&", "\\\\", "end")))
            if self.accept("&"):
                continue
            rows.append(tuple(row))
            row = []
            if self.accept("\\\\") and self.token.text != "end":
                continue
            break
        if self.next().text != "end" or self.environment_name() != kind:
            raise ParseError("a matrix that is not closed")
        if len({len(r) for r in rows}) != 1:
            raise ParseError("a matrix with rows of different lengths")
        if kind in ("cases", "dcases") and all(len(r) == 1 for r in rows):
            return ListOf(tuple(r[0] for r in rows))
        return Matrix("determinant" if kind == "vmatrix" else "matrix", tuple(rows))

    def environment_name(self) -> str:
        self.expect("{")
        name = ""
        while (token := self.next()).kind in ("variable", "word"):
            name += token.text
        if token.text != "}":
            raise ParseError("an environment without a name")
        return name


STARTING_COMMANDS = frozenset({"frac", "binom", "sqrt", "lfloor", "lceil", "langle", "begin", "mathbb"})


def number(text: str) -> Number:
    """An exact literal; raises `LimitExceeded` above `MAX_LITERAL_DIGITS` digits or a huge exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_LITERAL_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > MAX_LITERAL_DIGITS:
        raise LimitExceeded("a number with too many digits")
    return Number(Fraction(text))
