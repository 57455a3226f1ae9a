"""`--dry-run` and `--help` as a user runs them, and the shipped recipes through them."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.dry_run import batch_table, planned_device
from rlhf.config.grpo import GRPOConfig
from rlhf.config.help import render_help
from rlhf.config.loading import ConfigError, load_config, parse_config
from rlhf.config.schema import leaf_paths

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/grpo").glob("*.yaml"))
PROGRAM = """
import sys
from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import load_config
try:
    load_config(GRPOConfig)
finally:
    heavy = {"torch", "transformers", "numpy", "accelerate", "vllm"} & set(sys.modules)
    assert not heavy, heavy
"""


QWEN = str(ROOT / "configs/grpo/gsm8k_qwen2.5_0.5b.yaml")


def run(*arguments: str, **environment: str) -> tuple[str, float]:
    """stdout of a recipe's start with `arguments`, and the CPU seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_a_recipe_s_dry_run_prints_a_configuration_that_loads_back(recipe, tmp_path):
    output, _ = run("--config", str(recipe), "--dry-run")
    again = tmp_path / "again.yaml"
    again.write_text(output)
    assert parse_config(GRPOConfig, ["--config", str(again)]) == parse_config(GRPOConfig, ["--config", str(recipe)])
    assert "--- Batches ---" in output and "total for one rank" in output


def test_dry_run_and_help_are_instant_and_load_nothing_heavy():
    """Promised: under 2 s. In CPU seconds, since other processes may be busy; the program waits for nothing."""
    for arguments in (["--config", str(RECIPES[0]), "--dry-run"], ["--help"]):
        assert run(*arguments)[1] < 2.0


def test_the_batch_table_counts(parse):
    config = parse(
        "--batch.steps", "10", "--batch.prompts_per_step", "32", "--batch.minibatches", "2", "--batch.epochs", "3",
        "--sampling.samples_per_prompt", "4", "--sampling.max_tokens", "100", "--data.max_prompt_tokens", "50",
        "--batch.tokens_per_micro_batch", "1000",
    )  # fmt: skip
    lines = batch_table(config, world_size=4).splitlines()
    numbers = [line[28:].split() for line in lines[1:5]]
    assert numbers[0] == ["32", "128", "12,800", "14,400"]
    assert numbers[1] == ["8", "32", "3,200", "3,600"]
    assert numbers[2] == ["16", "64", "6,400", "7,200"]
    assert numbers[3] == ["4", "16", "1,600", "1,800"]
    text = "\n".join(lines)
    assert "at most about 2 of 1,000 tokens" in text and "2 minibatches x 3 epochs = 6" in text
    assert "10 rollout steps, 60 optimizer steps, 320 prompts, 1,280 samples, 4 ranks" in text


def test_padded_batches_repeat_the_prompt(parse):
    config = parse("--model.attention", "padded", "--batch.prompts_per_step", "2", "--sampling.samples_per_prompt", "4",
                   "--sampling.max_tokens", "100", "--data.max_prompt_tokens", "50")  # fmt: skip
    assert batch_table(config, 1).splitlines()[1].split()[-1] == "1,200"


def test_hidden_gpus_are_not_planned_for(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert planned_device() == "cpu"


def test_memory_can_be_planned_for_a_gpu_from_elsewhere():
    output, _ = run("--config", QWEN, "--dry-run", "cuda")
    assert "on cuda, 1 rank;" in output and "vLLM reserves 30% of the card" in output


def test_memory_can_be_planned_for_a_launch_that_is_not_this_one():
    output, _ = run("--config", QWEN, "--dry-run", "cuda,zero3_offload:8")
    assert "on cuda, 8 ranks, zero3_offload;" in output and "8 ranks\n" in output
    assert "total in host memory" in output and "before it is divided; at the start only" in output


def test_a_launch_is_planned_as_it_is():
    launch = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "WORLD_SIZE": "4"}
    output, _ = run("--config", QWEN, "--dry-run", **launch)
    assert ", 4 ranks, zero2;" in output and "T x 8 (adamw) / 4 ranks" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "zero4:8"], "no method 'zero4'; plan for one of ddp, fsdp2, zero1, zero2, zero3, zero3_offload"),
        (["--dry-run", "tpu"], "METHOD:RANKS (e.g. zero3:8)"),
        (["--dry-run", "zero3:7"], "7"),
        (["--dry-run", "fsdp2:8", "--optimizer.type", "muon"], "needs whole matrices, and fsdp2 divides them"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_remedy(arguments, said, capsys):
    with pytest.raises(SystemExit) as left:
        load_config(GRPOConfig, ["--config", QWEN, *arguments])
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_help_tells_every_field_with_its_meaning():
    text = render_help(GRPOConfig)
    for path in leaf_paths(GRPOConfig):
        if not path.endswith(".type") and not path.startswith("evaluation.data."):
            section, _, name = path.rpartition(".")
            assert f"--{path}  " in text or f"--{section}.N.{name}  " in text, path
    lines = text.splitlines()
    for position, line in enumerate(lines):
        if "  [default: " in line or "  (required)" in line:
            indent = line[: len(line) - len(line.lstrip())]
            assert lines[position + 1].startswith(indent + "    ") and not lines[position + 1].endswith("  "), line


def test_help_of_one_section_is_only_that():
    text = render_help(GRPOConfig, "batch")
    assert text.startswith("batch: What one step consists of.\n  --batch.steps  int (>= 1)  [default: 100]\n      R")
    assert "sampling" not in text
    with pytest.raises(ConfigError, match="sections are run, model, data"):
        render_help(GRPOConfig, "batches")
