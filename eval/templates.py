r"""How a question becomes a prompt: the templates of public protocols by name, or a user's jinja file.

A template yields text, token ids and stop strings. The ids are what the model is given, and are made once:
- a conversation is rendered with the checkpoint's chat template, which brings its own special tokens; nothing is added;
- a text (all other templates, and `few-shot-chat`, as lm-evaluation-harness does) is encoded with the special tokens
  that the tokenizer puts in front of any text; where the text brings a beginning-of-sequence token of its own, it stays
  the only one, and an end of sequence that a tokenizer would append is left out.

A question is data: braces, jinja syntax and backslashes in it come out as they are.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from eval.few_shot import STOP_STRINGS, Shots, few_shot_messages, few_shot_text, solution
from eval.questions import Question
from eval.template_files import TemplateFile
from rlhf.config.data import PromptFormat
from rlhf.data.errors import DataError
from rlhf.data.formatting import TEMPLATE_ERRORS, PromptFormatter

TEMPLATES = {
    "chat": "the checkpoint's chat template, the question as the user's message",
    "qwen-boxed": "chat, with the request for a boxed answer behind the question (Qwen2.5-Math, `qwen-boxed`)",
    "qwen-math-cot": "chat, with that request as the system message (Qwen2.5-Math, `qwen25-math-cot`)",
    "r1": "text: User and Assistant, <think> and <answer> (DeepSeek-R1-Zero, arXiv 2501.12948, table 1)",
    "dr-grpo": "text: qwen-math-cot's ChatML, written out for base models (Dr. GRPO, arXiv 2503.20783, `qwen_math`)",
    "none": "text: the question as it is (Dr. GRPO's `no`)",
    "answer-line": "asks for a last line `Answer: ...` (OpenAI simple-evals); chat where the checkpoint has a template",
    "few-shot": "text: lm-evaluation-harness's gsm8k prompt with `shots` worked examples",
    "few-shot-chat": "the same as a conversation, as the harness's --apply_chat_template makes it",
}
"""Names and what they stand for."""

BOXED_REQUEST = r"Please reason step by step, and put your final answer within \boxed{}."
R1_PREAMBLE = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>."
)
ANSWER_LINE_REQUEST = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$ANSWER (without quotes) where $ANSWER is the answer to the problem."
)
ANSWER_LINE_REMINDER = (
    r'Remember to put your answer on its own line after "Answer:", and you do not need to use a \boxed command.'
)

Message = dict[str, Any]
Composed = tuple[str | list[Message], tuple[str, ...]]
"""What is sent (a text or a conversation) and the stop strings."""
PROBE = Question("probe", "What is 2 + 3?", "5")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt. The completion is cut in front of the first of `stop_strings` (`cut_at_stop_string`); the engine's own
    stop tokens, end of sequence and end of turn, are not listed."""

    text: str
    token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]


