"""Preference rows in TRL's formats: (prompt, chosen, rejected), as text or as messages, the prompt named or implied.

| format | prompt | chosen, rejected |
|---|---|---|
| standard | text | text that follows the prompt |
| conversational | messages | messages that follow the prompt |
| implicit prompt | none | whole texts or conversations; what both begin with is the prompt |

A pair becomes token ids once. Plain text: prompt and completion are tokenised each by itself, as they are when a model
goes on from a prompt, and an end of sequence follows. Messages: the chat template's ids of the whole conversation; they
must begin with those of the prompt and its header, or a model would be trained at a border that it never sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rlhf.data.errors import DataError
from rlhf.data.formatting import PromptFormatter, Text, check_messages
from rlhf.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One row as token ids. `id` is the row's."""

    id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


def read_preference(row: Row) -> tuple[Text, Text, Text]:
    """(prompt, chosen, rejected) of a row, completions without the prompt.

    Raises DataError naming file, row and field where one is missing, empty or of another kind than the others, where
    both completions are the same, and where an implied prompt has no words.
    """
    fields = [name for name in ("prompt", "chosen", "rejected") if name != "prompt" or row.fields.get("prompt")]
    values = {name: read_text(row, name) for name in fields}
    if len({isinstance(value, str) for value in values.values()}) > 1:
        kinds = ", ".join(f"{name} is {'text' if isinstance(v, str) else 'messages'}" for name, v in values.items())
        raise DataError(f"{row.place}: {kinds}; all must be text, or all messages")
    chosen, rejected = values["chosen"], values["rejected"]
    if chosen == rejected:
        raise DataError(f"{row.place}: chosen and rejected are the same, which is no preference: remove the row")
    if "prompt" in values:
        return values["prompt"], chosen, rejected
    return _implied(row, chosen, rejected)


def encode_preference(
    row: Row, formatter: PromptFormatter, tokenizer: PreTrainedTokenizerBase, max_completion_tokens: int
) -> PreferencePair | None:
    """The row's pair; None where its prompt is too long and such are skipped, or a completion is too long.

    Raises DataError as `read_preference` does, where the chat template's ids of the conversation do not begin with
    those of its prompt, and where two completions that differ as text have the same ids.
    """
    prompt, chosen, rejected = read_preference(row)
    prompt = formatter.complete(prompt, row.place)
    (encoded,) = formatter.encode([prompt], [row.place])
    prompt_ids = formatter.fit(encoded, row.place)
    if prompt_ids is None:
        return None
    completions = [
        encode_completion(row, name, prompt, encoded, text, tokenizer)
        for name, text in (("chosen", chosen), ("rejected", rejected))
    ]
    if completions[0] == completions[1]:
        raise DataError(f"{row.place}: chosen and rejected have the same tokens, no preference: remove the row")
    if max(map(len, completions)) > max_completion_tokens:
        return None
    return PreferencePair(row.id, tuple(prompt_ids), *map(tuple, completions))


def encode_completion(
    row: Row, name: str, prompt: Text, prompt_ids: Sequence[int], text: Text, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Ids of `text` (field `name` of the row) behind a prompt whose ids are `prompt_ids`, up to and with its end.

    Raises DataError where the chat template's ids of the conversation do not begin with `prompt_ids`.
    """
    if isinstance(text, str):
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    whole = tokenizer.apply_chat_template([*prompt, *text], return_dict=False)
    if whole[: len(prompt_ids)] != list(prompt_ids):
        raise DataError(
            f"{row.at(name)}: with the completion the chat template's tokens no longer begin with those of the prompt, "
            "so the model would learn at a border that it never meets: use a template that only appends"
        )
    ids = whole[len(prompt_ids) :]
    # templates put a line break after the last turn's end; a model that stops never writes it
    if tokenizer.eos_token_id in ids:
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
    return ids


def read_text(row: Row, name: str) -> Text:
    """A field that is text or messages; messages end with the assistant's, unless the field is `prompt`.

    Raises DataError naming file, row and field where it is missing, empty or of another kind.
    """
    value = row.fields.get(name)
    if value is None:
        there = ", ".join(sorted(row.fields)) or "none"
        raise DataError(f"{row.at(name)}: there is no such field, or it is null; the row has: {there}")
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{row.at(name)}: is empty")
        return value
    if not isinstance(value, list):
        raise DataError(f"{row.at(name)}: is of type {type(value).__name__}, and must be text or a list of messages")
    messages = check_messages(value, row.at(name))
    if name != "prompt" and messages[-1]["role"] != "assistant":
        raise DataError(f"{row.at(name)}: ends with a message from {messages[-1]['role']!r}, not from the assistant")
    return messages


def _implied(row: Row, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """What both begin with is the prompt; a text is cut behind a blank, so that no word is."""
    common: Any = [one for one, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))]
    if isinstance(chosen, str):
        common = "".join(common)
        common = common[: len(common.rstrip())] if common.rstrip() != common else common.rpartition(" ")[0]
        if not common.strip():
            raise DataError(f"{row.place}: has no prompt, and chosen and rejected do not begin with the same words")
    elif not common or len(common) == min(len(chosen), len(rejected)) or common[-1]["role"] == "assistant":
        raise DataError(
            f"{row.place}: has no prompt, and chosen and rejected do not share messages up to an assistant's answer"
        )
    return common, chosen[len(common) :], rejected[len(common) :]
