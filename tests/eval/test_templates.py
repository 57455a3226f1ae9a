"""Prompts to the letter: the public texts, one beginning of sequence, questions as data, files with their lines."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.few_shot import Shots
from eval.questions import Question
from eval.templates import TEMPLATES, build_template, cut_at_stop_string
from rlhf.data.errors import DataError

SUM = Question("gsm8k:3", "What is 12 + 7?", "19")
HOSTILE = r"Let $\{x\} = {{ 7*7 }}$ {% raw %} {question} %s $ANSWER \boxed{} \n #}"
SHOTS = [
    Question(
        f"train:{i}", f"What is {i} + {i}?", str(2 * i), columns={"solution": f"<<{i}+{i}={2 * i}>>\n#### {2 * i}"}
    )
    for i in range(30)
]
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
DEFAULT_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    from rlhf.models.embedded import resolve_model_path

    return AutoTokenizer.from_pretrained(resolve_model_path("embedded:smollm2-135m-instruct"))


@pytest.fixture
def base_tokenizer():
    """A base model's: single characters between <s> and </s>, no chat template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "<s>", "</s>", *map(chr, range(32, 127)), "\n"]
    inner = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


R1 = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: What is 12 + 7?\n"
    "Assistant: <think>"
)
ANSWER_LINE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$ANSWER (without quotes) where $ANSWER is the answer to the problem.\n\nWhat is 12 + 7?\n\nRemember to put your "
    'answer on its own line after "Answer:", and you do not need to use a \\boxed command.'
)
ASSISTANT = "<|im_start|>assistant\n"
TEXTS = {
    "chat": DEFAULT_SYSTEM + turn("user", "What is 12 + 7?") + ASSISTANT,
    "qwen-boxed": DEFAULT_SYSTEM + turn("user", f"What is 12 + 7?\n{BOXED}") + ASSISTANT,
    "qwen-math-cot": turn("system", BOXED) + turn("user", "What is 12 + 7?") + ASSISTANT,
    "dr-grpo": turn("system", BOXED) + turn("user", "What is 12 + 7?") + ASSISTANT,
    "r1": R1,
    "none": "What is 12 + 7?",
    "answer-line": DEFAULT_SYSTEM + turn("user", ANSWER_LINE) + ASSISTANT,
    "few-shot": "Question: What is 12 + 7?\nAnswer:",
    "few-shot-chat": DEFAULT_SYSTEM + turn("user", "Question: What is 12 + 7?\nAnswer:") + ASSISTANT,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_of_the_public_protocols(tokenizer, name):
    rendered = build_template(name, tokenizer).render(SUM, 3)
    assert rendered.text == TEXTS[name]
    assert list(rendered.token_ids) == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(rendered.token_ids) == rendered.text


@pytest.mark.parametrize(
    ("name", "stops"),
    [("chat", ()), ("none", ()), ("r1", ("</answer>",)), ("few-shot", ("Question:", "</s>", "<|im_end|>"))],
)
def test_stop_strings(tokenizer, name, stops):
    assert build_template(name, tokenizer).render(SUM, 0).stop_strings == stops


def test_few_shot_also_stops_at_the_end_of_sequence(base_tokenizer):
    base_tokenizer.eos_token = "<unk>"
    stops = build_template("few-shot", base_tokenizer).render(SUM, 0).stop_strings
    assert stops == ("Question:", "</s>", "<|im_end|>", "<unk>")


def test_completions_are_cut_in_front_of_the_first_stop_string():
    assert cut_at_stop_string(" 19\n\nQuestion: What", ("Question:", "</s>")) == " 19\n\n"
    assert cut_at_stop_string("a</s>b Question: c", ("Question:", "</s>")) == "a"
    assert cut_at_stop_string("nothing to cut", ()) == "nothing to cut"


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.just(HOSTILE), st.text(st.characters(codec="utf-8")).map("2 + 3, {}".format)))
def test_a_question_is_data(tokenizer, name, text):
    """Whatever stands in it comes out as it is, between what stands around any other question."""
    template = build_template(name, tokenizer)
    before, _, after = template.render(Question("q", "MARK", "0"), 0).text.partition("MARK")
    assert template.render(Question("q", text, "0"), 0).text == before + text + after


def test_a_file_takes_a_question_as_data(tokenizer, tmp_path):
    file = tmp_path / "my.jinja"
    file.write_text("Q: {{ question }}\nA:\n")
    rendered = build_template(str(file), tokenizer).render(Question("q", HOSTILE, "0"), 0)
    assert rendered.text == f"Q: {HOSTILE}\nA:"


