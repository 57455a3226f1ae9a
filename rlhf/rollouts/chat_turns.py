"""What stands between two turns of a model: end of its turn, the user's message, the header of the next turn."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.data.errors import DataError
from rlhf.rollouts.stop_tokens import end_of_turn

_PROBE = "an answer that no template contains"
_QUESTION = {"role": "user", "content": "a question"}


class ChatTurns:
    """Token ids of a user's message behind a model's turn, by the tokenizer's chat template.

    The text is the difference of two renderings of the template, and is tokenised once; what the model wrote is not
    touched. Raises DataError for a tokenizer without a chat template, or with one that takes no dialogue.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise DataError(
                f"environment: the tokenizer {name!r} has no chat template (a base model's?), so there is no telling "
                "where a turn ends: take a chat model, or remove the section environment"
            )
        end = end_of_turn(tokenizer)
        # the template's end of turn, as an id and as text, and the empty text where it has none
        self.end_id = end
        self.end_text = "" if end is None else tokenizer.added_tokens_decoder[end].content
        self.between("a reply", ())

    def between(self, reply: str, turn_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids that follow a turn of the model with `turn_ids`, up to where the next one begins.

        A turn that was cut has not ended itself: the end of turn is then the environment's.
        """
        text = self._text(reply)
        if self.end_id is not None and turn_ids and turn_ids[-1] == self.end_id:
            text = text.partition(self.end_text)[2]
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, reply: str) -> str:
        chat = [_QUESTION, {"role": "assistant", "content": _PROBE}, {"role": "user", "content": reply}]
        try:
            whole = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError, TypeError) as error:
            raise DataError(f"environment: the chat template does not accept a dialogue: {error}") from error
        _, found, behind = whole.partition(_PROBE)
        if not found or _PROBE in behind or (self.end_text and self.end_text not in behind):
            raise DataError(
                "environment: the chat template changes or repeats what the model wrote, so the text between two turns "
                "cannot be told: give the tokenizer a template that writes messages as they are"
            )
        return behind
