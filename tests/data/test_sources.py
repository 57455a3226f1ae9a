"""From configuration to prompts: lazily for generated tasks, checked and tokenised at once for datasets."""

import logging
import subprocess
import sys

import pytest

from rlhf.config.data import ArithmeticConfig, CountdownConfig, DatasetConfig
from rlhf.config.evaluation import EvaluationConfig
from rlhf.data.errors import DataError
from rlhf.data.order import PromptStream
from rlhf.data.sources import load_held_out, load_prompts
from tests.cpu_time import cpu_seconds


def test_generated_prompts_are_conversations_with_a_template_and_text_without(tokenizer, small_tokenizer):
    text = "What is 45 + 38? Answer with only the number."
    chat = load_prompts(ArithmeticConfig(level=2, system_prompt="Be brief."), tokenizer, seed=0)[0]
    assert chat.text == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    own = tokenizer.apply_chat_template(chat.text, add_generation_prompt=True, return_dict=False)
    assert list(chat.token_ids) == own
    assert (chat.id, chat.scorer, chat.columns) == ("arithmetic-level2-train:0", "arithmetic", {"answer": "83"})
    plain = load_prompts(ArithmeticConfig(level=2), small_tokenizer, seed=0)[0]
    assert plain.text == text and plain.token_ids == (1, *[0] * 10)
    with pytest.raises(DataError, match="no chat template"):
        load_prompts(ArithmeticConfig(system_prompt="Be brief."), small_tokenizer, seed=0)


def test_countdown_prompts_carry_what_their_scorer_needs(tokenizer):
    prompt = load_prompts(CountdownConfig(), tokenizer, seed=0)[0]
    assert prompt.id == "countdown-3x20-train:0" and prompt.scorer == "countdown"
    assert prompt.columns == {"numbers": [15, 4, 8], "target": 19, "answer": "8 + (15 - 4)"}


def test_a_generated_source_costs_nothing_until_it_is_used(tokenizer):
    source = load_prompts(CountdownConfig(size=10**9), tokenizer, seed=0)
    assert len(source) == 10**9 and source[10**9 - 1].columns["target"] > 0
    assert cpu_seconds(lambda: load_prompts(CountdownConfig(size=10**9), tokenizer, seed=0)[10**9 - 1]) < 1
    with pytest.raises(IndexError, match="1000000000 prompts, and index 1000000000"):
        source[10**9]


def test_held_out_prompts_are_distinct_unseen_and_the_same_for_every_run(tokenizer):
    data = ArithmeticConfig(level=2, size=4000)
    held_out = load_held_out(EvaluationConfig(prompts=200), data, tokenizer)
    questions = [prompt.text[0]["content"] for prompt in held_out]
    assert len(set(questions)) == len(held_out) == 200
    source = load_prompts(data, tokenizer, seed=0)
    assert not {source._problem(i).question for i in range(len(source))} & set(questions)
    assert {prompt.id for prompt in held_out} == {f"arithmetic-level2-held_out:{i}" for i in range(200)}
    assert [p.token_ids for p in load_held_out(EvaluationConfig(prompts=200), data, tokenizer)] == [
        p.token_ids for p in held_out
    ]


def test_too_many_held_out_problems_are_refused_with_their_number(tokenizer):
    with pytest.raises(DataError, match="level 1 has 25 held-out problems, and 200 are wanted"):
        load_held_out(EvaluationConfig(), ArithmeticConfig(level=1), tokenizer)
    assert len(load_held_out(EvaluationConfig(prompts=0), ArithmeticConfig(), tokenizer)) == 0


