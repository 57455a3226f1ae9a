"""`recipes/grpo.py` on a workload: the config it is given, and what is read from the folder of its run."""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peers.records import StepRecord
from peers.workloads import MODEL, PROMPT_TOKENS, Trial, dataset_rows, prompts_digest, question, write_rows
from rlhf.data.order import PromptOrder
from rlhf.data.seeds import derive_seed

ROOT = Path(__file__).resolve().parents[2]
RUN_NAME = "benchmark"
PHASES = {"generate": "generate", "reward": "reward", "update": "update", "sync": "sync", "step": "total"}
"""Our phase names, after `time/`, and those of the table."""


@dataclass(frozen=True)
class Variant:
    """Which engine generates."""

    engine: str
    tuned_malloc: bool = True
    """Our launcher sets the allocator's thresholds."""


VARIANTS = {"transformers": Variant("transformers"), "vllm": Variant("vllm")}


def command(trial: Trial, variant: str, folder: Path) -> list[str]:
    """What to run; writes the config and the prompts to `folder`, in which the run's folder comes to lie."""
    prompts = folder / "prompts.jsonl"
    write_rows(arrange(dataset_rows(trial), trial.seed), prompts)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(recipe_config(trial, variant, prompts, folder)), encoding="utf-8")
    return [sys.executable, str(ROOT / "recipes" / "grpo.py"), "--config", str(config)]


def arrange(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows in the order of a file that a run with `seed`, which shuffles, takes in the order of `rows`."""
    order = run_order(len(rows), seed)
    arranged: list[dict[str, Any]] = [{}] * len(rows)
    for position, row in enumerate(rows):
        arranged[order(position)] = row
    return arranged


def run_order(length: int, seed: int) -> PromptOrder:
    """The order in which a run with `run.seed` takes a dataset's rows (rlhf/trainers/run.py)."""
    return PromptOrder(length, derive_seed(seed, "order"))


def recipe_config(trial: Trial, variant: str, prompts: Path, folder: Path) -> dict[str, Any]:
    """The recipe's YAML: TRL's default objective (token mean, group-normalised, clip 0.2, no KL), all else ours."""
    workload = trial.workload
    engine: dict[str, Any] = {"type": VARIANTS[variant].engine}
    if engine["type"] == "vllm":
        engine |= {"cpu_kv_cache_gib": 1.0, "max_num_seqs": workload.completions}
    reward = f"{Path(__file__).with_name('workloads.py')}:{workload.reward}"
    return {
        "run": {"name": RUN_NAME, "folder": str(folder), "seed": trial.seed, "resume": "never"},
        "model": {"path": MODEL, "dtype": trial.precision},
        "data": {
            "type": "dataset",
            "path": str(prompts),
            "prompt_field": "prompt",
            "answer_field": "answer",
            "max_prompt_tokens": PROMPT_TOKENS,
        },
        "rewards": {"functions": [{"type": "callable", "path": reward}]},
        "engine": engine,
        "sampling": {"samples_per_prompt": workload.generations, "max_tokens": workload.max_tokens, "temperature": 1.0},
        "algorithm": {"preset": "grpo", "denominator": "token"},
        "batch": {"steps": trial.steps, "prompts_per_step": workload.prompts, "max_grad_norm": 1.0},
        "optimizer": {"type": "adamw", "lr": workload.lr, "weight_decay": 0.0},
        "schedule": {"type": "constant"},
        "checkpoint": {"every": 0, "export": False},
        "evaluation": {"prompts": 0},
        "tracking": {"show_completions_every": 0},
    }


def read_record(folder: Path) -> tuple[list[StepRecord], dict[str, Any]]:
    """The steps of the run and the settings that its config resolved to.

    Raises FileNotFoundError where the run wrote no metrics, KeyError for a metric that it should have.
    """
    run = folder / RUN_NAME
    samples: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for sample in _lines(run / "samples.jsonl"):
        samples[sample["step"]].append(sample)
    steps = [_step(metrics, samples[metrics["step"]]) for metrics in _lines(run / "metrics.jsonl")]
    resolved = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    settings = {
        "weights": "float32",
        "compute": resolved["model"]["dtype"],
        "gradient_checkpointing": resolved["model"]["gradient_checkpointing"],
        "micro_batch": f"{resolved['batch']['tokens_per_micro_batch']} tokens",
        "loss": f"{resolved['algorithm']['preset']}, {resolved['algorithm']['denominator']} mean",
        "threads": environment["torch_threads"],
    }
    return steps, settings


def _step(metrics: dict[str, Any], samples: list[dict[str, Any]]) -> StepRecord:
    packed, trained = metrics.get("tokens/packed"), metrics.get("tokens/trained")
    return StepRecord(
        seconds={theirs: metrics[f"time/{ours}"] for ours, theirs in PHASES.items() if f"time/{ours}" in metrics},
        sampled_tokens=sum(sample["completion_tokens"] for sample in samples),
        reward=metrics["reward/mean"],
        prompts=prompts_digest(question(sample["prompt"]) for sample in samples),
        model_tokens=int(packed) if packed is not None else None,
        trained_tokens=int(trained) if trained is not None else None,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
