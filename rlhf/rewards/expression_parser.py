r"""Expressions: the arithmetic part of the grammar in `rlhf.rewards.parser`, down to atoms."""

from rlhf.rewards.command_parser import DECORATIONS, LETTER_COMMANDS, STARTING_COMMANDS, CommandParser
from rlhf.rewards.expression import (
    Add,
    Based,
    Degrees,
    Divide,
    Function,
    ListOf,
    Multiply,
    Node,
    Number,
    PlusMinus,
    Power,
    Variable,
    negate,
)
from rlhf.rewards.limits import MAX_DEPTH, LimitExceeded, ParseError
from rlhf.rewards.notations import base_digits
from rlhf.rewards.token_reader import END


class ExpressionParser(CommandParser):
    """Reads sums, products and powers."""

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
        fraction = factor.value if isinstance(factor, Degrees) else factor
        if mixed and isinstance(fraction, Divide) and token.text == "frac":
            parts = (fraction.numerator, fraction.denominator)
            if all(isinstance(p, Number) and p.value >= 0 and p.value.denominator == 1 for p in parts):
                before.pop()
                number = Add((whole, fraction))
                return number if fraction is factor else Degrees(number)
        return factor

    def number_after_slash(self) -> Node:
        self.expect("/")
        return self.postfix()

    def starts_factor(self) -> bool:
        kind, text, _ = self.token
        if kind in ("number", "variable", "function", "constant"):
            return True
        if kind == "command":
            return text in STARTING_COMMANDS or text in LETTER_COMMANDS or text in DECORATIONS
        if text == "|":
            return self.bars == 0 and "\\{" not in self.closers
        if text == "(" and self.ahead().kind == "word":
            return False  # a unit in parentheses
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
        if self.token.kind in ("variable", "word") and self.token.text.upper() in ("C", "F"):
            self.next()
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
            elif isinstance(node, Number) and self.accept("'"):
                continue  # feet, inches or minutes
            else:
                return node

    def subscripted(self, node: Node) -> Node:
        digits = self.tokens[self.position - 1]
        if digits.text == ")" and self.position > 2:
            digits = self.tokens[self.position - 2]
        self.next()
        subscript = self.subscript_text()
        if isinstance(node, Variable):
            return Variable(f"{node.name}_{subscript}")
        if digits.kind == "number" and isinstance(node, Number) and digits.text.isascii() and digits.text.isdigit():
            return Based(digits.text.lstrip("0") or "0", base_digits(subscript))
        raise ParseError("a subscript of something that is no name")

    def subscript_text(self) -> str:
        if self.token.text != "{":
            return self.next().text
        depth, texts = 0, []
        while True:
            token = self.next()
            if token is END:
                raise ParseError("a subscript that is never closed")
            depth += (token.text == "{") - (token.text == "}")
            if depth > MAX_DEPTH:
                raise LimitExceeded(f"subscripts nested deeper than {MAX_DEPTH}")
            if token.text not in "{}":
                texts.append(token.text)
            if depth == 0:
                return "".join(texts)