def test_one_beginning_of_sequence(base_tokenizer, tmp_path):
    """The tokenizer puts <s> ... </s> around every text."""
    assert base_tokenizer("12")["input_ids"] == [1, 20, 21, 2]
    plain = build_template("none", base_tokenizer).render(Question("q", "12", "0"), 0)
    assert plain.token_ids == (1, 20, 21)
    file = tmp_path / "my.jinja"
    file.write_text("{{ bos_token }}{{ question }}")
    assert build_template(str(file), base_tokenizer).render(Question("q", "12", "0"), 0).token_ids == (1, 20, 21)
    base_tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for name, text in (("chat", "12"), ("few-shot-chat", "Question: 12\nAnswer:")):
        rendered = build_template(name, base_tokenizer).render(Question("q", "12", "0"), 0)
        assert rendered.text == f"<s>{text}"
        assert rendered.token_ids[:2] == (1, base_tokenizer.convert_tokens_to_ids(text[0]))
        assert rendered.token_ids.count(1) == 1 and 2 not in rendered.token_ids


def test_a_chat_template_without_a_beginning_of_sequence_gets_none_but_few_shot_chat_does(base_tokenizer):
    """transformers adds nothing to a rendered conversation; lm-evaluation-harness encodes it as any other text."""
    base_tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert build_template("chat", base_tokenizer).render(SUM, 0).token_ids[0] != 1
    assert build_template("few-shot-chat", base_tokenizer).render(SUM, 0).token_ids[0] == 1


@pytest.mark.parametrize("name", ["chat", "qwen-boxed", "qwen-math-cot", "few-shot-chat"])
def test_a_missing_chat_template_is_refused_with_the_remedy(base_tokenizer, name):
    with pytest.raises(DataError, match=rf"template '{name}'.* has no chat template.*use a template that is text"):
        build_template(name, base_tokenizer)


def test_answer_line_without_a_chat_template_is_plain_text(base_tokenizer):
    assert build_template("answer-line", base_tokenizer).render(SUM, 0).text == ANSWER_LINE


def test_a_chat_template_that_refuses_system_messages_is_named_at_once(base_tokenizer):
    base_tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ message['content'] }}{% endfor %}"
    )
    build_template("qwen-boxed", base_tokenizer)
    with pytest.raises(DataError, match=r"\(system, user\): System role not supported; .*qwen-boxed"):
        build_template("qwen-math-cot", base_tokenizer)


def test_names_and_shots_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"unknown template 'qwen': it is one of chat, .* ends in \.jinja"):
        build_template("qwen", tokenizer)
    with pytest.raises(DataError, match=r"'chat' has no place for worked examples, and shots is 4: use few-shot"):
        build_template("chat", tokenizer, shots=SHOTS, shot_count=4)
    with pytest.raises(DataError, match=r"shots = 5, but there are 3 questions to draw worked examples from"):
        build_template("few-shot", tokenizer, shots=SHOTS[:3], shot_count=5)
    with pytest.raises(DataError, match=r"'gsm8k:3' cannot be a worked example: it has no solution"):
        build_template("few-shot", tokenizer, shots=[*SHOTS, SUM], shot_count=5)
    for nothing in ("", "\x16"):  # the tokenizer drops some control characters
        with pytest.raises(DataError, match="template none makes no tokens"):
            build_template("none", tokenizer).render(Question("q", nothing, "0"), 0)


# ---- worked examples


def test_few_shot_text_and_conversation(tokenizer):
    shots = Shots(SHOTS, 2).before(SUM, 0)
    asked, solved = [f"Question: {s.text}\nAnswer:" for s in shots], [s.columns["solution"] for s in shots]
    text = build_template("few-shot", tokenizer, shots=SHOTS, shot_count=2).render(SUM, 0).text
    assert text == f"{asked[0]} {solved[0]}\n\n{asked[1]} {solved[1]}\n\nQuestion: What is 12 + 7?\nAnswer:"
    chat = build_template("few-shot-chat", tokenizer, shots=SHOTS, shot_count=2).render(SUM, 0).text
    turns = "".join(turn("user", q) + turn("assistant", a) for q, a in zip(asked, solved, strict=True))
    assert chat == DEFAULT_SYSTEM + turns + turn("user", "Question: What is 12 + 7?\nAnswer:") + ASSISTANT


def test_examples_are_one_generators_draws_in_order_whoever_asks_first():
    generator = random.Random(1234)
    expected = [tuple(generator.sample(SHOTS, 3)) for _ in range(8)]
    shots = Shots(SHOTS, 3)
    asked = [5, 0, 7, 5, 2, 1, 3, 4, 6]
    assert [shots.before(SUM, i) for i in asked] == [expected[i] for i in asked]


