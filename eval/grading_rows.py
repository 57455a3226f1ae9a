"""Rows of a file to grade: one gold answer and one or more completions a line, with labels where there are any."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `labels` holds what the file says about each completion (True: right), None where it says nothing."""

    line: int
    id: str
    gold: str
    completions: tuple[str, ...]
    prompt: str | None = None
    labels: tuple[bool, ...] | None = None
    several: bool = False
    hostile: bool = False
    ambiguous: bool = False
    category: str = ""

    @property
    def clear(self) -> bool:
        """Counts for accuracy: neither made to break a grader, nor one on which fair graders differ."""
        return not self.hostile and not self.ambiguous

    @property
    def boxed(self) -> bool:
        r"""True if a completion holds a `\boxed` or `\fbox`."""
        return any("boxed" in c or "fbox" in c for c in self.completions)


class UnreadableRow(ValueError):
    """A line that is no row; the message says why."""


def read_rows(path: Path) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows of a JSON-lines file, and (line number, reason) of every line that is none. Empty lines are skipped.

    Raises OSError if the file cannot be read.
    """
    rows, unreadable = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(row_of(line, number))
        except UnreadableRow as error:
            unreadable.append((number, str(error)))
    return rows, unreadable


def row_of(line: bytes, number: int) -> Row:
    """One line read. Raises `UnreadableRow`."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableRow(f"not JSON in UTF-8: {error}") from None
    if not isinstance(record, dict):
        raise UnreadableRow(f"a JSON object was expected, not {type(record).__name__}")
    gold = record.get("gold")
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float)):
        raise UnreadableRow("`gold` is missing or neither a text nor a number")
    prompt = record.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise UnreadableRow("`prompt` is not a text")
    completions = _completions(record)
    return Row(
        line=number,
        id=str(record.get("id", f"line {number}")),
        gold=str(gold),
        completions=completions,
        prompt=prompt,
        labels=_labels(record, len(completions)),
        several="completions" in record,
        hostile=bool(record.get("hostile")),
        ambiguous=bool(record.get("ambiguous")),
        category=str(record.get("cat", "")),
    )


def _completions(record: dict[str, Any]) -> tuple[str, ...]:
    given = [name for name in ("pred", "pred_gen", "completions") if record.get(name) is not None]
    if len(given) != 1:
        raise UnreadableRow(
            f"one of `pred`, `pred_gen` and `completions` is needed; there is {' and '.join(given) or 'none'}"
        )
    value = record[given[0]]
    match given[0]:
        case "pred" if isinstance(value, str):
            return (value,)
        case "pred_gen" if isinstance(value, list) and all(map(_is_repeat, value)):
            return ("".join(text * count for text, count in value),)
        case "completions" if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            return tuple(value)
    wanted = {
        "pred": "a text",
        "pred_gen": "a list of [text, count]",
        "completions": "a list of texts that is not empty",
    }[given[0]]
    raise UnreadableRow(f"`{given[0]}` is not {wanted}")


def _is_repeat(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and isinstance(part[0], str) and type(part[1]) is int


def _labels(record: dict[str, Any], count: int) -> tuple[bool, ...] | None:
    """`verdicts` (one a completion), else `expected`."""
    labels = record.get("verdicts")
    if labels is None:
        labels = record.get("expected")
        if labels is None:
            return None
        labels = [labels] * count
    if not isinstance(labels, list) or len(labels) != count:
        raise UnreadableRow(f"`verdicts` is not a list of one value for each of the {count} completions")
    if any(not isinstance(label, (bool, int)) or label not in (0, 1) for label in labels):
        raise UnreadableRow("`expected` or `verdicts` holds something that is neither true nor false")
    return tuple(map(bool, labels))
