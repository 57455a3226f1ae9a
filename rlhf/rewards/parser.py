r"""From tokens to the tree of an answer: a recursive-descent parser for the mathematics that answers are written in.

answer   := item ((',' | ';' | 'and' | 'or') item)*
item     := set (relation set)* unit?
set      := sum (('\cup' | '\cap' | '\setminus') sum)*
sum      := product (('+' | '-' | '\pm' | '\mp') product)*
product  := factor (('*' | '/' | nothing) factor)*
factor   := ('-' | '+') factor | postfix ('^' exponent)?
postfix  := atom ('!' | '%' | degree sign | subscript)*
"""

from collections.abc import Callable
from fractions import Fraction

from rlhf.rewards.expression import (
    MINUS_ONE,
    Add,
    Based,
    Constant,
    Degrees,
    Divide,
    Ellipsis,
    Function,
    ListOf,
    Matrix,
    Multiply,
    Node,
    Number,
    PlusMinus,
    Power,
    Quantity,
    Ratio,
    Relation,
    SetOf,
    SetOperation,
    Tuple,
    Variable,
    Words,
    negate,
)
from rlhf.rewards.latex import Token, clean, tokenize
from rlhf.rewards.limits import MAX_ANSWER_CHARS, MAX_DEPTH, MAX_LITERAL_DIGITS, LimitExceeded, ParseError
from rlhf.rewards.units import unit_of

_END = Token("end", "")
_RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "approx": "=", "equiv": "~",
              "cong": "~", "sim": "~", "subset": "~", "parallel": "~", "perp": "~"}  # fmt: skip
