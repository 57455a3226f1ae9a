"""A parser's place in its tokens: looking ahead, accepting, expecting, and how deep it is nested."""

from collections.abc import Callable

from rlhf.rewards.expression import Node
from rlhf.rewards.limits import MAX_DEPTH, LimitExceeded, ParseError
from rlhf.rewards.math_tokens import Token

END = Token("end", "")


class TokenReader:
    """Reads tokens. What they mean is up to the subclasses, each of which adds a level of the grammar."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.signs = 0
        self.closers: list[str] = []

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

    def command(self, name: str) -> Node:
        r"""What the LaTeX command `\name`, which is read, stands for."""
        raise NotImplementedError
