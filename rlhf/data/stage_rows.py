"""Rows for the stages before reinforcement learning: to train on, and held out."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.config.data import ARITHMETIC_HELD_OUT, ArithmeticConfig, RowsConfig
from rlhf.data.arithmetic import held_out_problems, training_problem
from rlhf.data.errors import DataError
from rlhf.data.generated import Draws, Problem, is_held_out
from rlhf.data.order import PromptOrder
from rlhf.data.rows import Row, read_rows
from rlhf.data.seeds import derive_seed

MakeFields = Callable[[Problem, Draws], Mapping[str, Any]]
"""The fields of a row from a generated problem; draws belong to the row alone."""
PROMPT_FIELDS = ("prompt", "text", "messages", "chosen")
HELD_OUT_SEED = 0  # whatever a run's seed: runs are measured on the same rows


def stage_rows(
    data: ArithmeticConfig | RowsConfig,
    held_out_data: RowsConfig | None,
    *,
    train: int,
    held_out: int,
    seed: int,
    make: MakeFields,
) -> tuple[Sequence[Row], Sequence[Row]]:
    """(rows to train on, at most `held_out` rows that are not trained on).

    Generated: at most `train` rows of the training part, and rows of the held-out fifth. A dataset: all its rows where
    `held_out_data` is given or `held_out` is 0; else four fifths of its prompts, and of the others a sample, the
    same for every run. All rows of a prompt are on one side.

    Raises DataError as `read_rows` does, and where a side would be empty.
    """
    if isinstance(data, ArithmeticConfig):
        kept = [
            _generated(data, "train", index, seed, training_problem(data.level, seed, index), make)
            for index in range(min(train, data.size))
        ]
        problems = held_out_problems(data.level, min(held_out, ARITHMETIC_HELD_OUT[data.level]))
        others: Sequence[Row] = [
            _generated(data, "held_out", index, HELD_OUT_SEED, problem, make) for index, problem in enumerate(problems)
        ]
        return kept, others if held_out_data is None else _sample(read_rows(held_out_data), held_out)
    rows = read_rows(data)
    if held_out == 0:
        return rows, []
    if held_out_data is not None:
        return rows, _sample(read_rows(held_out_data), held_out)
    is_other = [is_held_out(_prompt_of(row)) for row in rows]
    sides = [[row for row, other in zip(rows, is_other, strict=True) if other is side] for side in (False, True)]
    if not all(sides):
        raise DataError(
            f"data.path = {data.path}: its {len(rows)} rows have too few prompts to hold a fifth of them out: "
            "set evaluation.data, or add rows"
        )
    return sides[0], _sample(sides[1], held_out)


def _generated(
    data: ArithmeticConfig, split: str, index: int, seed: int, problem: Problem, make: MakeFields
) -> Row:
    name = f"{data.type}-level{data.level}-{split}:{index}"
    return Row(name, name, make(problem, Draws(seed, "stage", name)))


def _sample(rows: Sequence[Row], count: int) -> Sequence[Row]:
    if count >= len(rows):
        return rows
    order = PromptOrder(len(rows), derive_seed(HELD_OUT_SEED, "stage", "held_out"))
    return [rows[index] for index in sorted(order(position) for position in range(count))]


def _prompt_of(row: Row) -> str:
    """What two rows of one prompt share; a whole text or conversation where there is none."""
    value = next((row.fields[name] for name in PROMPT_FIELDS if row.fields.get(name) is not None), None)
    if isinstance(value, list) and value and "chosen" in row.fields and not row.fields.get("prompt"):
        value = value[:-1]
    return json.dumps(value, sort_keys=True, default=str)
