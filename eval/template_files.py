"""A prompt template of the user's own: a jinja file.

The file has the variables `question` (its text), `id`, `subject`, `level`, `shots` (worked examples, each with
`question` and `solution`), `bos_token` and `eos_token` (empty where the tokenizer has none), and the function
`chat(text, system=...)`, which renders a user message with the checkpoint's chat template. It may set `stop_strings`:

    {% set stop_strings = ["Problem:"] %}
    Problem: {{ question }}
    Solution:

White space is treated as in chat templates: the line break behind a block tag and the file's last one are no part of
the prompt. The file can do nothing but write text: jinja's sandbox runs it, and it can include no other file.
"""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from eval.few_shot import solution
from eval.questions import Question
from rlhf.data.errors import DataError

# what an expression in a template can raise; each is told with the file's line
FAILURES = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError,
)  # fmt: skip


class TemplateFile:
    """A jinja file, read and compiled. Raises DataError, naming file and line, where it cannot be used."""

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase, chat: Callable[[str, str | None], str]) -> None:
        self.file = file
        try:
            self.source = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"template file {str(file)!r} cannot be read: {error}") from error
        self._always = {
            "chat": lambda text, system=None: chat(text, system),
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
        }
        environment = SandboxedEnvironment(
            loader=jinja2.FunctionLoader(lambda name: (self.source, str(file), None) if name == file.name else None),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        try:
            self._template = environment.get_template(file.name)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"template file {file}, line {error.lineno}: {error.message}") from error

    def render(self, question: Question, shots: Sequence[Question]) -> tuple[str, tuple[str, ...]]:
        """The prompt's text and its stop strings."""
        variables = self._always | {
            "question": question.text,
            "id": question.id,
            "subject": question.subject,
            "level": question.level,
            "shots": [{"question": shot.text, "solution": solution(shot)} for shot in shots],
        }
        try:
            module = self._template.make_module(variables)
        except FAILURES as error:
            raise DataError(f"template file {self.file}, line {self._line(error)}: {error}") from error
        return str(module), self._checked_stop_strings(getattr(module, "stop_strings", ()))

    def _checked_stop_strings(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, list | tuple) and all(isinstance(text, str) and text for text in value):
            return tuple(value)
        raise DataError(f"template file {self.file}: stop_strings is {value!r}, and must be a list of texts")

    def _line(self, error: BaseException) -> int | str:
        # frames of a template have its file's name, and the lines of the Python that jinja made of it
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.file)]
        if not frames or frames[-1].lineno is None:
            return "unknown"
        return self._template.get_corresponding_lineno(frames[-1].lineno)
