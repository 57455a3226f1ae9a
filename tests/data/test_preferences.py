"""Preference rows: TRL's formats, TRL's own code for the implied prompt, token ids at the border, errors by row."""

import pytest
from trl.data_utils import extract_prompt

from rlhf.config.data import PromptFormat
from rlhf.data.errors import DataError
from rlhf.data.formatting import PromptFormatter
from rlhf.data.preferences import encode_preference, read_preference
from rlhf.data.rows import Row

USER = {"role": "user", "content": "What is 12 + 7?"}
RIGHT, WRONG = {"role": "assistant", "content": "19"}, {"role": "assistant", "content": "20, I think."}


def row(**fields):
    return Row("set:3", "set.jsonl, line 4 (row 3)", fields)


def encode(tokenizer, limit=100, **fields):
    return encode_preference(row(**fields), PromptFormatter(PromptFormat(), tokenizer), tokenizer, limit)


def test_text(tokenizer):
    pair = encode(tokenizer, prompt="The sky is", chosen=" blue.", rejected=" made of cheese.")
    assert tokenizer.decode(pair.prompt_ids) == "The sky is"
    assert tokenizer.decode(pair.chosen_ids) == " blue." + tokenizer.eos_token
    assert tokenizer.decode(pair.rejected_ids) == " made of cheese." + tokenizer.eos_token
    assert pair.id == "set:3"


def test_messages_are_the_chat_template_s_up_to_the_end_of_the_answer(tokenizer):
    pair = encode(tokenizer, prompt=[USER], chosen=[RIGHT], rejected=[WRONG])
    whole = tokenizer.apply_chat_template([USER, RIGHT], return_dict=False)
    assert list(pair.prompt_ids + pair.chosen_ids) == whole[: len(pair.prompt_ids + pair.chosen_ids)]
    assert tokenizer.decode(pair.chosen_ids) == "19<|im_end|>"
    assert tokenizer.decode(pair.rejected_ids) == "20, I think.<|im_end|>"
    assert tokenizer.decode(pair.prompt_ids).endswith("<|im_start|>assistant\n")


def test_an_implied_prompt_is_trl_s():
    rows = [
        {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
    ]
    for fields in rows:
        expected = extract_prompt(dict(fields))
        prompt, chosen, rejected = read_preference(row(**fields))
        assert prompt + chosen == fields["chosen"] and prompt + rejected == fields["rejected"]
        if fields is not rows[2]:
            assert (prompt, chosen, rejected) == (expected["prompt"], expected["chosen"], expected["rejected"])
    # where a word begins alike, it is not cut
    assert read_preference(row(**rows[2]))[1] == " blue."


def test_what_is_too_long_is_left_out(tokenizer):
    assert encode(tokenizer, limit=3, prompt="a", chosen=" b c d e f g", rejected=" h") is None
    short = PromptFormatter(PromptFormat(max_prompt_tokens=1, overlong_prompts="skip"), tokenizer)
    assert encode_preference(row(prompt="a b c d", chosen=" e", rejected=" f"), short, tokenizer, 100) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"line 4 \(row 3\), field 'rejected': there is no such field, or it is null"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "field 'chosen': is empty"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "field 'chosen': is of type int, and must be text or a list"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": [USER], "chosen": "b", "rejected": "c"}, "prompt is messages, chosen is text, rejected is text"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [RIGHT]}, "field 'chosen': ends with a message from 'user'"),
        ({"chosen": "blue", "rejected": "green"}, "do not begin with the same words"),
        ({"chosen": [RIGHT], "rejected": [WRONG]}, "do not share messages up to an assistant's answer"),
    ],
)
def test_rows_that_cannot_be_used(fields, message):
    with pytest.raises(DataError, match=message):
        read_preference(row(**fields))


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{{ messages|length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
        with pytest.raises(DataError, match="field 'chosen': with the completion the chat template's tokens no longer"):
            encode(tokenizer, prompt=[USER], chosen=[RIGHT], rejected=[WRONG])
    finally:
        tokenizer.chat_template = template
