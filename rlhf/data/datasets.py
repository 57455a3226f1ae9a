"""What a dataset's row means: its prompt, its gold answer, and the columns that reward functions are given.

The gold answer is `columns["answer"]`, as written and stripped; a different column of that name is replaced by it. All
other fields but the prompt keep their names.
"""

import math
from collections.abc import Mapping
from typing import Any

from rlhf.config.data import DatasetConfig
from rlhf.data.errors import DataError
from rlhf.data.formatting import Text, check_messages
from rlhf.data.rows import Row


def read_prompt(row: Row, config: DatasetConfig) -> Text:
    """The row's prompt, in TRL's standard (a string) or conversational form (a list of messages).

    Raises DataError naming file, row and field where it is missing, empty or of another type.
    """
    value = _required(row, config.prompt_field, "prompt_field")
    place = row.at(config.prompt_field)
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{place}: the prompt is empty")
        return config.prompt_template.replace("{prompt}", value)
    if not isinstance(value, list):
        raise DataError(
            f"{place}: the prompt is of type {type(value).__name__}, and must be text or a list of messages"
        )
    if config.prompt_template != "{prompt}":
        raise DataError(
            f"{place}: data.prompt_template is for string prompts, and this one is a conversation: remove it"
        )
    return check_messages(value, place)


def read_columns(row: Row, config: DatasetConfig) -> Mapping[str, Any]:
    """All fields but the prompt, and the gold answer under `answer` where `answer_field` is set.

    Raises DataError naming file, row and field where the answer is missing, empty, or without its marker.
    """
    columns = {name: value for name, value in row.fields.items() if name != config.prompt_field}
    if config.answer_field is not None:
        columns["answer"] = _gold(row, config.answer_field, config.answer_after)
    return columns


def _gold(row: Row, field: str, marker: str | None) -> str:
    value, place = _required(row, field, "answer_field"), row.at(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: the answer is of type {type(value).__name__}, and must be text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{place}: the answer is {value}, which no completion can match")
    answer = str(value)
    if marker is not None:
        if marker not in answer:
            raise DataError(f"{place}: the answer lacks the marker {marker!r} of data.answer_after: {answer[-60:]!r}")
        answer = answer.rpartition(marker)[2]
    if not answer.strip():
        raise DataError(f"{place}: the answer is empty" + (f" after {marker!r}" if marker else ""))
    return answer.strip()


def _required(row: Row, field: str, setting: str) -> Any:
    if field not in row.fields:
        there = ", ".join(sorted(row.fields)) or "none"
        raise DataError(
            f"{row.at(field)}: there is no such field: set data.{setting} to one of its fields: {there}"
        )
    if row.fields[field] is None:
        raise DataError(f"{row.at(field)}: is null: fill it in, or remove the row")
    return row.fields[field]