class Template:
    """One way to ask, for one tokenizer. `fingerprint` changes with anything that decides what is sent, the question
    aside: wording, chat template, tokenizer, worked examples, stop strings."""

    def __init__(
        self,
        name: str,
        fingerprint: str,
        tokenizer: PreTrainedTokenizerBase,
        compose: Callable[[Question, int], Composed],
        encodes_chat_as_text: bool = False,
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self._tokenizer, self._compose, self._encodes_chat_as_text = tokenizer, compose, encodes_chat_as_text
        self._formatter = PromptFormatter(PromptFormat(), tokenizer)

    def render(self, question: Question, index: int) -> Rendered:
        """The prompt of `question`, the index-th (from 0) of its benchmark.

        Raises DataError where a chat template or a user's file cannot render it, or no token comes out.
        """
        content, stop_strings = self._compose(question, index)
        text = content if isinstance(content, str) else _chat_text(self._tokenizer, content, question.id)
        encoded = text if self._encodes_chat_as_text else content
        token_ids = tuple(self._formatter.encode([encoded], [question.id])[0])
        if not token_ids:
            raise DataError(f"question {question.id!r}: template {self.name} makes no tokens of it: is its text empty?")
        return Rendered(text, token_ids, stop_strings)


def build_template(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shots: Sequence[Question] = (),
    shot_count: int = 0,
    file: Path | None = None,
) -> Template:
    """The template called `name` (a key of TEMPLATES, or the path of a `*.jinja` file), or the one in `file`.

    `shots` are the questions that `shot_count` worked examples are drawn from (eval/few_shot.py). Raises DataError for
    an unknown name, a missing chat template, too few shots, shots that the template has no place for, and a file with
    mistakes: a probe question is rendered at once.
    """
    if file is None and Path(name).suffix in (".jinja", ".jinja2", ".j2"):
        file = Path(name)
    if file is None and name not in TEMPLATES:
        raise DataError(
            f"unknown template {name!r}: it is one of {', '.join(TEMPLATES)}, or a file that ends in .jinja"
        )
    if shot_count and file is None and not name.startswith("few-shot"):
        raise DataError(
            f"template {name!r} has no place for worked examples, and shots is {shot_count}: use few-shot or "
            "few-shot-chat, or a jinja file that writes the variable `shots`"
        )
    drawn = Shots(shots, shot_count)
    if file is not None:
        name = file.name
        own = TemplateFile(file, tokenizer, lambda text, system: _chat_text(tokenizer, _messages(text, system), name))

        def compose(question: Question, index: int) -> Composed:
            return own.render(question, drawn.before(question, index))

        wording: Any = own.source
    else:
        _require_chat_template(name, tokenizer)
        compose = _named(name, tokenizer, drawn)
        wording = [name, *compose(PROBE, 0)]
    fingerprint = _fingerprint(wording, tokenizer, drawn)
    template = Template(name, fingerprint, tokenizer, compose, encodes_chat_as_text=name == "few-shot-chat")
    template.render(PROBE, 0)
    return template


def cut_at_stop_string(completion: str, stop_strings: Sequence[str]) -> str:
    """The completion in front of each of the stop strings, one after the other as lm-evaluation-harness cuts."""
    for stop in stop_strings:
        completion = completion.partition(stop)[0]
    return completion


def _named(name: str, tokenizer: PreTrainedTokenizerBase, shots: Shots) -> Callable[[Question, int], Composed]:
    """What the built-in template called `name` sends."""
    eos = (tokenizer.eos_token,) if tokenizer.eos_token and tokenizer.eos_token not in STOP_STRINGS else ()
    has_chat_template = bool(tokenizer.chat_template)

    def compose(question: Question, index: int) -> Composed:
        text = question.text
        match name:
            case "chat":
                return _messages(text), ()
            case "qwen-boxed":
                return _messages(f"{text}\n{BOXED_REQUEST}"), ()
            case "qwen-math-cot":
                return _messages(text, BOXED_REQUEST), ()
            case "r1":
                return f"{R1_PREAMBLE}\nUser: {text}\nAssistant: <think>", ("</answer>",)
            case "dr-grpo":
                turns = (("system", BOXED_REQUEST), ("user", text))
                written = "".join(f"<|im_start|>{role}\n{words}<|im_end|>\n" for role, words in turns)
                return f"{written}<|im_start|>assistant\n", ("<|im_end|>",)
            case "none":
                return text, ()
            case "answer-line":
                request = f"{ANSWER_LINE_REQUEST}\n\n{text}\n\n{ANSWER_LINE_REMINDER}"
                return (_messages(request) if has_chat_template else request), ()
            case "few-shot":
                return few_shot_text(question, shots.before(question, index)), STOP_STRINGS + eos
            case "few-shot-chat":
                return few_shot_messages(question, shots.before(question, index)), STOP_STRINGS + eos
        raise AssertionError(f"template {name} is listed but not written")

    return compose


def _messages(text: str, system: str | None = None) -> list[Message]:
    user = {"role": "user", "content": text}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _chat_text(tokenizer: PreTrainedTokenizerBase, messages: list[Message], place: str) -> str:
    if not tokenizer.chat_template:
        raise DataError(f"{place}: {_no_chat_template(tokenizer)}")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise DataError(
            f"{place}: the checkpoint's chat template does not accept these messages ({roles}): {error}; where it has "
            "no system message, qwen-boxed asks for the same in the user's"
        ) from error


def _require_chat_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if name in ("chat", "qwen-boxed", "qwen-math-cot", "few-shot-chat") and not tokenizer.chat_template:
        raise DataError(f"template {name!r}: {_no_chat_template(tokenizer)}")


def _no_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    where = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return (
        f"the tokenizer {where!r} has no chat template (a base model's?): use a template that is text (few-shot, r1, "
        "dr-grpo, none, or a jinja file of your own), or save a chat template with the tokenizer"
    )


def _fingerprint(wording: Any, tokenizer: PreTrainedTokenizerBase, shots: Shots) -> str:
    # the chat template's source stands for what it renders, which may hold today's date; the ids of a fixed text stand
    # for the tokenizer's vocabulary
    parts = {
        "wording": wording,
        "chat_template": tokenizer.chat_template,
        "special_tokens": [tokenizer.bos_token, tokenizer.eos_token],
        "token_ids": tokenizer(PROBE.text)["input_ids"],
        "shots": [(shot.id, shot.text, solution(shot)) for shot in shots.pool] if shots.count else [],
        "shot_count": shots.count,
        "shot_seed": shots.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
