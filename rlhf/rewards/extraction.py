r"""Which part of a completion is its answer.

Text inside <think> does not count. Then, in this order: the last non-empty box; the last "answer is", "Answer:",
"####" or <answer>; the last number. Everything is one linear pass, however many boxes, braces or phrases there are.
"""

import re
from typing import NamedTuple


class Extraction(NamedTuple):
    """`source`: box, phrase, number or none. `alternative`: the number to fall back on where a phrase is a sentence."""

    text: str | None
    source: str
    reason: str = ""
    alternative: str | None = None


MIN_ECHO_CHARS = 10
"""A shorter prompt may be part of an answer by chance."""


def extract(completion: str, prompt: str | None = None) -> Extraction:
    """The answer of a completion; an echo of `prompt` is not part of it."""
    text = completion
    if prompt and len(prompt.strip()) >= MIN_ECHO_CHARS:
        text = text.replace(prompt.strip(), " ")
    text = without_thinking(text)
    boxes, unclosed, last_empty = _boxes(text)
    if boxes:
        return Extraction(boxes[-1], "box")
    if unclosed:
        return Extraction(None, "none", "no answer found: the box is never closed")
    if last_empty >= 0:
        # an instruction repeated ("put it within \boxed{}") is no answer, but one may follow it
        text = text[last_empty:]
    return _phrase(text) or _last_value(text)


_THINK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)


def without_thinking(text: str) -> str:
    """The text outside <think>...</think>; an unopened block reaches back to the start, an unclosed one to the end."""
    if "think" not in text and "THINK" not in text:
        return text
    kept: list[str] = []
    start: int | None = 0
    for tag in _THINK.finditer(text):
        if tag[1]:
            if start is not None:
                kept.clear()
            start = tag.end()
        elif start is not None:
            kept.append(text[start : tag.start()])
            start = None
    if start is not None:
        kept.append(text[start:])
    return " ".join(kept)


_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s{0,3}(-?\d[\d.,/]{0,40}|-?\\frac[^$\n]{1,60}|[A-Za-z](?![A-Za-z]))")


def _boxes(text: str) -> tuple[list[str], bool, int]:
    """The last closed box with content (a list of one or none), whether a box stays open, the end of the last empty."""
    last: tuple[int, int] | None = None
    opened: list[int | None] = []  # per open brace: where the content of its box starts, None if it opens no box
    inside = 0
    pending = -1
    last_empty = -1
    unclosed = False
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "{":
            is_box = pending >= 0 and not text[pending : match.start()].strip()
            pending = -1
            opened.append(match.end() if is_box else None)
            inside += is_box
        elif token == "}":
            start = opened.pop() if opened else None
            if start is not None:
                inside -= 1
                if (
                    not text[start : min(match.start(), start + 100)].strip()
                    and not text[start : match.start()].strip()
                ):
                    last_empty = match.end()
                elif last is None or start < last[0] or start >= last[1]:
                    last = (start, match.start())
        elif len(token) > 2:
            pending = match.end()
            bare = _UNBRACED.match(text, pending)
            if bare:
                last = (bare.start(1), bare.end(1))
            elif not _next_is_brace(text, pending):
                unclosed = True
    box = text[last[0] : last[1]].strip() if last else ""
    return ([box] if box else []), unclosed or inside > 0, last_empty


def _next_is_brace(text: str, position: int) -> bool:
    while position < len(text) and text[position].isspace():
        position += 1
    return text[position : position + 1] == "{"


_PHRASE = re.compile(
    r"answers?\s{0,3}\**\s{0,3}(?:is|are|:|=)(?![A-Za-z])|answer(?P<heading>[^\w\n]{0,6}\n)|####|<answer>",
    re.IGNORECASE,
)
_HEADING_START = re.compile(r"\W*(?:final )?$", re.IGNORECASE)
_DISPLAY_START = re.compile(r"(?:\\\[|\$\$)\s*\n\s*")
_ANSWER_END = re.compile(r"</answer>|<\|", re.IGNORECASE)
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])|__")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_PHRASE_CHARS = 2000


