"""How a prompt in words becomes token ids, once. Nothing is ever re-tokenised after this.

Conversations go through the tokenizer's chat template: the header of the assistant's turn is added, or, where the last
message is an assistant's, that message is left open to be continued (TRL's convention). A string is tokenised as plain
text, with the special tokens that the tokenizer puts in front of a text, and never two beginning-of-sequence tokens.

A prompt above `max_prompt_tokens` (template included): `error` raises DataError with its row; `skip` leaves it out;
`truncate_left` keeps exactly its last `max_prompt_tokens` tokens, whatever the first ones were (a system message and a
beginning-of-sequence token go first). The text that graders see stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from rlhf.config.data import PromptFormat
from rlhf.data.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Text = str | list[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError)  # what templates raise at a conversation they do not accept


class PromptFormatter:
    """Turns prompts into token ids with one tokenizer.

    `as_chat`: send a string as a user message. Raises DataError at once where that needs a chat template and there is
    none; `place` in the methods is where a prompt comes from, for messages.
    """

    def __init__(self, config: PromptFormat, tokenizer: PreTrainedTokenizerBase, *, as_chat: bool = False):
        self.config, self.tokenizer, self.as_chat = config, tokenizer, as_chat
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        if as_chat and not self.has_template:
            raise DataError(f"as_chat: {self._no_template}; set as_chat to false to send plain text")
        if config.system_prompt is not None and not self.has_template:
            raise DataError(f"system_prompt: {self._no_template}; remove system_prompt, or write it into the prompts")

    @property
    def _no_template(self) -> str:
        name = getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__
        return f"the tokenizer {name!r} has no chat template (a base model's?)"

    def complete(self, text: Text, place: str) -> Text:
        """The prompt as it is sent: a string, or the conversation with the system message in front.

        Raises DataError for a conversation without a chat template, for a second system message, and for a system
        message before a plain string.
        """
        if isinstance(text, str) and self.as_chat:
            text = [{"role": "user", "content": text}]
        system = self.config.system_prompt
        if isinstance(text, str):
            if system is not None:
                raise DataError(
                    f"{place}: system_prompt is for conversations, and this prompt is plain text: set data.as_chat to "
                    "true to send it as a user message, or write the instruction into data.prompt_template"
                )
            return text
        if not self.has_template:
            raise DataError(f"{place}: the prompt is a conversation, and {self._no_template}: use string prompts")
        if system is None:
            return text
        if text[0]["role"] == "system":
            raise DataError(f"{place}: the conversation has a system message of its own: remove data.system_prompt")
        return [{"role": "system", "content": system}, *text]

    def encode(self, texts: Sequence[Text], places: Sequence[str]) -> list[list[int]]:
        """Token ids of each completed prompt, in order and not yet shortened.

        Raises DataError, with the prompt's place, where the chat template refuses a conversation.
        """
        token_ids: list[list[int]] = [[] for _ in texts]
        for selects, encode in (
            (lambda text: isinstance(text, str), self._encode_plain),
            (lambda text: not isinstance(text, str) and not _is_open(text), self._encode_chats),
            (lambda text: not isinstance(text, str) and _is_open(text), self._encode_open_chats),
        ):
            chosen = [i for i, text in enumerate(texts) if selects(text)]
            encoded = _encode_naming_culprit(encode, [texts[i] for i in chosen], [places[i] for i in chosen])
            for i, ids in zip(chosen, encoded, strict=True):
                token_ids[i] = ids
        return token_ids

    def fit(self, token_ids: list[int], place: str) -> list[int] | None:
        """The ids within `max_prompt_tokens` by the rule of `overlong_prompts`; None if the prompt is to be skipped.

        Raises DataError for a prompt without tokens, and for an overlong one under `error`.
        """
        limit, rule = self.config.max_prompt_tokens, self.config.overlong_prompts
        if not token_ids:
            raise DataError(f"{place}: the tokenizer makes no tokens of this prompt")
        if len(token_ids) <= limit:
            return token_ids
        if rule == "error":
            raise DataError(
                f"{place}: the prompt has {len(token_ids)} tokens, and data.max_prompt_tokens is {limit}: raise it, or "
                "set data.overlong_prompts to skip or truncate_left"
            )
        return None if rule == "skip" else token_ids[-limit:]

    def _encode_chats(self, chats: list[list[Message]]) -> list[list[int]]:
        # return_dict is true by default from transformers 5 on
        return self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)

    def _encode_open_chats(self, chats: list[list[Message]]) -> list[list[int]]:
        return self.tokenizer.apply_chat_template(chats, continue_final_message=True, return_dict=False)

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        bos, eos, eos_text = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.eos_token
        token_ids = self.tokenizer(texts)["input_ids"]
        for i, ids in enumerate(token_ids):
            if bos is not None and ids[:2] == [bos, bos]:
                ids = ids[1:]  # the text brings its own, e.g. a rendered template
            if eos is not None and ids[-1:] == [eos] and not texts[i].endswith(eos_text):
                ids = ids[:-1]  # added by the tokenizer; nothing would follow an end of sequence
            token_ids[i] = ids
        return token_ids


def check_messages(value: list[Any], place: str) -> list[Message]:
    """A conversation that can be prompted with. Raises DataError naming the message and what is wrong with it.

    Keys whose value is None are dropped: table formats fill in the keys that other rows' messages have.
    """
    if not value:
        raise DataError(f"{place}: the conversation has no messages")
    messages = []
    for number, message in enumerate(value):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{where}: is {_kind(message)}, and must be an object with role and content")
        if message.get("role") not in ROLES:
            raise DataError(f"{where}: role is {message.get('role')!r}, and must be one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise DataError(f"{where}: content is {_kind(content)}, and must be text (images are not supported)")
        if isinstance(content, str) and not content.strip() and message["role"] == "user":
            raise DataError(f"{where}: content is empty")
        messages.append({key: part for key, part in message.items() if part is not None or key == "content"})
    if messages[-1]["role"] not in ("user", "tool", "assistant"):
        raise DataError(f"{place}: the last message is from {messages[-1]['role']!r}, so there is nothing to answer")
    return messages


def _is_open(messages: list[Message]) -> bool:
    """Whether the completion continues the last message instead of answering it."""
    return messages[-1]["role"] == "assistant"


def _kind(value: Any) -> str:
    return "missing or null" if value is None else f"of type {type(value).__name__}"


def _encode_naming_culprit(
    encode: Callable[[list[Any]], list[list[int]]], texts: list[Any], places: Iterable[str]
) -> list[list[int]]:
    """All at once; where that fails, one by one, so that the error can say which."""
    try:
        return encode(texts) if texts else []
    except TEMPLATE_ERRORS:
        token_ids = []
        for text, place in zip(texts, places, strict=True):
            try:
                token_ids += encode([text])
            except TEMPLATE_ERRORS as error:
                raise DataError(f"{place}: the chat template does not accept this conversation: {error}") from error
        return token_ids
