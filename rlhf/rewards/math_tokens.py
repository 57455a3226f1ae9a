"""From a cleaned answer (`rlhf.rewards.latex.clean`) to tokens, in a single linear pass."""

import re
from itertools import pairwise
from typing import NamedTuple

from rlhf.rewards.limits import MAX_DEPTH, LimitExceeded, ParseError
from rlhf.rewards.units import SHORT_UNITS, SHORT_WORDS


class Token(NamedTuple):
    """`kind`: number, variable, word, function, constant, command, separator, symbol. `spaced`: behind white space."""

    kind: str
    text: str
    spaced: bool = False


_FUNCTION_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch ln log exp sqrt
max min gcd lcm asin acos atan lg abs floor ceil cbrt
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_SPELLINGS = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log"}
_BARE_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "oo": "infinity"}
_TEXT_COMMANDS = frozenset(
    {"text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsc", "mbox", "hbox"}
)
_FONT_COMMANDS = frozenset(
    {"mathrm", "operatorname", "mathbf", "mathit", "mathsf", "mathcal", "mathtt", "mathnormal", "emph", "bm", "bold"}
)
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "dots": "ldots",
    "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "bullet": "cdot", "ast": "cdot", "colon": ":",
    "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|", "vert": "|",
    "degree": "circ", "land": "and", "lor": "or", "backslash": "setminus", "prime": "'", "mid": "|", "wedge": "and",
    "vee": "or", "lparen": "(", "rparen": ")", "infin": "infty", "union": "cup",
    "nicefrac": "frac", "sfrac": "frac", "cr": "\\\\", "bar": "overline", "overrightarrow": "vec", "widehat": "hat",
    "bigcup": "cup", "bigcap": "cap", "smallsetminus": "setminus",
}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<command>\\[A-Za-z]+\*?)|(?P<escaped>\\.)|(?P<grouped>\d{1,3}(?:,\d{3})+(?![\d]|,\d)(?:\.\d+)?)"
    r"|(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\d.A-Za-z]))?)|(?P<letters>[A-Za-z]+)|(?P<power>\*\*)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_ABBREVIATION = re.compile(r"\.([A-Za-z])(?![A-Za-z])\.?")
_OPENING, _CLOSING = frozenset({"(", "[", "\\{"}), frozenset({")", "]", "\\}"})


def tokenize(text: str, grouping: bool = True) -> list[Token]:
    """Tokens of a cleaned answer. With `grouping`, `1,234` outside brackets is one number, else a list of two.

    Raises `ParseError` or `LimitExceeded`.
    """
    tokens: list[Token] = []
    _tokenize(text, grouping, False, 0, tokens)
    return _times_between_numbers(tokens)


def _tokenize(text: str, grouping: bool, words_only: bool, depth: int, tokens: list[Token]) -> None:
    if depth > MAX_DEPTH:
        raise LimitExceeded(f"text nested deeper than {MAX_DEPTH}")
    position, spaced, brackets = 0, False, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"unreadable character {text[position]!r}")
        kind, value = match.lastgroup, match.group()
        if kind == "grouped" and (brackets or not grouping):
            value = value[: value.index(",")]
            kind = "number"
            position += len(value)
        else:
            position = match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "command":
            name = value[1:].rstrip("*")
            if name in _TEXT_COMMANDS or name in _FONT_COMMANDS:
                content, position = braced(text, position)
                # the font of a single letter says nothing; in longer runs it marks a name
                _tokenize(content, grouping, name in _TEXT_COMMANDS or len(content.strip()) > 1, depth + 1, tokens)
                spaced = True
                continue
            tokens.append(_command(name, spaced))
        elif kind == "letters":
            abbreviation = _ABBREVIATION.match(text, position) if len(value) == 1 else None
            if abbreviation:
                # p.m. is one word
                position = abbreviation.end()
                tokens.append(Token("word", (value + abbreviation[1]).lower(), spaced))
            else:
                _letters(value, spaced, words_only, tokens)
        elif kind in ("number", "grouped"):
            tokens.append(Token("number", value.replace(",", ""), spaced))
        elif kind == "power":
            tokens.append(Token("symbol", "^", spaced))
        elif kind == "escaped" and value == "\\&":
            tokens.append(Token("separator", "and", spaced))
        elif not (words_only and value == "."):
            tokens.append(Token("separator" if value in ",;" else "symbol", value, spaced))
        last = tokens[-1].text if tokens else ""
        if kind in ("escaped", "other", "command"):
            brackets += (last in _OPENING) - (last in _CLOSING)
        spaced = False


