"""2n steps equal n steps, kill -9, resume, n steps: parameters, metrics and samples, to the bit."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.config.loading import to_yaml
from rlhf.training.checkpoint import list_checkpoints
from rlhf.training.metrics import deterministic
from tests.tiny_runs import save_tiny_model, tiny_config

RECIPE = Path(__file__).parents[2] / "recipes" / "grpo.py"


def start(config_file: Path) -> subprocess.Popen:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RECIPE), "--config", str(config_file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(config_file: Path) -> str:
    output, _ = (process := start(config_file)).communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def read(run: Path) -> tuple[list[dict], str, str]:
    metrics = [deterministic(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = hashlib.sha256((list_checkpoints(run / "checkpoints")[-1] / "weights.safetensors").read_bytes()).hexdigest()
    return metrics, (run / "samples.jsonl").read_text(), weights


def write_config(tmp_path: Path, model: str, name: str) -> Path:
    config = tiny_config(
        model,
        run={"folder": str(tmp_path), "name": name},
        batch={"steps": 8, "prompts_per_step": 4, "minibatches": 2, "tokens_per_micro_batch": 128},
    )
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return file


@pytest.mark.slow
def test_killed_and_resumed_equals_straight(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    finish(write_config(tmp_path, model, "straight"))
    killed = write_config(tmp_path, model, "killed")
    process = start(killed)
    deadline = time.monotonic() + 240
    while len(list_checkpoints(tmp_path / "killed" / "checkpoints")) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == -signal.SIGKILL:
        assert "resuming" in finish(killed)
    straight, resumed = read(tmp_path / "straight"), read(tmp_path / "killed")
    assert all(line["gradient/norm"] > 0 for line in straight[0]), "a run without a gradient proves nothing"
    assert straight[0] == resumed[0] and straight[1] == resumed[1] and straight[2] == resumed[2]
    steps = [json.loads(line) for line in straight[1].splitlines()]
    assert len({(s["step"], s["prompt_id"], s["index"]) for s in steps}) == 8 * 4 * 4


@pytest.mark.slow
def test_sigterm_saves_the_samples_that_were_not_learned_from(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    finish(write_config(tmp_path, model, "straight"))
    stopped = write_config(tmp_path, model, "stopped")
    process = start(stopped)
    deadline = time.monotonic() + 240
    while not list_checkpoints(tmp_path / "stopped" / "checkpoints") and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    finish(stopped)
    assert read(tmp_path / "straight") == read(tmp_path / "stopped")