def test_generated_prompts_that_are_too_long_are_refused_at_once(tokenizer):
    for rule in ("error", "skip"):
        with pytest.raises(DataError, match=r"arithmetic-level2-train:0: .*max_prompt_tokens.*raise it"):
            load_prompts(ArithmeticConfig(max_prompt_tokens=8, overlong_prompts=rule), tokenizer, seed=0)
    config = ArithmeticConfig(max_prompt_tokens=8, overlong_prompts="truncate_left")
    assert tokenizer.decode(load_prompts(config, tokenizer, seed=0)[0].token_ids) == (
        " number.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gsm8k_whole(tokenizer, gsm8k, caplog):
    """All 7,473 rows; 7 of them have more than 211 tokens in this template with SmolLM2's tokenizer."""
    config = DatasetConfig(
        path=str(gsm8k), prompt_field="question", answer_field="answer", answer_after="####", as_chat=True,
        prompt_template="{prompt}\nPut the answer in \\boxed{}.", max_prompt_tokens=211, overlong_prompts="skip",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        source = load_prompts(config, tokenizer, seed=0)
    assert (len(source), source.skipped) == (7466, 7)
    assert "left out 7 of 7473 prompts" in caplog.text
    prompt = source[0]
    assert prompt.id == "gsm8k-train:0" and prompt.columns == {"answer": "72"} and prompt.scorer == "math"
    assert prompt.text[0]["content"].startswith("Natalia sold clips") and prompt.text[0]["content"].endswith(
        "\\boxed{}."
    )
    own = tokenizer.apply_chat_template(prompt.text, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == own
    assert max(len(ids) for ids in source._token_ids) <= 211
    # every gold answer is one number as written, commas and all
    golds = [source[i].columns["answer"] for i in range(len(source))]
    assert all(gold.replace(",", "").lstrip("-").replace(".", "", 1).isdigit() for gold in golds)
    assert sum("," in gold for gold in golds) == 79


@pytest.fixture
def numbered(write_jsonl):
    return write_jsonl([{"prompt": f"{'long ' * i}{i}", "answer": i} for i in range(20)])


def test_skipped_rows_keep_the_ids_of_the_others(tokenizer, numbered):
    lengths = [len(tokenizer("long " * i + str(i))["input_ids"]) for i in range(20)]
    config = DatasetConfig(path=numbered, answer_field="answer", max_prompt_tokens=12, overlong_prompts="skip")
    source = load_prompts(config, tokenizer, seed=0)
    fitting = [i for i, length in enumerate(lengths) if length <= 12]
    assert 5 < len(fitting) < 20 and source.skipped == 20 - len(fitting)
    assert [(p.id, p.columns["answer"]) for p in source] == [(f"set-train:{i}", str(i)) for i in fitting]
    with pytest.raises(DataError, match=r"train\.jsonl, line \d+ \(row \d+\): the prompt has \d+ tokens"):
        load_prompts(DatasetConfig(path=numbered, max_prompt_tokens=12), tokenizer, seed=0)
    with pytest.raises(DataError, match="all 20 prompts are above"):
        load_prompts(config.model_copy(update={"max_prompt_tokens": 1, "as_chat": True}), tokenizer, seed=0)


def test_a_held_out_sample_of_a_dataset_is_fixed_and_in_order(tokenizer, numbered, caplog):
    evaluation = EvaluationConfig(prompts=5, data=DatasetConfig(path=numbered, answer_field="answer"))
    ids = [prompt.id for prompt in load_held_out(evaluation, ArithmeticConfig(), tokenizer)]
    assert ids == [prompt.id for prompt in load_held_out(evaluation, ArithmeticConfig(), tokenizer)]
    rows = [int(prompt_id.split(":")[1]) for prompt_id in ids]
    assert len(rows) == 5 and rows == sorted(set(rows)) and rows != list(range(5))
    more = EvaluationConfig(prompts=200, data=evaluation.data)
    assert len(load_held_out(more, ArithmeticConfig(), tokenizer)) == 20
    assert "has 20 prompts, and 200 are wanted: all are used" in caplog.text


def test_plain_text_for_a_chat_model_is_remarked(tokenizer, numbered, caplog):
    load_prompts(DatasetConfig(path=numbered), tokenizer, seed=0)
    assert "set data.as_chat to true" in caplog.text


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([{"prompt": "a", "answer": 1}, {"prompt": "c", "answer": 2}], id="prompt"),
        pytest.param([{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 3}], id="answer"),
        pytest.param([{"prompt": "b", "answer": 2}, {"prompt": "a", "answer": 1}], id="order"),
    ],
)
def test_a_changed_dataset_is_refused_on_resume(tokenizer, write_jsonl, rows):
    path = write_jsonl([{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}])
    config = DatasetConfig(path=path, answer_field="answer")
    state = PromptStream(load_prompts(config, tokenizer, seed=0), seed=0, position=1).state_dict()
    same = PromptStream(load_prompts(config, tokenizer, seed=0), seed=0)
    same.load_state_dict(state)
    assert same.position == 1
    write_jsonl(rows)
    changed = PromptStream(load_prompts(config, tokenizer, seed=0), seed=0)
    with pytest.raises(DataError, match="fingerprint was"):
        changed.load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        (ArithmeticConfig(level=3, size=50), 0),
        (ArithmeticConfig(level=2, size=51), 0),
        (ArithmeticConfig(level=2, size=50), 1),
        (ArithmeticConfig(level=2, size=50, system_prompt="Be brief."), 0),
    ],
)
def test_generated_fingerprints_differ_where_prompts_differ(tokenizer, config, seed):
    reference = load_prompts(ArithmeticConfig(level=2, size=50), tokenizer, seed=0)
    assert load_prompts(ArithmeticConfig(level=2, size=50), tokenizer, seed=0).fingerprint == reference.fingerprint
    assert load_prompts(config, tokenizer, seed=seed).fingerprint != reference.fingerprint


def test_a_stream_over_a_generated_source_takes_each_prompt_once(tokenizer):
    stream = PromptStream(load_prompts(ArithmeticConfig(level=2, size=40), tokenizer, seed=0), seed=0)
    ids = [prompt.id for n in (16, 3, 16, 5) for prompt in stream.take(n)]
    assert sorted(ids) == sorted(f"arithmetic-level2-train:{i}" for i in range(40))


def test_the_room_needs_no_heavy_library():
    code = (
        "import sys, rlhf.data.sources, rlhf.data.order;"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
