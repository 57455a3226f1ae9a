"""What a row of a benchmark means: the text to ask, the gold answer, the options of a multiple-choice question."""

import math
import re
from collections.abc import Sequence
from string import Formatter
from typing import Any

from eval.entries import DatasetEntry, Gold
from eval.questions import Question
from rlhf.data.errors import DataError
from rlhf.data.rows import Row
from rlhf.rewards.extraction import extract

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_questions(entry: DatasetEntry, rows: Sequence[Row]) -> list[Question]:
    """One question a row, with ids `<name>:<row>`; rows that the entry leaves out keep their number unused.

    Raises DataError naming file, row and field where a field is missing, null, empty or of another type, where the
    gold answer lacks its marker or box, and where the right option is not among the options.
    """
    first = rows[0]
    template = _first_known(entry, first, "question", entry.question)
    answer = _first_known(entry, first, "answer", entry.answer)
    level, subject = _optional(first, entry.level), _optional(first, entry.subject)
    questions = []
    for number, row in enumerate(rows):
        raw = _text(row, answer)
        if entry.leave_out is not None and entry.leave_out in raw:
            continue
        text = _fill(row, template)
        if not text.strip():
            raise DataError(f"{row.at(template)}: the question is empty: fill it in, or get the file anew")
        gold = _gold(row, answer, raw, entry.gold)
        options = [] if entry.options is None else _options(row, entry.options)
        if options and gold not in LETTERS[: len(options)]:
            raise DataError(
                f"{row.at(answer)}: the right option {gold!r} is none of {', '.join(LETTERS[: len(options)])}"
            )
        lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
        questions.append(
            Question(
                id=f"{entry.name}:{number}",
                text="\n".join([text.strip(), *lines]),
                gold=gold,
                scorer="choice" if options else "math",
                columns={"options": options} if options else {},
                level=None if level is None else _text(row, level),
                subject=None if subject is None else _text(row, subject),
            )
        )
    if not questions:
        raise DataError(f"benchmark {entry.name}: leave_out = {entry.leave_out!r} leaves no row")
    return questions


def _first_known(entry: DatasetEntry, row: Row, what: str, spellings: Sequence[str]) -> str:
    """The first of `spellings` whose fields are all in the first row."""
    for spelling in spellings:
        if all(name in row.fields for name in _names(spelling)):
            return spelling
    if len(spellings) == 1:
        return spellings[0]  # reading the row names the field that is missing
    raise DataError(
        f"{row.place}: benchmark {entry.name} wants a {what} in {' or '.join(map(repr, spellings))}, and the fields "
        f"are {', '.join(sorted(row.fields)) or 'none'}"
    )


def _optional(row: Row, spellings: Sequence[str]) -> str | None:
    """The first of `spellings` that the first row has; levels and subjects are for tables, and copies may lack them."""
    return next((spelling for spelling in spellings if spelling in row.fields), None)


def _names(template: str) -> list[str]:
    if "{" not in template:
        return [template]
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]


def _fill(row: Row, template: str) -> str:
    if "{" not in template:
        return _text(row, template)
    return "".join(
        literal + ("" if name is None else _text(row, name)) for literal, name, _, _ in Formatter().parse(template)
    )


def _value(row: Row, field: str) -> Any:
    if field not in row.fields:
        raise DataError(
            f"{row.at(field)}: there is no such field; the row has {', '.join(sorted(row.fields)) or 'none'}"
        )
    if row.fields[field] is None:
        raise DataError(f"{row.at(field)}: is null: fill it in, or get the file anew")
    return row.fields[field]


def _text(row: Row, field: str) -> str:
    """The field as text: a number without a needless `.0`, a list's entries with commas between them."""
    value = _value(row, field)
    entries = value if isinstance(value, list | tuple) else [value]
    return ", ".join(_entry_text(entry, row, field) for entry in entries)


def _entry_text(value: Any, row: Row, field: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{row.at(field)}: is of type {type(value).__name__}, and must be text or a number")
    if not math.isfinite(value):
        raise DataError(f"{row.at(field)}: is {value}, which no completion can match")
    return str(int(value)) if value == int(value) else repr(value)


def _gold(row: Row, field: str, raw: str, gold: Gold) -> str:
    place, answer = row.at(field), raw
    if gold.after is not None:
        if gold.after not in answer:
            raise DataError(f"{place}: the answer lacks the marker {gold.after!r}: {answer[-60:]!r}")
        answer = answer.rpartition(gold.after)[2]
    if gold.before is not None:
        answer = answer.partition(gold.before)[0]
    if gold.rule == "boxed" or (gold.rule == "box_or_verbatim" and "\\boxed" in answer):
        found = extract(answer)
        if found.source != "box":
            raise DataError(f"{place}: the answer has no closed \\boxed{{}}: {answer[-60:]!r}")
        answer = found.text or ""
    if gold.rule == "choice":
        answer = answer.strip().strip("().").upper()
    if not answer.strip():
        raise DataError(f"{place}: the gold answer is empty: fill it in, or get the file anew")
    return answer.strip()


_LABEL = re.compile(r"\s*\(?([A-Z])[).:]\s*")


def _options(row: Row, field: str) -> list[str]:
    """The options without their letters, which must be in order where all have them."""
    value = _value(row, field)
    place = row.at(field)
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{place}: must be a list of 2 to {len(LETTERS)} options")
    options = [_entry_text(option, row, field) for option in value]
    labels = [_LABEL.match(option) for option in options]
    if all(labels):
        letters = "".join(label[1] for label in labels if label)
        if letters != LETTERS[: len(options)]:
            raise DataError(f"{place}: the options' letters are {', '.join(letters)}, and must go from A on")
        options = [option[label.end() :] for option, label in zip(options, labels, strict=True) if label]
    for letter, option in zip(LETTERS, options, strict=False):
        if not option.strip():
            raise DataError(f"{place}: option {letter} is empty")
    return [option.strip() for option in options]
