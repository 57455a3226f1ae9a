"""How a model is evaluated: which questions, how often, sampled how. Shared by training and by `python -m eval`."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from rlhf.config.data import PromptSourceConfig
from rlhf.config.rollouts import SamplingConfig
from rlhf.config.section import Section


class BenchmarkSettings(Section):
    """How benchmarks are asked. Nothing is taken from the settings that training samples with."""

    benchmarks: list[str] = Field(default_factory=list)
    """Names, separated by commas; `python -m eval list` shows them."""
    benchmark_file: str | None = None
    """A YAML file with benchmarks of your own."""
    data_dir: str | None = None
    """A folder with the benchmarks' files (jsonl, json, parquet); none given: the hub."""
    limit: int | None = Field(None, ge=1)
    """Only the first N questions of each benchmark."""
    samples: int = Field(1, ge=1)
    """Completions per question (k)."""
    temperature: float = Field(0.0, ge=0)
    """Softmax temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: int = Field(0, ge=0)
    """Keep only the k most likely tokens; 0 is off."""
    max_tokens: int = Field(1024, ge=1)
    """Longest completion in tokens."""
    stop_token_ids: list[int] | None = None
    """Tokens that end a completion; none given: the tokenizer's eos and the chat template's end-of-turn."""
    template: str = "chat"
    """Prompt template by name, or a jinja file (`*.jinja`); see docs/evaluation.md."""
    shots: int = Field(0, ge=0)
    """Worked examples in front of the question (template few-shot)."""
    seed: int = Field(0, ge=0)
    """Every draw is a function of this seed, the benchmark, the question's id and the sample's index."""
    samples_per_batch: int = Field(256, ge=1)
    """Completions made, graded and written at once."""
    grader_workers: int = Field(1, ge=1)
    """Grading processes."""
    grader_timeout_s: float = Field(10.0, gt=0)
    """Wall-clock limit of grading one completion."""

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        # a flag's text arrives as a list of one
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
            return value
        return [name.strip() for names in values for name in names.split(",") if name.strip()]

    @field_validator("benchmarks")
    @classmethod
    def _refuse_a_benchmark_twice(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"a benchmark is named twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _refuse_equal_samples(self) -> "BenchmarkSettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples = {self.samples} at temperature 0 are the same completion {self.samples} times: set "
                "temperature above 0 (0.6 and 1.0 are usual), or samples to 1"
            )
        return self

    @property
    def sampling(self) -> SamplingConfig:
        """What the engine is told for each question."""
        return SamplingConfig(
            samples_per_prompt=self.samples,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_token_ids=self.stop_token_ids,
        )


class EvaluationConfig(BenchmarkSettings):
    """Held-out prompts and benchmarks, before, during and after training. Benchmarks are asked by the code of
    `python -m eval run`."""

    every: int = Field(0, ge=0)
    """Steps between evaluations; 0: only before and after."""
    prompts: int = Field(200, ge=0)
    """Held-out prompts in the format of the training prompts, one completion each; 0 is off."""
    data: PromptSourceConfig | None = None
    """Where held-out prompts come from; none given: the held-out fifth of a generated task."""

    @property
    def sets(self) -> list[str]:
        """Names that an evaluation's records have."""
        return (["held_out"] if self.prompts else []) + self.benchmarks
