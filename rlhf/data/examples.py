"""Rows for supervised fine-tuning in TRL's formats become token ids once.

| fields | learned |
|---|---|
| prompt, completion: text, or messages | the completion, with the end of its turn or sequence |
| text | all of it, with an end of sequence |
| messages | all of the conversation as the chat template writes it |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.data.errors import DataError
from rlhf.data.formatting import TEMPLATE_ERRORS, PromptFormatter
from rlhf.data.preferences import encode_completion, read_text
from rlhf.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMATS = ({"prompt", "completion"}, {"text"}, {"messages"})
IGNORED = -100  # the label that cross-entropy leaves out


@dataclass(frozen=True, slots=True)
class Example:
    """One row as token ids; those from `learned_from` on are learned."""

    id: str
    token_ids: tuple[int, ...]
    learned_from: int

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.learned_from + list(self.token_ids[self.learned_from :])


def encode_example(
    row: Row, formatter: PromptFormatter, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Example | None:
    """The row's example; None where its prompt is too long and such are skipped, or it has over `max_length` tokens.

    Raises DataError, naming file, row and field, where the row is in none of the formats, a field is missing, empty or
    of the wrong kind, or the chat template refuses the conversation or writes it otherwise behind its prompt.
    """
    given = {name for name, value in row.fields.items() if value is not None}
    wanted = next((names for names in FORMATS if names <= given), None)
    if wanted is None:
        there = ", ".join(sorted(given)) or "none"
        raise DataError(
            f"{row.place}: an example has `prompt` and `completion`, or `text`, or `messages`; this row has: {there}"
        )
    if "completion" not in wanted:
        token_ids, start = _whole(row, next(iter(wanted)), formatter, tokenizer), 0
    else:
        prompt, completion = read_text(row, "prompt"), read_text(row, "completion")
        if isinstance(prompt, str) != isinstance(completion, str):
            raise DataError(f"{row.place}: prompt and completion must both be text, or both messages")
        if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
            raise DataError(f"{row.at('prompt')}: ends with the assistant's message: move it into the completion")
        prompt = formatter.complete(prompt, row.place)
        if not isinstance(prompt, str) and isinstance(completion, str):  # the formatter sends text as a message
            completion = [{"role": "assistant", "content": completion}]
        (encoded,) = formatter.encode([prompt], [row.place])
        fitting = formatter.fit(encoded, row.place)
        if fitting is None:
            return None
        learned = encode_completion(row, "completion", prompt, encoded, completion, tokenizer)
        token_ids, start = [*fitting, *learned], len(fitting)
    return Example(row.id, tuple(token_ids), start) if len(token_ids) <= max_length else None


def _whole(row: Row, name: str, formatter: PromptFormatter, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    value = read_text(row, name)
    if isinstance(value, str) != (name == "text"):
        raise DataError(f"{row.at(name)}: must be {'text' if name == 'text' else 'a list of messages'}")
    if isinstance(value, str):
        (encoded,) = formatter.encode([value], [row.place])
        return [*encoded, tokenizer.eos_token_id]
    try:
        # return_dict is true by default from transformers 5 on
        return tokenizer.apply_chat_template(formatter.complete(value, row.place), return_dict=False)
    except TEMPLATE_ERRORS as error:
        raise DataError(f"{row.at(name)}: the chat template does not accept it: {error}") from error
