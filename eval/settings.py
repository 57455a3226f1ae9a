"""What `python -m eval run` is told: a YAML file, flags, or both."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf.config.rollouts import EngineConfig, SamplingConfig, TransformersEngineConfig, VllmEngineConfig
from rlhf.config.section import Section


class EvalSettings(Section):
    """An evaluation: one checkpoint on some benchmarks. Every setting is a flag (`--max-tokens 512`) or a YAML key."""

    model: str
    """A local folder, a hub id, or `embedded:smollm2-135m-instruct`."""
    peft: str | None = None
    """Folder or hub id of a LoRA adapter; it is merged into a copy of the weights."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and compute; `auto`: the checkpoint's own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    benchmarks: list[str]
    """Names, separated by commas; `python -m eval list` shows them."""
    benchmark_file: str | None = None
    """A YAML file with benchmarks of your own."""
    data_dir: str | None = None
    """A folder with the benchmarks' files (jsonl, json, parquet); none given: the hub."""
    limit: int | None = Field(None, ge=1)
    """Only the first N questions of each benchmark."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What makes the completions."""
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
    template: str = "chat"
    """Prompt template by name, or a jinja file (`*.jinja`); see docs/evaluation.md."""
    shots: int = Field(0, ge=0)
    """Worked examples in front of the question (template few-shot)."""
    seed: int = Field(0, ge=0)
    """Every draw is a function of this seed, the benchmark, the question's id and the sample's index."""
    output: str = ""
    """Folder for the results; none given: evaluations/<model's name>."""
    samples_per_batch: int = Field(256, ge=1)
    """Completions made, graded and written at once: what a killed run loses at most."""
    max_model_len: int | None = Field(None, ge=8)
    """vLLM's longest prompt plus completion; none given: what the questions need."""
    max_num_seqs: int = Field(128, ge=1)
    """Completions that the engine decodes at once."""
    gpu_memory_utilization: float = Field(0.85, gt=0, lt=1)
    """vLLM's share of the GPU."""
    cpu_kv_cache_gib: float = Field(1.0, gt=0)
    """vLLM's key-value cache on CPU, in GiB."""
    enforce_eager: bool = True
    """vLLM without graph capture: starts in seconds. Turn off for long runs on GPU."""
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
    def _refuse_none_or_twice(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one benchmark, e.g. gsm8k")
        if len(set(value)) < len(value):
            raise ValueError(f"a benchmark is named twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _refuse_equal_samples(self) -> "EvalSettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples = {self.samples} at temperature 0 are the same completion {self.samples} times: set "
                "temperature above 0 (0.6 and 1.0 are usual), or samples to 1"
            )
        return self

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output:
            return Path(self.output)
        name = Path(self.model.removeprefix("embedded:")).name or "model"
        return Path("evaluations") / (f"{name}+{Path(self.peft).name}" if self.peft else name)

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(
            samples_per_prompt=self.samples,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    @property
    def engine_config(self) -> EngineConfig:
        if self.engine == "transformers":
            return TransformersEngineConfig(max_rows=self.max_num_seqs)
        return VllmEngineConfig(
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            gpu_memory_utilization=self.gpu_memory_utilization,
            cpu_kv_cache_gib=self.cpu_kv_cache_gib,
            enforce_eager=self.enforce_eager,
        )


# what may differ between a run and the one that continues it: it changes no sample and no verdict
FREE_SETTINGS = (
    "output",
    "data_dir",
    "grader_workers",
    "gpu_memory_utilization",
    "cpu_kv_cache_gib",
)
