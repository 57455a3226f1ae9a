"""What `python -m eval run` is told: a YAML file, flags, or both."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf.config.evaluation import BenchmarkSettings
from rlhf.config.rollouts import EngineConfig, TransformersEngineConfig, VllmEngineConfig


class EvalSettings(BenchmarkSettings):
    """An evaluation: one checkpoint on some benchmarks. Every setting is a flag (`--max-tokens 512`) or a YAML key."""

    model: str
    """A local folder, a hub id, or `embedded:smollm2-135m-instruct`."""
    peft: str | None = None
    """Folder or hub id of a LoRA adapter; it is merged into a copy of the weights."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and compute; `auto`: the checkpoint's own, and the reward model's own for it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint, and with the reward model."""
    benchmarks: list[str]
    """Names, separated by commas; `python -m eval list` shows them."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What makes the completions."""
    reward_model: str | None = None
    """A sequence classifier with one label, folder or hub id, that scores the completions for best-of-k."""
    reward_model_revision: str | None = None
    """Branch, tag or commit of the reward model on the hub."""
    output: str = ""
    """Folder for the results; none given: evaluations/<model's name>."""
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

    @field_validator("benchmarks")
    @classmethod
    def _refuse_none(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one benchmark, e.g. gsm8k")
        return value

    @model_validator(mode="after")
    def _refuse_a_revision_of_nothing(self) -> "EvalSettings":
        if self.reward_model is None and self.reward_model_revision is not None:
            raise ValueError(
                f"reward_model_revision is {self.reward_model_revision!r} and there is no reward_model: name it"
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
