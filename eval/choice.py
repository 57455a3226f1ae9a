r"""Which option of a multiple-choice question a completion chose. No text is run.

In this order: the last box; the last "answer is" / "Answer:" / "####"; the last capital letter that stands alone. A box
or an answer phrase may name the letter, or hold the value of exactly one option.
"""

import re
from collections.abc import Sequence

from rlhf.data.types import Verdict
from rlhf.rewards.extraction import extract, without_thinking
from rlhf.rewards.grading import compare

SHOWN_CHARS = 200
TAIL_CHARS = 10_000
UNCLOSED = "never closed"
"""In the extraction's reason for a completion that was cut off inside its box: what it would have chosen is unknown."""


def score_choice(completion: str, gold_letter: str, options: Sequence[str]) -> Verdict:
    """Judge a completion against the letter of the right option.

    `options` are the options' values without letters, in order: the first is A. `extracted` is the chosen letter, or
    the answer as written where it names no option. The outcome is `ungradable` where `gold_letter` is none of the
    options' letters. No text raises.
    """
    letters = _letters(options)
    if len(gold_letter) != 1 or gold_letter not in letters:
        return Verdict(
            "ungradable", reason=f"the gold letter {gold_letter[:20]!r} is none of {letters or 'no letters'}"
        )
    found = extract(completion)
    chosen = None
    if found.source in ("box", "phrase") and found.text:
        if _SEVERAL.match(_plain(found.text)):
            return Verdict("wrong", found.text[:SHOWN_CHARS], "several options")
        chosen = _named(found.text, letters, is_whole=found.source == "box") or _by_value(found.text, options)
    if chosen is None and found.source == "box":
        return Verdict("wrong", (found.text or "")[:SHOWN_CHARS], "the box names no option")
    if chosen is None and found.alternative is not None and found.source == "phrase":
        chosen = _by_value(found.alternative, options)
    if chosen is None and UNCLOSED not in found.reason:
        chosen = _last_letter(without_thinking(completion), letters)
    if chosen is None:
        return Verdict("wrong", reason=found.reason or "no option named")
    if chosen == gold_letter:
        return Verdict("right", chosen, "the same option")
    return Verdict("wrong", chosen, "another option")


def _letters(options: Sequence[str]) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]


_DECORATION = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|bf|rm)\b|[{}$*_`]")
_LEAD = re.compile(r"(?:(?:the|correct|option|choice|letter|answer)\b[\s:]*)*", re.IGNORECASE)
_SEVERAL = re.compile(r"\(?[A-Z]\)?\s*(?:,|/|&|\band\b|\bor\b)\s*(?:and\s+|or\s+)?\(?[A-Z](?=\s*(?:[).,;]|$))")
_LETTER = re.compile(r"\(\s*([A-Z])\s*\)|\[\s*([A-Z])\s*\]|([A-Z])(?=\s*(?:[).:,;\]]|$))|([B-HJ-Z])(?![\w'’^+*/=-])")


def _plain(text: str) -> str:
    """`text` without signs of LaTeX and Markdown and without a leading `option` or the like."""
    plain = _DECORATION.sub(" ", text[:SHOWN_CHARS]).strip()
    return plain[_LEAD.match(plain).end() :]


def _named(text: str, letters: str, is_whole: bool) -> str | None:
    """The letter that `text` starts with: `C`, `(C)`, `C) 45`, `option C`. Small letters only where nothing follows.

    A and I also are words, so they need a bracket, a sign or the end behind them.
    """
    rest = _plain(text)
    match = _LETTER.match(rest)
    letter = next((group for group in match.groups() if group), None) if match else None
    if letter is None and is_whole and re.fullmatch(r"\(?[a-z]\)?\.?", rest):
        letter = rest.strip("().").upper()
    return letter if letter is not None and letter in letters else None


def _by_value(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that equals `text`; None if it is none, or more than one."""
    answer = " ".join(text.split())
    equal = [i for i, option in enumerate(options) if compare(answer, " ".join(option.split())).outcome == "right"]
    return _letters(options)[equal[0]] if len(equal) == 1 else None


_ALONE = re.compile(r"(?<![\w'’\\])[A-Z](?![\w'’])")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n])\s*$")
_ARTICLE = re.compile(r"A\s+(?!(?:is|because|since|and|or)\b)[a-z]")
_PRONOUN = re.compile(r"I\s+[a-z]")


def _last_letter(text: str, letters: str) -> str | None:
    """The last of `letters` that stands alone and is no word: `A train leaves`, `I think`."""
    tail = text[-TAIL_CHARS:]
    for match in reversed(list(_ALONE.finditer(tail))):
        starts_sentence = _SENTENCE_START.search(tail[max(0, match.start() - 20) : match.start()])
        is_word = (starts_sentence and _ARTICLE.match(tail, match.start())) or _PRONOUN.match(tail, match.start())
        if match.group() in letters and not is_word:
            return match.group()
    return None
