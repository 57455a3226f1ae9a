"""What a table of benchmarks may say about one benchmark: where its rows are, and what they mean."""

from string import Formatter
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf.config.section import Section


class Gold(Section):
    """What of the answer field is the gold answer."""

    rule: Literal["verbatim", "boxed", "box_or_verbatim", "choice"] = "verbatim"
    after: str | None = Field(None, min_length=1)
    """Keep what follows the last such marker."""
    before: str | None = Field(None, min_length=1)
    """Keep what stands before the first such marker."""


class _Entry(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str = ""
    samples: int = Field(1, ge=1)
    """Recommended completions per question: more for smaller sets."""
    licence: str = ""
    citation: str = ""
    caution: str = ""


class DatasetEntry(_Entry):
    """A set of rows: on the hub, or a file under --data-dir."""

    kind: Literal["dataset"] = "dataset"
    hub: str | None = None
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    files: tuple[str, ...] = ()
    """Tried in order under --data-dir (without it and without `hub`: under the working folder)."""
    question: tuple[str, ...]
    """A field, or a template such as "{Body} {Question}"; of several, the first whose fields the first row has."""
    answer: tuple[str, ...]
    """The field with the answer; of several, the first that the first row has."""
    gold: Gold = Gold()
    options: str | None = None
    """The field with the list of options (multiple choice)."""
    level: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    leave_out: str | None = None
    """Rows whose answer holds this text are left out (after the row count is checked)."""
    rows: tuple[int, ...] = ()
    """How many rows the whole set has."""

    @field_validator("files", "question", "answer", "level", "subject", "rows", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value

    @field_validator("gold", mode="before")
    @classmethod
    def _word_is_a_rule(cls, value: Any) -> Any:
        return {"rule": value} if isinstance(value, str) else value

    @field_validator("question")
    @classmethod
    def _refuse_bad_templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            try:
                parts = list(Formatter().parse(template))
            except ValueError as error:
                raise ValueError(f"{template!r} is not a template: {error}") from None
            for _, field, specification, conversion in parts:
                if field is not None and (not field or specification or conversion or set(field) & set(".[]")):
                    raise ValueError(f"{template!r}: write fields as {{name}}, and nothing else in braces")
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "DatasetEntry":
        if self.hub is None and not self.files:
            raise ValueError("set hub or files: there is nowhere to read it from")
        if not self.question or not self.answer:
            raise ValueError("question and answer need at least one field each")
        if (self.gold.rule == "choice") != (self.options is not None):
            raise ValueError("gold: choice and options go together: set both or neither")
        return self


class GeneratedEntry(_Entry):
    """Held-out problems of a generated task."""

    kind: Literal["generated"]
    task: Literal["arithmetic", "countdown", "word_problems"]
    level: int | None = None
    """Of arithmetic: 1 to 5; of word problems: the number of steps, 2 to 8, or null for all."""
    levels: tuple[int, ...] = ()
    """Each of these is a benchmark of its own, `<name>-<level>`."""
    numbers: int = Field(3, ge=2, le=6)
    largest: int = Field(20, ge=4, le=100)
    size: int = Field(200, ge=1)
    """How many problems; --limit takes its place."""

    @model_validator(mode="after")
    def _refuse_bad_levels(self) -> "GeneratedEntry":
        allowed = {"arithmetic": range(1, 6), "countdown": range(0), "word_problems": range(2, 9)}[self.task]
        levels = [*self.levels] + ([] if self.level is None else [self.level])
        wrong = [level for level in levels if level not in allowed]
        if wrong:
            raise ValueError(
                f"{self.task} has no level {wrong[0]}" + (f": {allowed[0]} to {allowed[-1]}" * bool(allowed))
            )
        if self.task == "arithmetic" and self.level is None:
            raise ValueError("arithmetic needs a level, 1 to 5")
        return self


Entry = DatasetEntry | GeneratedEntry
