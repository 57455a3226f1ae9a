"""Token ids equal the tokenizer's own, with one beginning of sequence, and lengths follow the stated rules."""

import pytest

from rlhf.config.data import PromptFormat
from rlhf.data.errors import DataError
from rlhf.data.formatting import PromptFormatter, check_messages

USER = {"role": "user", "content": "What is 12 + 7?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def encode(formatter, *texts):
    places = [f"row {i}" for i in range(len(texts))]
    return formatter.encode([formatter.complete(t, p) for t, p in zip(texts, places, strict=True)], places)


def test_conversations_equal_the_real_chat_template(tokenizer):
    turns = [USER, {"role": "assistant", "content": "19."}, {"role": "user", "content": "Sure?"}]
    ids = encode(PromptFormatter(PromptFormat(), tokenizer), [USER], turns)
    header = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    question = "<|im_start|>user\nWhat is 12 + 7?<|im_end|>\n"
    end = "<|im_start|>assistant\n"
    assert [tokenizer.decode(i) for i in ids] == [
        header + question + end,
        header + question + "<|im_start|>assistant\n19.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n" + end,
    ]
    own = [tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in ([USER], turns)]
    assert ids == own
    assert all(type(token) is int for token in ids[0])


def test_a_last_message_from_the_assistant_is_continued(tokenizer):
    (ids,) = encode(PromptFormatter(PromptFormat(), tokenizer), [USER, {"role": "assistant", "content": "The sum is"}])
    assert tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\nThe sum is")


def test_strings_are_plain_text_and_order_survives_a_mixed_batch(tokenizer):
    started = [USER, {"role": "assistant", "content": "It"}]
    formatter = PromptFormatter(PromptFormat(), tokenizer)
    mixed = encode(formatter, "one", [USER], "two words", started)
    assert mixed == [*encode(formatter, "one"), *encode(formatter, [USER]), *encode(formatter, "two words"),
                     *encode(formatter, started)]  # fmt: skip
    assert mixed[2] == tokenizer("two words")["input_ids"]


def test_system_prompt_comes_first(tokenizer):
    formatter = PromptFormatter(PromptFormat(system_prompt="Be brief."), tokenizer)
    assert formatter.complete([USER], "row 0") == [SYSTEM, USER]
    assert encode(formatter, [USER]) == encode(PromptFormatter(PromptFormat(), tokenizer), [SYSTEM, USER])
    with pytest.raises(DataError, match=r"row 3: the conversation has a system message of its own: remove"):
        formatter.complete([SYSTEM, USER], "row 3")
    with pytest.raises(DataError, match=r"row 3: system_prompt is for conversations.* set data\.as_chat to true"):
        formatter.complete("plain", "row 3")


def test_as_chat_sends_a_string_as_a_user_message(tokenizer):
    formatter = PromptFormatter(PromptFormat(system_prompt="Be brief."), tokenizer, as_chat=True)
    assert formatter.complete("What is 12 + 7?", "row 0") == [SYSTEM, USER]
    assert formatter.complete([USER], "row 0") == [SYSTEM, USER]


def test_without_a_chat_template_only_strings_are_accepted(small_tokenizer):
    with pytest.raises(DataError, match=r"as_chat: .* no chat template"):
        PromptFormatter(PromptFormat(), small_tokenizer, as_chat=True)
    with pytest.raises(DataError, match=r"system_prompt: .* no chat template"):
        PromptFormatter(PromptFormat(system_prompt="s"), small_tokenizer)
    with pytest.raises(DataError, match=r"row 2: the prompt is a conversation, and .* use string prompts"):
        PromptFormatter(PromptFormat(), small_tokenizer).complete([USER], "row 2")


def test_one_beginning_of_sequence_and_no_end_of_it(small_tokenizer):
    """This tokenizer makes <s> ... </s> of every text; a prompt keeps one <s>, and </s> only if it is written."""
    assert small_tokenizer("one two")["input_ids"] == [1, 3, 4, 2]
    formatter = PromptFormatter(PromptFormat(), small_tokenizer)
    assert encode(formatter, "one two", "<s> one two", "one </s>") == [[1, 3, 4], [1, 3, 4], [1, 3, 2, 2]]


def test_a_template_that_writes_the_beginning_of_sequence_gives_one(gemma_like_tokenizer):
    formatter = PromptFormatter(PromptFormat(), gemma_like_tokenizer, as_chat=True)
    assert encode(formatter, "one two") == [[1, 6, 3, 4, 7]]


def test_a_refused_conversation_is_named_with_the_templates_reason(gemma_like_tokenizer):
    formatter = PromptFormatter(PromptFormat(), gemma_like_tokenizer)
    with pytest.raises(DataError, match=r"row 1: the chat template does not accept .*: System role not supported"):
        encode(formatter, [USER], [SYSTEM, USER], [USER])


def test_overlong_prompts(tokenizer):
    def fit(rule, ids, limit=4):
        config = PromptFormat(max_prompt_tokens=limit, overlong_prompts=rule)
        return PromptFormatter(config, tokenizer).fit(ids, "a.jsonl, line 9")

    for rule in ("error", "skip", "truncate_left"):
        assert fit(rule, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert fit("skip", [1, 2, 3, 4, 5]) is None
    assert fit("truncate_left", [1, 2, 3, 4, 5, 6]) == [3, 4, 5, 6]
    with pytest.raises(DataError, match=r"a\.jsonl, line 9: the prompt has 5 tokens, and data\.max_prompt_tokens is 4"):
        fit("error", [1, 2, 3, 4, 5])
    with pytest.raises(DataError, match=r"a\.jsonl, line 9: .* no tokens"):
        fit("skip", [])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "has no messages"),
        (["hello"], "message 0: is of type str"),
        ([USER, {"role": "human", "content": "x"}], "message 1: role is 'human', and must be one of system,"),
        ([{"content": "x"}], "message 0: role is None"),
        ([{"role": "user"}], "message 0: content is missing or null"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 0: content is of type list.*images"),
        ([{"role": "user", "content": "  "}], "message 0: content is empty"),
        ([USER, SYSTEM], "the last message is from 'system'"),
    ],
)
def test_bad_messages_are_named(messages, message):
    with pytest.raises(DataError, match=f"^f, row 1, field 'p'.*{message}"):
        check_messages(messages, "f, row 1, field 'p'")


def test_keys_that_a_table_filled_in_are_dropped_and_tool_calls_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    result = {"role": "tool", "content": "19", "name": "add", "tool_calls": None}
    assert check_messages([{**USER, "name": None}, call, result], "f") == [
        USER, call, {"role": "tool", "content": "19", "name": "add"}
    ]  # fmt: skip
