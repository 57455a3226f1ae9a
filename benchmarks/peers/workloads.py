"""What every contestant works on: the same prompts in the same order, the same reward, the same settings."""

import functools
import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

MODEL = "embedded:smollm2-135m-instruct"
PROMPT_TOKENS = 64  # an upper bound: these prompts have 44 to 46 with SmolLM2's chat template


@dataclass(frozen=True)
class Workload:
    """Sums of two numbers below `number_below`; a step has `prompts` x `generations` completions of <= `max_tokens`."""

    name: str
    title: str
    number_below: int
    prompts: int
    generations: int
    max_tokens: int
    lr: float
    steps: int
    """Steps of one run; the first is not in the medians."""
    reward: str = "last_integer_reward"
    """One of the functions below."""
    end_to_end: bool = False
    """What counts is the time of all steps together and the reward at the end, not the median step."""

    @property
    def completions(self) -> int:
        return self.prompts * self.generations


WORKLOADS = {
    "batch-s": Workload("batch-s", "Batch S", 50, prompts=4, generations=8, max_tokens=64, lr=1e-6, steps=4),
    "batch-s-dense": Workload(
        "batch-s-dense", "Batch S, every group with a signal", 50, prompts=4, generations=8, max_tokens=64, lr=1e-6,
        steps=4, reward="even_length_reward",
    ),
    "task-d": Workload(
        "task-d", "Task D", 10, prompts=8, generations=8, max_tokens=24, lr=3e-5, steps=24, end_to_end=True
    ),
    "smoke": Workload("smoke", "Smoke", 10, prompts=2, generations=2, max_tokens=4, lr=1e-6, steps=2),
}


@dataclass(frozen=True)
class Trial:
    """What a process is to do: `precision` is of compute; weights that the optimizer works on stay float32."""

    workload: Workload
    steps: int
    seed: int
    precision: Literal["float32", "bfloat16"]


@functools.cache
def native_precision() -> Literal["float32", "bfloat16"]:
    """bfloat16 where the processor multiplies it, or there is a GPU; elsewhere it is many times slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    is_native = "amx_bf16" in flags or "avx512_bf16" in flags or shutil.which("nvidia-smi") is not None
    return "bfloat16" if is_native else "float32"


def dataset_rows(trial: Trial) -> list[dict[str, Any]]:
    """`steps * prompts` rows in TRL's conversational form, in the order in which they are trained on."""
    workload = trial.workload
    draw = random.Random(f"{workload.name}/{trial.seed}")
    rows = []
    for _ in range(trial.steps * workload.prompts):
        a, b = draw.randrange(workload.number_below), draw.randrange(workload.number_below)
        content = f"What is {a} + {b}? Answer with only the number."
        rows.append({"prompt": [{"role": "user", "content": content}], "answer": str(a + b)})
    return rows


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_integer_reward(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str], **columns: Any
) -> list[float]:
    """1 where the last integer of the completion is the sum, else 0; TRL's signature, so that both sides call this one.

    A completion is a string, or a list of messages whose last one is the model's.
    """
    rewards = []
    for completion, gold in zip(completions, answer, strict=True):
        integers = re.findall(r"\d+", _text(completion))
        rewards.append(float(bool(integers) and int(integers[-1]) == int(gold)))
    return rewards


def even_length_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 for a completion with an even number of characters, else 0: a coin, so that hardly a group has no signal.

    Where the task's own reward is rare, most groups have none, and a part of what is measured is how they are left out.
    """
    return [float(len(_text(completion)) % 2 == 0) for completion in completions]


REWARDS = {function.__name__: function for function in (last_integer_reward, even_length_reward)}


def _text(completion: str | list[dict[str, Any]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def question(prompt: str | list[dict[str, Any]]) -> str:
    """The user's words in a prompt of either form."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def prompts_digest(questions: Iterable[str]) -> str:
    """Equal for two steps with the same prompts, each as often, in any order within the step."""
    return hashlib.blake2b("\n".join(sorted(questions)).encode(), digest_size=8).hexdigest()