def _phrase(text: str) -> Extraction | None:
    last = None
    for match in _PHRASE.finditer(text):
        if match["heading"] is None or _starts_line(text, match.start()):
            last = match
    if last is None:
        return None
    tail = text[last.end() : last.end() + _PHRASE_CHARS]
    stripped = tail.lstrip(" \t\r\n:*=_>")
    if stripped.startswith("- ") and "\n" in tail[: len(tail) - len(stripped)]:
        stripped = stripped[1:].lstrip()  # an item of a list, not a minus sign
    tail = stripped[match.end() :] if (match := _DISPLAY_START.match(stripped)) else stripped
    end = _ANSWER_END.search(tail)
    if end:
        tail = tail[: end.start()]
    line = tail.strip().split("\n", 1)[0]
    line = _BOLD.sub("", line).strip(" `")
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0].strip() if not line.startswith("\\") else line
    if not sentence:
        return Extraction(None, "none", "no answer found behind the answer phrase")
    return Extraction(sentence, "phrase", alternative=_first_value(sentence))


def _starts_line(text: str, position: int) -> bool:
    """True if only signs and "final" stand before `position` in its line."""
    before = text[max(0, position - 20) : position]
    line = before.rpartition("\n")[2]
    return ("\n" in before or len(before) < 20) and _HEADING_START.match(line) is not None


_NUMBER = re.compile(r"(?<![\w.)\]}-])-\s?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\.\d+")
_ANOTHER_MEANING = re.compile(
    r"\b(?:not|never|except|but|than|at most|at least|between|under|over|below|above|neither|nor|either|one of)\b"
    r"\D{0,30}$",
    re.IGNORECASE,
)
_ANOTHER_VALUE = re.compile(
    r"[\s$]*(?:(?:times|plus|minus|divided by|multiplied by|over|more than|less than)\b\D{0,5}"
    r"|\D{0,60}?\b(?:or|maybe|perhaps|possibly|alternatively)\b\D{0,60})?\d",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:for|when|where|if|since|because|as|with|which)\b", re.IGNORECASE)
_MATH = re.compile(r"\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)")


def _first_value(sentence: str) -> str | None:
    """The first mathematics or number of a sentence (with an equals sign, of what is behind the last that is not part
    of a condition); None where it is one of several ("5 or 6") or part of something else ("5 times 2")."""
    math = _MATH.match(sentence)
    if math:
        return None if _ANOTHER_VALUE.match(sentence, math.end()) else math[1] or math[2]
    condition = _CONDITION.search(sentence)
    head = sentence[: condition.start()] if condition else sentence
    start = head.rfind("=") + 1 if _NUMBER.search(head) else sentence.rfind("=") + 1
    number = _NUMBER.search(sentence, start)
    if number is None or _ANOTHER_MEANING.search(sentence[max(start, number.start() - 40) : number.start()]):
        return None
    if _ANOTHER_VALUE.match(sentence, number.end()):
        return None
    return number.group().rstrip(",")


_TAIL_CHARS = 400


def last_number(text: str) -> str | None:
    """The last number, with its sign; all of it where commas glue numbers (`1,2,3` is a list). None without one."""
    place = _last_number_span(text)
    return None if place is None else place[0]


def _last_value(text: str) -> Extraction:
    place = _last_number_span(text)
    if place is None:
        return Extraction(None, "none", "no answer found")
    number, start, end = place
    return Extraction(_math_around(text, start, end) or number, "number", alternative=number)


def _last_number_span(text: str) -> tuple[str, int, int] | None:
    """The last number, and the places of its first and last digit."""
    backwards = _NUMBER_BACKWARDS.search(text[::-1])
    if backwards is None:
        return None
    start, position = len(text) - backwards.end(), len(text) - 1 - backwards.start()
    number = text[start : position + 1].lstrip(",")
    before = text[max(0, start - _TAIL_CHARS) : start].replace("\u2212", "-")
    fraction = _NUMERATOR.search(before)
    if fraction and number.isdigit():
        number, before = f"{fraction[1]}/{number}", before[: fraction.start()]
    if before.endswith("-") and not _SUBTRACTION.search(before):
        number = "-" + number
    return number, start, position


_NUMBER_BACKWARDS = re.compile(r"[0-9][0-9.,]*")
_NUMERATOR = re.compile(r"(\d{1,50})/$")
_SUBTRACTION = re.compile(r"(?:[\d)\]}]\s?|[^\W\d])-$")


def _math_around(text: str, start: int, end: int) -> str | None:
    """The `$...$` or `\\(...\\)` of one line that a number stands in, or None."""
    low, high = max(0, start - _TAIL_CHARS), min(len(text), end + _TAIL_CHARS)
    line_start = text.rfind("\n", low, start) + 1 or low
    line_end = text.find("\n", end, high)
    line = text[line_start : line_end if line_end >= 0 else high]
    for match in _MATH.finditer(line):
        if match.start() <= start - line_start and end - line_start < match.end():
            return match[1] or match[2]
    return None
