"""Answers that are words: names, options, numbers written out, "no solution"."""

import re

from rlhf.rewards.units import ARTICLES

_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textup|textsc|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname|boxed|fbox)\b"
)
_NOISE = re.compile(r"[\s{}$\\.,;:!~*\"'`]+")
_LABEL = re.compile(r"^(?:the )?(?:final |correct )?answer is ")
_WORDS = re.compile(r"[^\W\d_]+(?:[ \-'/][\w\-'/]+)*")
_MATHEMATICS = re.compile(r"\\[A-Za-z]|[\^_=<>]")


def is_words(text: str) -> bool:
    """True if an answer is words and no mathematics, however it is wrapped."""
    return _MATHEMATICS.search(_WRAPPERS.sub("", text)) is None and _WORDS.fullmatch(plain_words(text)) is not None


_ONES_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
"""
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_ONES, _TENS = _ONES_TEXT.split(), _TENS_TEXT.split()
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_ONES)}
NUMBER_WORDS |= {word: str(10 * value) for value, word in enumerate(_TENS, start=2)}
NUMBER_WORDS |= {
    f"{tens}-{ones}": str(10 * value + digit)
    for value, tens in enumerate(_TENS, start=2)
    for digit, ones in enumerate(_ONES[1:10], start=1)
}
"""Number words up to ninety-nine, and their digits."""
MAX_WORD_CHARS = 60
_NO_SOLUTION_TEXT = """
none, no solution, no solutions, empty set, there is no solution, there are no solutions, no real solution,
no real solutions
"""
_NO_SOLUTION = frozenset(" ".join(_NO_SOLUTION_TEXT.split()).split(", "))
_YES_OR_NO = re.compile(
    r"(yes|no) (?:it|they|he|she|this|that|there|we|you|i) "
    r"(?:is|are|was|were|does|do|did|has|have|can|could|will|would|must|should)(n t| not|not)?"
)
_OPTION = re.compile(r"(?:(?:option|choice|answer) )?\(?([a-z])\)?")

_OPTION_BEFORE = re.compile(
    r"[$\s]*(?:\\(?:text|textbf|textrm|mathrm|mathbf|bf|rm)\s?\{\s?)?\([A-E]\)[\s}~\\:]+(?=[^\s}~\\:])"
)
_OPTION_AND_VALUE = re.compile(r"\(([a-z])\) (?!.*\b(?:or|and|not)\b)[^()]+")


def number_in_words(text: str) -> str | None:
    """The digits of an answer that is one number word up to ninety-nine (`\\text{twelve}`), or None."""
    return None if len(text) > MAX_WORD_CHARS else NUMBER_WORDS.get(plain_words(text).replace(" ", "-"))


def means_no_solution(text: str) -> bool:
    """True if words say that the set of solutions is empty."""
    return plain_words(text) in _NO_SOLUTION


def says_yes_or_no(answer: str, gold: str) -> bool:
    """True if an answer is the gold's yes or no, said in full: "Yes, it is", "No, they do not"; not "No, it is"."""
    match = _YES_OR_NO.fullmatch(plain_words(answer)) if len(answer) <= MAX_WORD_CHARS else None
    return match is not None and match[1] == plain_words(gold) == ("no" if match[2] else "yes")


def without_option(text: str) -> str | None:
    """The value of `(C) 64`, or None where there is no option in front of a value."""
    match = _OPTION_BEFORE.match(text)
    return text[match.end() :] if match else None


def names_option(text: str, letter: str) -> bool:
    """True if an answer names the option `letter`: `B)`, `Option B`, `(b)`, `(B) 42`, and up to E also the bare `b`."""
    words = plain_words(text) if len(text) <= MAX_WORD_CHARS else ""
    match = _OPTION.fullmatch(words) or _OPTION_AND_VALUE.fullmatch(words)
    return match is not None and (text.strip() != words or letter in "ABCDE") and match[1] == letter.casefold()


def plain_words(text: str) -> str:
    """Text for comparison as words: no LaTeX wrappers, case, punctuation, surrounding parentheses or articles."""
    words = _NOISE.sub(_separator, _WRAPPERS.sub(" ", text)).casefold().strip(" ,")
    if words.startswith("(") and words.endswith(")") and "(" not in words[1:-1]:
        words = words[1:-1].strip()
    words = _LABEL.sub("", words)
    head, _, rest = words.partition(" ")  # the A of `A, B` is no article
    return (rest if rest and head in ARTICLES else words).replace(",", "")


def _separator(noise: re.Match[str]) -> str:
    return ", " if "," in noise.group() or ";" in noise.group() else " "
