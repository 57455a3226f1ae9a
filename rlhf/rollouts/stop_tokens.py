"""Which tokens end a completion when the configuration names none."""

import jinja2
from transformers import PreTrainedTokenizerBase

_PROBE = "an answer that no template contains"


def default_stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's eos, and the special token with which its chat template ends an assistant's turn.

    Chat checkpoints often keep the pre-training eos and end turns with another token (<|im_end|>, <|eot_id|>,
    <end_of_turn>); a policy that says it is done must not be made to go on. Empty where there is neither.
    """
    ends = set()
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    turn = end_of_turn(tokenizer)
    if turn is not None:
        ends.add(turn)
    return frozenset(ends)


def resolve_stop_token_ids(configured: list[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The configured ids, else the default ones. An empty list means that nothing but max_tokens ends a completion."""
    return default_stop_token_ids(tokenizer) if configured is None else frozenset(configured)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template ends an assistant's turn; None where there is none."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except jinja2.TemplateError:
        # a template for another kind of chat (tools only, a single turn): it has no end of turn to learn
        return None
    after = text.partition(_PROBE)[2].lstrip()
    special = [(token.content, index) for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    matches = [(len(content), index) for content, index in special if after.startswith(content)]
    return max(matches)[1] if matches else None
