"""2n steps equal n steps, kill -9, resume, n steps: parameters, metrics and samples, to the bit."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from rlhf.config.loading import to_yaml
from rlhf.trainers.run import run
from rlhf.training.checkpoint import list_checkpoints, load_checkpoint
from rlhf.training.collecting import RolloutCollector
from rlhf.training.metrics import deterministic
from tests.processes import RECIPE, output_of, start
from tests.tiny_runs import tiny_config

STEPS = 8
KILLED_RUN = Path(__file__).with_name("killed_run.py")


def finish(config_file: Path) -> str:
    return output_of(start(*RECIPE, config_file))


def read(run: Path) -> tuple[list[dict], str, str]:
    metrics = [deterministic(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = hashlib.sha256(
        (list_checkpoints(run / "checkpoints")[-1] / "weights.safetensors").read_bytes()
    ).hexdigest()
    return metrics, (run / "samples.jsonl").read_text(), weights


def write_config(tmp_path: Path, model: str, name: str) -> Path:
    config = tiny_config(
        model,
        run={"folder": str(tmp_path), "name": name},
        batch={"steps": STEPS, "prompts_per_step": 4, "minibatches": 2, "tokens_per_micro_batch": 128},
    )
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return file


def interrupt(config_file: Path, run: Path, number: signal.Signals, checkpoints: int) -> int:
    """Start a run, send it a signal once it has so many checkpoints, and return its exit status; it must not be done
    by then."""
    process = start(*RECIPE, config_file)
    deadline = time.monotonic() + 240
    while len(list_checkpoints(run / "checkpoints")) < checkpoints and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    done = len((run / "metrics.jsonl").read_text().splitlines())
    assert checkpoints <= done < STEPS, output
    return process.returncode


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory):
    """What an undisturbed run leaves behind: every prompt of its steps once, in the order of the stream."""
    folder = tmp_path_factory.mktemp("straight")
    finish(write_config(folder, model, "straight"))
    result = read(folder / "straight")
    assert all(line["gradient/norm"] > 0 for line in result[0]), "a run without a gradient proves nothing"
    samples = [json.loads(line) for line in result[1].splitlines()]
    assert len({s["prompt_id"] for s in samples}) == STEPS * 4
    assert len({(s["prompt_id"], s["index"]) for s in samples}) == len(samples) == STEPS * 4 * 4
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "checkpoints", "status"),
    [(signal.SIGKILL, 2, -signal.SIGKILL), (signal.SIGTERM, 1, 0)],
    ids=["kill", "terminate"],
)
def test_interrupted_and_resumed_equals_straight(tmp_path, model, straight, number, checkpoints, status):
    interrupted = write_config(tmp_path, model, "interrupted")
    assert interrupt(interrupted, tmp_path / "interrupted", number, checkpoints) == status
    assert "resuming" in finish(interrupted)
    assert read(tmp_path / "interrupted") == straight


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["generate", "update", "checkpoint"])
def test_killed_in_a_phase_and_resumed_equals_straight(tmp_path, model, straight, phase):
    config_file = write_config(tmp_path, model, "killed")
    killed = start(KILLED_RUN, config_file, phase, STEPS // 2 + 1)
    output_of(killed, -signal.SIGKILL)
    whole = [path.name for path in list_checkpoints(tmp_path / "killed" / "checkpoints")]
    assert whole[-1] == f"step-{STEPS // 2:06d}"
    assert f"after step {STEPS // 2}" in finish(config_file)
    assert read(tmp_path / "killed") == straight


@pytest.mark.slow
def test_stopped_before_the_first_step_and_resumed_evaluates_as_straight(tmp_path, model, monkeypatch):
    """The stop comes after the evaluation at step 0, which is in the file by then."""
    configs = [
        tiny_config(
            model,
            run={"folder": str(tmp_path), "name": name},
            batch={"steps": 2, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
            evaluation={"prompts": 4, "max_tokens": 8},
            checkpoint={"every": 0, "export": False},
        )
        for name in ("straight", "stopped")
    ]
    straight, stopped = run(configs[0]), tmp_path / "stopped"
    collect = RolloutCollector.collect

    def terminated(self, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return collect(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutCollector, "collect", terminated)
        run(configs[1])
    checkpoint = load_checkpoint(list_checkpoints(stopped / "checkpoints")[-1])
    assert checkpoint.state["step"] == 0 and len((stopped / "evaluations.jsonl").read_text().splitlines()) == 1
    run(configs[1])
    assert read(stopped) == read(straight)
    assert (stopped / "evaluations.jsonl").read_bytes() == (straight / "evaluations.jsonl").read_bytes()
