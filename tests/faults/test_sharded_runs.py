"""A recipe under `accelerate launch` with DeepSpeed ZeRO-3 on two ranks: one of them is killed, and the run goes on."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from rlhf.config.loading import to_yaml
from rlhf.training.checkpoint import MANIFEST, list_checkpoints
from rlhf.training.metrics import deterministic
from tests.processes import ROOT, output_of, start
from tests.tiny_runs import save_tiny_model, tiny_config

STEPS = 4
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "accelerate" / "zero3.yaml",
          "--num_processes", "2", "--main_process_port", "0", ROOT / "recipes" / "grpo.py", "--config"]  # fmt: skip


def write_config(folder: Path, model: str, name: str) -> Path:
    config = tiny_config(
        model,
        run={"folder": str(folder), "name": name},
        batch={"steps": STEPS, "prompts_per_step": 4, "minibatches": 2, "tokens_per_micro_batch": 64},
    )
    file = folder / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return file


def read(run: Path) -> tuple[list[dict], str, dict[str, str]]:
    """(metrics, samples, checksums of the last checkpoint's weights and state)."""
    metrics = [deterministic(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = list_checkpoints(run / "checkpoints")[-1]
    manifest = json.loads((last / MANIFEST).read_text())
    shards = {name: digest for name, digest in manifest.items() if name.startswith("shard-")}
    assert last.name == f"step-{STEPS:06d}" and len(shards) == 2
    return metrics, (run / "samples.jsonl").read_text(), shards


def rank_process(launcher: psutil.Process, rank: int) -> psutil.Process | None:
    for child in launcher.children(recursive=True):
        if "recipes/grpo.py" in " ".join(child.cmdline()) and child.environ().get("RANK") == str(rank):
            return child
    return None


@pytest.mark.slow
def test_a_run_whose_rank_was_killed_ends_where_it_would_have(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    output_of(start(*LAUNCH, write_config(tmp_path, model, "straight")))
    config = write_config(tmp_path, model, "killed")
    process = start(*LAUNCH, config)
    deadline = time.monotonic() + 240
    while len(list_checkpoints(tmp_path / "killed" / "checkpoints")) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    rank_process(psutil.Process(process.pid), 1).send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    done = len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines())
    assert 2 <= done < STEPS
    resumed = output_of(start(*LAUNCH, config))
    assert "resuming" in resumed
    assert read(tmp_path / "killed") == read(tmp_path / "straight")
    assert (tmp_path / "killed" / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "straight" / "model" / "model.safetensors"
    ).read_bytes()
