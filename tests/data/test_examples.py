"""Rows for supervised fine-tuning: what is learned, errors by row, and which rows are held out."""

import json

import pytest
from trl.data_utils import is_conversational

from rlhf.config.data import ArithmeticConfig, PromptFormat
from rlhf.config.sft import ExamplesConfig
from rlhf.data.errors import DataError
from rlhf.data.examples import IGNORED, encode_example
from rlhf.data.formatting import PromptFormatter
from rlhf.data.generated import is_held_out
from rlhf.data.rows import Row
from rlhf.data.stage_rows import stage_rows

USER, ANSWER = {"role": "user", "content": "What is 12 + 7?"}, {"role": "assistant", "content": "19"}


def encode(tokenizer, limit=100, as_chat=False, settings=None, **fields):
    formatter = PromptFormatter(settings or PromptFormat(), tokenizer, as_chat=as_chat)
    return encode_example(Row("set:3", "set.jsonl, line 4", fields), formatter, tokenizer, limit)


def learned(tokenizer, example):
    assert len(example.labels) == len(example.token_ids)
    assert all(b in (IGNORED, a) for a, b in zip(example.token_ids, example.labels, strict=True))
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def test_of_a_prompt_and_a_completion_the_completion_is_learned(tokenizer):
    example = encode(tokenizer, prompt="The sky is", completion=" blue.")
    assert tokenizer.decode(example.token_ids) == "The sky is blue.<|im_end|>"
    assert learned(tokenizer, example) == " blue.<|im_end|>"


def test_of_messages_behind_a_prompt_the_turn_and_its_end_are_learned(tokenizer):
    fields = dict(prompt=[USER], completion=[ANSWER])
    assert is_conversational(fields)
    example = encode(tokenizer, **fields)
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert list(example.token_ids[: example.learned_from]) == prompt  # what an engine is given
    assert learned(tokenizer, example) == "19<|im_end|>"


def test_a_generated_row_becomes_messages(tokenizer):
    example = encode(tokenizer, as_chat=True, prompt=USER["content"], completion="19")
    assert example == encode(tokenizer, prompt=[USER], completion=[ANSWER])


def test_text_and_messages_are_learned_whole(tokenizer):
    assert learned(tokenizer, encode(tokenizer, text="Once upon a time.")) == "Once upon a time.<|im_end|>"
    whole = tokenizer.apply_chat_template([USER, ANSWER], tokenize=False)
    assert learned(tokenizer, encode(tokenizer, messages=[USER, ANSWER])) == whole


def test_long_rows_are_left_out_and_not_cut(tokenizer):
    length = len(encode(tokenizer, text="Once upon a time.").token_ids)
    assert encode(tokenizer, limit=length, text="Once upon a time.") is not None
    assert encode(tokenizer, limit=length - 1, text="Once upon a time.") is None
    skip = PromptFormat(max_prompt_tokens=2, overlong_prompts="skip")
    assert encode(tokenizer, settings=skip, prompt="The sky is", completion=" blue.") is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "2 + 2?", "answer": "4"}, r"line 4: an example has `prompt`.*: answer, question"),
        ({"prompt": "2 + 2?", "completion": None}, "line 4: an example has.*this row has: prompt"),
        ({"prompt": "2 + 2?", "completion": "  "}, "line 4, field 'completion': is empty"),
        ({"prompt": "2 + 2?", "completion": [ANSWER]}, "both be text, or both messages"),
        ({"prompt": [USER], "completion": [USER]}, "ends with a message from 'user'"),
        ({"prompt": [USER, ANSWER], "completion": [ANSWER]}, "move it into the completion"),
        ({"text": [USER, ANSWER]}, "field 'text': must be text"),
        ({"messages": "hello"}, "field 'messages': must be a list of messages"),
        ({"text": 7}, "field 'text': is of type int"),
        ({"prompt": [{"role": "user"}], "completion": [ANSWER]}, "message 0: content is missing or null"),
    ],
)
def test_bad_rows_are_named(tokenizer, fields, message):
    with pytest.raises(DataError, match=message):
        encode(tokenizer, **fields)


def as_fields(problem, draws):
    return {"prompt": problem.question, "completion": problem.columns["answer"]}


def test_generated_rows_keep_the_parts_apart():
    settings = dict(train=3_000, held_out=600, seed=5, make=as_fields)
    train, held_out = stage_rows(ArithmeticConfig(level=2), None, **settings)
    seen = {row.fields["prompt"] for row in train}
    assert len(train) == 3_000 and len(held_out) == 508  # all there are
    assert not seen & {row.fields["prompt"] for row in held_out}


def test_a_fifth_of_a_dataset_s_prompts_is_held_out_the_same_for_every_run(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"question {n // 2}", "completion": f"answer {n}"} for n in range(1_000)]
    file.write_text("\n".join(map(json.dumps, rows)))
    sides = [
        stage_rows(ExamplesConfig(path=str(file)), None, train=1, held_out=50, seed=seed, make=as_fields)
        for seed in (0, 1)
    ]
    (train, held_out), other = sides
    prompts = [{row.fields["prompt"] for row in side} for side in (train, held_out)]
    assert not prompts[0] & prompts[1]
    assert len(held_out) == 50 and all(is_held_out(json.dumps(row.fields["prompt"])) for row in held_out)
    assert 0.75 < len(train) / 1_000 < 0.85
    assert [row.id for row in other[1]] == [row.id for row in held_out]


def test_a_dataset_of_one_prompt_cannot_be_divided(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "2 + 2?", "completion": "4"}))
    with pytest.raises(DataError, match=r"rows\.jsonl: its 1 rows have too few prompts.*set evaluation\.data"):
        stage_rows(ExamplesConfig(path=str(file)), None, train=1, held_out=5, seed=0, make=as_fields)
