r"""LaTeX commands as atoms of an expression: `\frac`, `\sqrt`, `\binom`, letters, decorated names, matrices."""

from fractions import Fraction

from rlhf.rewards.atom_parser import AtomParser, number
from rlhf.rewards.expression import Divide, Function, ListOf, Matrix, Node, Number, SetOf, Variable
from rlhf.rewards.limits import ParseError
from rlhf.rewards.math_tokens import Token

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
STARTING_COMMANDS = frozenset({"frac", "binom", "sqrt", "lfloor", "lceil", "langle", "begin", "mathbb"})


class CommandParser(AtomParser):
    """Reads commands and their arguments."""

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