def _command(name: str, spaced: bool) -> Token:
    name = _RENAMED.get(name, name)
    if name in _FUNCTIONS and name != "sqrt":
        return Token("function", _SPELLINGS.get(name, name), spaced)
    if name in ("pi", "infty"):
        return Token("constant", _BARE_CONSTANTS[name], spaced)
    if name in ("and", "or"):
        return Token("separator", name, spaced)
    if not name[0].isalpha() or name.startswith("\\"):
        return Token("symbol", name, spaced)
    return Token("command", name, spaced)


def _letters(run: str, spaced: bool, words_only: bool, tokens: list[Token]) -> None:
    lower = run.lower()
    if lower in ("and", "or"):
        tokens.append(Token("separator", lower, spaced))
    elif run in _BARE_CONSTANTS:
        tokens.append(Token("constant", _BARE_CONSTANTS[run], spaced))
    elif lower in _FUNCTIONS and not (words_only and lower in ("min", "sec")):
        if lower in ("min", "sec") and tokens and tokens[-1].kind == "number":
            tokens.append(Token("word", lower, spaced))
        else:
            tokens.append(Token("function", _SPELLINGS.get(lower, lower), spaced))
    elif len(run) == 1:
        tokens.append(Token("word" if words_only and _behind_a_value(tokens) else "variable", run, spaced))
    elif words_only or _is_word(run, spaced, tokens):
        tokens.append(Token("word", lower, spaced))
    else:
        head = next(
            (f for f in ("sin", "cos", "tan", "ln", "log", "pi") if run.startswith(f) and len(run) == len(f) + 1), ""
        )
        if head:
            tokens.append(Token("constant", "pi", spaced) if head == "pi" else Token("function", head, spaced))
        for letter in run[len(head) :]:
            tokens.append(Token("variable", letter, spaced))
            spaced = False


def _behind_a_value(tokens: list[Token]) -> bool:
    """True where a single letter of text is a unit: behind a number or another unit (`5 \\text{ m/s}`)."""
    before = [t for t in tokens[-2:] if t.text != "/"]
    return bool(before) and before[-1].kind in ("number", "word")


def _is_word(run: str, spaced: bool, before: list[Token]) -> bool:
    """True if letters are a word, not a product of variables (`xy`, `abc`) or a function and its argument (`sinx`)."""
    if run.lower() in SHORT_UNITS and before:
        if before[-1].kind == "number" or (spaced and (before[-1].text == "}" or before[-1].kind == "constant")):
            return True
    if len(run) == 2 or run.lower() in SHORT_WORDS:
        return run.lower() in SHORT_WORDS
    if any(run.startswith(f) and len(run) == len(f) + 1 for f in ("sin", "cos", "tan", "ln", "log", "pi")):
        return False
    return len(run) > 4 or any(a >= b for a, b in pairwise(run))


def _times_between_numbers(tokens: list[Token]) -> list[Token]:
    """`3 x 10^5`: a spaced letter x between two numbers is a multiplication sign."""
    for index in range(1, len(tokens) - 1):
        before, token, after = tokens[index - 1 : index + 2]
        if token.kind == "variable" and token.text in "xX" and token.spaced and after.spaced:
            if before.kind == "number" and after.kind == "number":
                tokens[index] = Token("symbol", "*", True)
    return tokens


def braced(text: str, position: int) -> tuple[str, int]:
    """The content of the brace group at `position` (white space skipped), and the position behind it.

    Without a brace, the next character is the content, as in TeX. Raises `ParseError` if the group is not closed.
    """
    while position < len(text) and text[position].isspace():
        position += 1
    if position >= len(text):
        raise ParseError("a command without its argument")
    if text[position] != "{":
        return text[position], position + 1
    depth, start = 0, position + 1
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position], position + 1
        position += 1
    raise ParseError("a brace that is never closed")
