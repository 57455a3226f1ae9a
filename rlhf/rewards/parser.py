r"""From tokens to the tree of an answer: a recursive-descent parser for the mathematics that answers are written in.

answer   := item ((',' | ';' | 'and' | 'or') item)*
item     := set (relation set)* unit?
set      := sum (('\cup' | '\cap' | '\setminus') sum)*
sum      := product (('+' | '-' | '\pm' | '\mp') product)*
product  := factor (('*' | '/' | nothing) factor)*
factor   := ('-' | '+') factor | postfix ('^' exponent)?
postfix  := atom ('!' | '%' | degree sign | subscript)*
"""

import re
from fractions import Fraction

from rlhf.rewards.expression import (
    Divide,
    Ellipsis,
    ListOf,
    Multiply,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    SetOf,
    SetOperation,
    Variable,
    Words,
)
from rlhf.rewards.expression_parser import ExpressionParser
from rlhf.rewards.latex import clean
from rlhf.rewards.limits import MAX_ANSWER_CHARS, LimitExceeded, ParseError
from rlhf.rewards.math_tokens import Token, tokenize
from rlhf.rewards.token_reader import END
from rlhf.rewards.units import known_parts, scaled, unit_of

MAX_NAME_TOKENS = 20
"""Longest unreadable name in front of an equals sign."""
_RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "approx": "≈", "equiv": "~",
              "cong": "~", "sim": "~", "subset": "~", "parallel": "~", "perp": "~"}  # fmt: skip
_OPENING, _CLOSING = frozenset({"(", "[", "{", "\\{"}), frozenset({")", "]", "}", "\\}"})
_SET_OPERATIONS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_ALL_REALS_TEXT = """
all real numbers, all reals, real numbers, the set of all real numbers, all real x, all real numbers x,
all real values of x
"""
_ALL_REALS = frozenset(" ".join(_ALL_REALS_TEXT.split()).split(", "))
_DENIAL = re.compile(r"\b(?:not|no|never|cannot|neither|nor|except|but|unless|without|than|at most|at least|wrong)\b")
_LABEL_ENDS = frozenset({"is", "are", "be", "equals", "equal"})


def parse(text: str, grouping: bool = True) -> Node:
    """The tree of an answer. Raises `ParseError` if it is not read here, `LimitExceeded` if it is too large."""
    if len(text) > MAX_ANSWER_CHARS:
        raise LimitExceeded(f"an answer of {len(text)} characters; at most {MAX_ANSWER_CHARS} are read")
    tokens = tokenize(clean(text), grouping)
    if not tokens:
        raise ParseError("an empty answer")
    try:
        return _AnswerParser(_without_outer_parentheses(tokens)).answer()
    except ParseError:
        value = _behind_equals_sign(tokens)
        if value is None:
            raise
        return _AnswerParser(value).answer()


def _behind_equals_sign(tokens: list[Token]) -> list[Token] | None:
    r"""What the name left of the only equals sign stands for: a name need not be read (`\Pr(A \mid B) = \frac12`)."""
    depth, outside = 0, []
    for place, token in enumerate(tokens):
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth == 0:
            outside.append((place, token))
    places = [place for place, token in outside if token.kind == "symbol" and token.text == "="]
    if depth or len(places) != 1 or not 0 < places[0] <= MAX_NAME_TOKENS or tokens[0].kind == "number":
        return None
    name = [token for place, token in outside if place < places[0]]
    if any(token.kind == "separator" for token in name) or _denies([token.text for token in name]):
        return None
    return tokens[places[0] + 1 :] or None


def _denies(words: list[str]) -> bool:
    """True of words that make `... x = 5` say something else than the value 5: "not x", "at most"."""
    return _DENIAL.search(" ".join(words).lower()) is not None


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