def test_examples_from_the_evaluated_set_never_hold_the_question():
    """30 questions, 29 shots: k + 1 is the whole set, so every other question stands in front of each."""
    shots = Shots(SHOTS, 29)
    for question in SHOTS:
        before = shots.before(question, 0)
        assert len(before) == 29 and question not in before
    # the draw has k + 1 questions, from which the question is taken, else the last
    generator = random.Random(1234)
    shots = Shots(SHOTS, 4)
    for question in SHOTS:
        drawn = generator.sample(SHOTS, 5)
        assert shots.before(question, 99) == tuple(s for s in drawn if s != question)[:4]
    # another set's question by the same id is not in the set
    assert len(Shots(SHOTS, 30).before(Question("train:0", "Another?", "0"), 0)) == 30
    with pytest.raises(DataError, match="one of them has only 29 others: set shots to 29 or less"):
        Shots(SHOTS, 30).before(SHOTS[0], 0)


def test_a_question_that_the_set_holds_twice_is_drawn_again_without_it():
    twin = Question("train:twin", SHOTS[0].text, "0", columns=SHOTS[0].columns)
    pool = [*SHOTS[:4], twin]
    shots = Shots(pool, 3)
    for question in pool:
        before = shots.before(question, 0)
        assert len({s.id for s in before}) == 3 and question.text not in [s.text for s in before]


# ---- a user's file


def test_a_file_has_the_questions_fields_and_the_chat_template(tokenizer, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% set stop_strings = ['Problem:'] %}\n"
        "{% for shot in shots %}\n"
        "{{ shot.question }} -> {{ shot.solution }}\n"
        "{% endfor %}\n"
        "[{{ id }}|{{ level }}|{{ subject }}|{{ bos_token }}|{{ eos_token }}]\n"
        "{{ chat('Solve: ' ~ question, system='Be brief.') }}"
    )
    question = Question("math500:7", "1+1", "2", level="2", subject="Algebra")
    template = build_template(str(file), tokenizer, shots=SHOTS, shot_count=1)
    rendered = template.render(question, 4)
    (shot,) = Shots(SHOTS, 1).before(question, 4)
    assert rendered.text == (
        f"{shot.text} -> {shot.columns['solution']}\n[math500:7|2|Algebra|<|im_start|>|<|im_end|>]\n"
        + turn("system", "Be brief.")
        + turn("user", "Solve: 1+1")
        + ASSISTANT
    )
    assert rendered.stop_strings == ("Problem:",)
    assert template.name == "mine.jinja"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("Solve this.\n\n{{ quesiton }}", r"line 3: 'quesiton' is undefined"),
        ("{% if question %}\n{{ question }}", r"line 2: Unexpected end of template"),
        ("one\n{{ 1 / 0 }}", r"line 2: division by zero"),
        ("\n{{ question.__class__.__mro__ }}", r"line 2: access to attribute '__class__' .* is unsafe"),
        ("{% include 'other.jinja' %}", r"line 1: other\.jinja"),
        ("{{ chat(question) }}", r"line 1: .*has no chat template"),
        ("{% set stop_strings = 'Problem:' %}{{ question }}", r"stop_strings is 'Problem:', and must be a list"),
    ],
)
def test_a_files_mistakes_are_told_with_file_and_line_before_a_model_loads(base_tokenizer, tmp_path, source, complaint):
    file = tmp_path / "bad.jinja"
    file.write_text(source)
    with pytest.raises(DataError, match=rf"template file .*bad\.jinja.*{complaint}"):
        build_template(str(file), base_tokenizer)


def test_a_missing_file_is_named(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"template file '.*absent\.jinja' cannot be read: .*No such file"):
        build_template(str(tmp_path / "absent.jinja"), tokenizer)


# ---- fingerprints


def test_the_fingerprint_changes_with_what_is_sent_and_with_nothing_else(tokenizer, base_tokenizer, tmp_path):
    def of(name, tokenizer=tokenizer, **shots):
        return build_template(name, tokenizer, **shots).fingerprint

    first, second = tmp_path / "a.jinja", tmp_path / "b.jinja"
    first.write_text("{{ question }}")
    second.write_text("{{ question }} ")
    shots = dict(shots=SHOTS, shot_count=2)
    fingerprints = [
        *map(of, TEMPLATES), of(str(first)), of(str(second)), of("few-shot", **shots), of("few-shot", shots=SHOTS,
        shot_count=3), of("few-shot", shots=SHOTS[1:], shot_count=2), of("none", base_tokenizer),
    ]  # fmt: skip
    assert len(set(fingerprints)) == len(fingerprints)
    assert of("few-shot", **shots) == fingerprints[len(TEMPLATES) + 2]
    base_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    before = of("chat", base_tokenizer)
    base_tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    assert of("chat", base_tokenizer) != before
    third = tmp_path / "moved" / "a.jinja"
    third.parent.mkdir()
    third.write_text("{{ question }}")
    assert of(str(third)) == of(str(first))