_SET_OPERATIONS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "langle": ("rangle",), "\\{": ("\\}",)}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}
_DECORATIONS = frozenset(
    {"overline", "bar", "vec", "hat", "widehat", "overrightarrow", "overleftrightarrow", "underline", "tilde", "dot"}
)
_NAMED_SETS = {"R": "real numbers"}
_LETTER_COMMANDS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell angle triangle hbar odot clubsuit diamondsuit
heartsuit spadesuit star square aleph nabla partial
"""
_GREEK_OR_SIGN = frozenset(_LETTER_COMMANDS.split())
_LABEL_ENDS = frozenset({"is", "are", "be", "equals", "equal"})


def parse(text: str, grouping: bool = True) -> Node:
    """The tree of an answer. Raises `ParseError` if it is not read here, `LimitExceeded` if it is too large."""
    if len(text) > MAX_ANSWER_CHARS:
        raise LimitExceeded(f"an answer of {len(text)} characters; at most {MAX_ANSWER_CHARS} are read")
    tokens = tokenize(clean(text), grouping)
    if not tokens:
        raise ParseError("an empty answer")
    return _Parser(_without_outer_parentheses(tokens)).answer()


def _without_outer_parentheses(tokens: list[Token]) -> list[Token]:
    """((((5)))) without its doubled parentheses, however many there are; one pair is kept."""
    match: dict[int, int] = {}
    stack: list[int] = []
    for index, token in enumerate(tokens):
        if token.text == "(":
            stack.append(index)
        elif token.text == ")" and stack:
            match[stack.pop()] = index
    doubled, last = 0, len(tokens) - 1
    while match.get(doubled) == last - doubled and match.get(doubled + 1) == last - doubled - 1:
        doubled += 1
    return tokens[doubled : last - doubled + 1]


class _Parser:
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
        return self.tokens[self.position] if self.position < len(self.tokens) else _END

    def ahead(self, count: int = 1) -> Token:
        place = self.position + count
        return self.tokens[place] if place < len(self.tokens) else _END

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

    # lists, relations, sets

    def answer(self) -> Node:
        node = self.listing()
        if self.accept("over"):
            node = Divide(node, self.set_expression())
        if self.token is not _END:
            raise ParseError(f"{self.token.text!r} not expected here")
        return node

    def listing(self, closers: tuple[str, ...] = ()) -> Node:
        items, separators = self.items(closers)
        return items[0] if len(items) == 1 else ListOf(tuple(items), "or" in separators)

    def items(self, closers: tuple[str, ...]) -> tuple[list[Node], set[str]]:
        items = [self.item()]
        separators = set()
        while self.token.kind == "separator":
            while self.token.kind == "separator":
                separators.add(self.next().text)
            if self.token is _END or self.token.text in closers:
                break
            items.append(self.item())
        return items, separators

    def item(self) -> Node:
        if self.token.kind == "word":
            return self.after_words()
        if self.accept("ldots"):
            return Ellipsis()
        self.accept("approx", "=")
        return self.with_unit(self.relation(self.set_expression()))

    def after_words(self) -> Node:
        """`the answer is 5`, `area = 5`, or words alone."""
        words = []
        while self.token.kind in ("word", "variable") and not (self.token.kind == "variable" and words[-1:] == ["is"]):
            words.append(self.next().text)
        if self.token.text in (":",) or (words[-1] in _LABEL_ENDS and self.token is not _END):
            self.accept(":", "=")
            return self.item()
        label: Node = Words(" ".join(words).lower())
        if self.token.kind in ("symbol", "command") and self.token.text in _RELATIONS:
            return self.with_unit(self.relation(label))
        return label

    def relation(self, first: Node) -> Node:
        if self.token.text == ":" and self.token.kind == "symbol" and "\\{" not in self.closers:
            return self.ratio(first)
        sides, operators = [first], []
        while self.token.kind in ("symbol", "command") and self.token.text in _RELATIONS:
            operators.append(_RELATIONS[self.next().text])
            if operators[-1] in "<>" and self.accept("="):
                operators[-1] += "="
            if self.token.kind == "word":
                sides.append(self.after_words())
            else:
                sides.append(self.set_expression())
        return Relation(tuple(sides), tuple(operators)) if operators else first

    def ratio(self, first: Node) -> Node:
        parts, clock = [first], False
        while self.accept(":"):
            clock = self.token.kind == "number" and len(self.token.text) == 2
            parts.append(self.sum())
        return Ratio(tuple(parts), clock)

    def set_expression(self) -> Node:
        node = self.sum()
        while self.token.kind == "command" and self.token.text in _SET_OPERATIONS:
            name = _SET_OPERATIONS[self.next().text]
            right = self.sum()
            if isinstance(node, SetOperation) and node.name == name != "difference":
                node = SetOperation(name, (*node.parts, right))
            else:
                node = SetOperation(name, (node, right))
        return node

    def with_unit(self, node: Node) -> Node:
        words: list[str] = []
        start = self.position
        while self.token.kind in ("word", "variable") or (words and self.token.text in ("/", "^", "cdot", "*")):
            token = self.next()
            if token.text == "^":
                self.nested(self.script)
            elif token.text == "/" and self.token.kind not in ("word", "variable"):
                raise ParseError("a unit divided by something that is no unit")
            else:
                words.append(token.text)
        if not words:
            return node
        unit = unit_of(words)
        if unit is None or self.tokens[start].kind != "word":
            raise ParseError(f"{' '.join(words)!r} behind a value")
        return Quantity(node, unit)

    # arithmetic

    def sum(self) -> Node:
        return self.nested(self._sum)

    def _sum(self) -> Node:
        terms = []
        sign = self.accept("+", "-", "pm", "mp", "minus")
        while True:
            term = self.product()
            terms.append(self.signed(sign.text, term) if sign else term)
            sign = self.accept("+", "-", "pm", "mp", "minus")
            if sign is None:
                return terms[0] if len(terms) == 1 else Add(tuple(terms))
            if self.accept("ldots"):
                raise ParseError("dots inside a sum")

    def signed(self, sign: str, node: Node) -> Node:
        if sign == "+":
            return node
        if sign in ("-", "minus"):
            return negate(node)
        if sign == "pm":
            self.signs += 1
        return Multiply((PlusMinus(max(self.signs, 1), sign == "mp"), node))

    def product(self) -> Node:
        node = self.factor()
        factors: list[Node] = [node]
        while True:
            if self.accept("*", "cdot", "times"):
                factors.append(self.factor())
            elif self.accept("/", "div"):
                left = factors[0] if len(factors) == 1 else Multiply(tuple(factors))
                factors = [Divide(left, self.factor())]
            elif self.starts_factor():
                factors.append(self.juxtaposed(factors))
            else:
                return factors[0] if len(factors) == 1 else Multiply(tuple(factors))

    def juxtaposed(self, before: list[Node]) -> Node:
        """The next factor of an implicit product; an integer before a numeric fraction makes a mixed number."""
        whole, token, spaced = before[-1], self.token, self.token.spaced
        mixed = (
            isinstance(whole, Number)
            and whole.value.denominator == 1
            and self.tokens[self.position - 1].kind == "number"
        )
        if token.kind == "number":
            if mixed and spaced and self.ahead().text == "/" and self.ahead(2).kind == "number":
                fraction = Divide(self.postfix(), self.number_after_slash())
                before.pop()
                return Add((whole, fraction))
            if mixed:
                raise ParseError("two numbers side by side")
        factor = self.factor()
        if mixed and isinstance(factor, Divide) and token.text == "frac":
            parts = (factor.numerator, factor.denominator)
            if all(isinstance(p, Number) and p.value >= 0 and p.value.denominator == 1 for p in parts):
                before.pop()
                return Add((whole, factor))
        return factor

    def number_after_slash(self) -> Node:
        self.expect("/")
        return self.postfix()

    def starts_factor(self) -> bool:
        kind, text, _ = self.token
        if kind in ("number", "variable", "function", "constant"):
            return True
        if kind == "command":
            return text in _STARTING_COMMANDS or text in _GREEK_OR_SIGN or text in _DECORATIONS
        if text == "|":
            return self.bars == 0 and "\\{" not in self.closers
        return kind == "symbol" and text in ("(", "[", "{")

    def factor(self) -> Node:
        signs = 0
        while sign := self.accept("-", "+", "minus"):
            signs += sign.text != "+"
        node = self.power()
        return negate(node) if signs % 2 else node

    def power(self) -> Node:
        base = self.postfix()
        if not self.accept("^"):
            return base
        if self.accept("circ") or self.degree_group():
            return self.after_degrees(Degrees(base))
        if self.accept("'"):
            return base
        base = Power(base, self.nested(self.script))
        while self.accept("!"):
            base = Function("factorial", (base,))
        return self.percent(base)

    def after_degrees(self, node: Node) -> Node:
        self.accept("C", "F")
        return node

    def degree_group(self) -> bool:
        if self.token.text == "{" and self.ahead().text == "circ" and self.ahead(2).text == "}":
            self.position += 3
            return True
        return False

    def script(self) -> Node:
        """An exponent or subscript: a brace group, or one signed value (`x^12` is x^1 2 in TeX; people mean 12)."""
        if self.token.text == "{":
            return self.group()
        sign = self.accept("-", "+")
        node = self.power() if self.token.text != "(" else self.postfix()
        return negate(node) if sign and sign.text == "-" else node

    def group(self) -> Node:
        self.expect("{")
        self.closers.append("}")
        node = self.nested(self.group_content)
        self.closers.pop()
        self.expect("}")
        return node

    def group_content(self) -> Node:
        node = self.set_expression()
        if self.accept("over"):
            return Divide(node, self.set_expression())
        if self.accept("choose"):
            return Function("binomial", (node, self.set_expression()))
        if self.token.text != "}":
            items = [self.relation(node)]
            while self.token.kind == "separator":
                self.next()
                items.append(self.item())
            return items[0] if len(items) == 1 else ListOf(tuple(items))
        return node

    def percent(self, node: Node) -> Node:
        while self.accept("%", "\\%"):
            pass
        return node

    def postfix(self) -> Node:
        node = self.atom()
        while True:
            if self.accept("!"):
                node = Function("factorial", (node,))
            elif self.accept("%", "\\%"):
                continue
            elif self.accept("circ"):
                node = Degrees(node)
            elif self.token.text == "_" and self.token.kind == "symbol":
                node = self.subscripted(node)
            elif self.token.text == "'" and isinstance(node, Variable):
                self.next()
                node = Variable(node.name + "'")
            else:
                return node

    def subscripted(self, node: Node) -> Node:
        digits = self.tokens[self.position - 1]
        self.next()
        subscript = self.subscript_text()
        if isinstance(node, Variable):
            return Variable(f"{node.name}_{subscript}")
        if digits.kind == "number" and isinstance(node, Number) and digits.text.isascii() and digits.text.isdigit():
            return Based(digits.text.lstrip("0") or "0", subscript)
        raise ParseError("a subscript of something that is no name")

    def subscript_text(self) -> str:
        if self.token.text != "{":
            return self.next().text
        depth, texts = 0, []
        while True:
            token = self.next()
            if token is _END:
                raise ParseError("a subscript that is never closed")
            depth += (token.text == "{") - (token.text == "}")
            if depth > MAX_DEPTH:
                raise LimitExceeded(f"subscripts nested deeper than {MAX_DEPTH}")
            if token.text not in "{}":
                texts.append(token.text)
            if depth == 0:
                return "".join(texts)

    # atoms

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
        closing = _CLOSERS[opening]
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
            items, _ = self.items(_CLOSERS[opening])
            self.closers.pop()
            if self.next().text not in _CLOSERS[opening]:
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
        if name in _DECORATIONS:
            start = self.position
            self.argument()
            return Variable(name + " " + "".join(t.text for t in self.tokens[start : self.position]))
        if name in _GREEK_OR_SIGN:
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
        if kind not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "smallmatrix", "array"):
            raise ParseError(f"the environment {kind}")
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while True:
            row.append(self.listing())
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
        return Matrix("determinant" if kind == "vmatrix" else "matrix", tuple(rows))

    def environment_name(self) -> str:
        self.expect("{")
        name = ""
        while (token := self.next()).kind in ("variable", "word"):
            name += token.text
        if token.text != "}":
            raise ParseError("an environment without a name")
        return name


_STARTING_COMMANDS = frozenset({"frac", "binom", "sqrt", "lfloor", "lceil", "langle", "begin", "mathbb"})


def number(text: str) -> Number:
    """An exact literal; raises `LimitExceeded` above `MAX_LITERAL_DIGITS` digits or a huge exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_LITERAL_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > MAX_LITERAL_DIGITS:
        raise LimitExceeded("a number with too many digits")
    return Number(Fraction(text))