class _AnswerParser(ExpressionParser):
    def answer(self) -> Node:
        node = self.listing()
        if self.accept("over"):
            node = Divide(node, self.set_expression())
        if self.token is not END:
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
            if self.token is END or self.token.text in closers:
                break
            items.append(self.item())
        return items, separators

    def item(self) -> Node:
        if self.token.kind == "word":
            return self.after_words()
        if self.accept("ldots"):
            return Ellipsis()
        self.accept("approx", "=")
        node = self.with_unit(self.relation(self.set_expression()))
        while isinstance(node, Quantity) and known_parts(node.unit) and self.at_relation():
            node = self.with_unit(self.continued(node.value))
        return node

    def continued(self, node: Node) -> Node:
        r"""The chain that goes on behind the first unit of `36\pi cm \approx 113 cm`; `node` is what is before it."""
        before = node if isinstance(node, Relation) else Relation((node,), ())
        after = self.relation(before.sides[-1])
        return Relation(before.sides + after.sides[1:], before.operators + after.operators)

    def at_relation(self) -> bool:
        return self.token.kind in ("symbol", "command") and self.token.text in _RELATIONS

    def after_words(self) -> Node:
        """`the answer is 5`, `area = 5`, or words alone."""
        words = []
        while self.token.kind in ("word", "variable") and not (self.token.kind == "variable" and words[-1:] == ["is"]):
            words.append(self.next().text)
            if words[-1] == "except" and " ".join(words[:-1]).lower() in _ALL_REALS:
                return self.all_reals_except()
        if self.token.text in (":",) or (words[-1] in _LABEL_ENDS and self.token is not END):
            if _denies(words):
                raise ParseError(f"{' '.join(words)!r} before a value")
            self.accept(":", "=")
            return self.item()
        label = " ".join(words).lower()
        if self.at_relation():
            if _denies(words):
                raise ParseError(f"{label!r} before a value")
            return self.with_unit(self.relation(Words(label)))
        return Variable("real numbers") if label in _ALL_REALS else Words(label)

    def all_reals_except(self) -> Node:
        """`all real numbers except x = 1 and 2`, behind "except"."""
        if self.token.text == "for":
            self.next()
        points = tuple(map(_last_side, self.items(())[0]))
        return SetOperation("difference", (Variable("real numbers"), SetOf(points)))

    def relation(self, first: Node) -> Node:
        if self.token.text == ":" and self.token.kind == "symbol" and "\\{" not in self.closers:
            return self.ratio(first)
        if self.token == Token("word", "to", self.token.spaced) and self.ahead().kind == "number":
            return self.ratio(first)
        sides, operators = [first], []
        while self.at_relation():
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
        while self.accept(":") or (self.token.text == "to" and self.next()):
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
        bracket = self.accept("(") if self.ahead().kind == "word" else None
        start = self.position
        while self.token.kind in ("word", "variable") or (words and self.token.text in ("/", "^", "cdot", "*")):
            token = self.next()
            if token.text == "^":
                self.nested(self.script)
            elif token.text == "/" and self.token.kind not in ("word", "variable"):
                raise ParseError("a unit divided by something that is no unit")
            else:
                words.append(token.text)
        if bracket:
            self.expect(")")
        elif words and self.ahead().kind == "word" and self.accept("("):
            self.short_form()
        if not words:
            return node
        unit = unit_of(words)
        if unit is None or self.tokens[start].kind != "word" or node == Variable("A"):  # the article of `a circle`
            raise ParseError(f"{' '.join(words)!r} behind a value")
        scale, unit = scaled(unit)
        if scale != 1:
            node = Multiply((node, Number(Fraction(scale))))
        return Quantity(node, unit) if unit else node

    def short_form(self) -> None:
        """The `mph)` of `miles per hour (mph)`."""
        words = []
        while self.token.kind in ("word", "variable"):
            words.append(self.next().text)
        self.expect(")")
        if unit_of(words) is None:
            raise ParseError(f"{' '.join(words)!r} behind a unit")


def _last_side(node: Node) -> Node:
    if not isinstance(node, Relation):
        return node
    if node.operators not in (("=",), ("!=",)):
        raise ParseError("an inequality where a point was expected")
    return node.sides[-1]
