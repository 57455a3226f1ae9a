"""Preference runs that are killed and resumed equal uninterrupted ones, to the bit: offline on a dataset, and online
with a replay, a reference that moves, and completions of the reference."""

import hashlib
import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from rlhf.config.loading import to_yaml
from rlhf.config.vpo import VPOConfig
from rlhf.training.checkpoint import list_checkpoints
from rlhf.training.metrics import deterministic
from tests.processes import ROOT, output_of, run_on_two_ranks, start
from tests.tiny_runs import tiny_config

STEPS = 6
BATCH = {"steps": STEPS, "prompts_per_step": 4, "minibatches": 2, "epochs": 2, "tokens_per_micro_batch": 128}
RECIPE = (ROOT / "recipes" / "vpo.py", "--config")
OFFLINE = {"preset": "vpo", "mode": "offline"}
ONLINE = {
    "preset": "vpo", "alpha": 0.1, "calibration": "ref", "replay": "window", "replay_window": 2,
    "reference": "iteration", "reference_every": 2, "pairs": {"keep_truncated": True},
}  # fmt: skip


def write_config(folder: Path, model: str, name: str, algorithm: dict) -> Path:
    plain = tiny_config(
        model,
        run={"folder": str(folder), "name": name},
        batch=BATCH,
    ).model_dump()
    if algorithm.get("mode") == "offline":
        pairs = folder / "pairs.jsonl"
        rows = [{"prompt": f"{n} and 2 make", "chosen": f" {n + 2}", "rejected": f" {n}, or so"} for n in range(13)]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        plain["data"] = {"type": "preferences", "path": str(pairs)}
    config = VPOConfig.model_validate(plain | {"algorithm": algorithm})
    file = folder / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return file


def read(run: Path) -> tuple[list[dict], str]:
    metrics = [deterministic(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = list_checkpoints(run / "checkpoints")[-1] / "weights.safetensors"
    return metrics, hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [OFFLINE, ONLINE], ids=["offline", "online"])
def test_killed_and_resumed_equals_straight(tmp_path, model, algorithm):
    output_of(start(*RECIPE, write_config(tmp_path, model, "straight", algorithm)))
    straight = read(tmp_path / "straight")
    assert len(straight[0]) == STEPS and all(line["pairs/count"] > 0 for line in straight[0])
    assert all(line["gradient/norm"] > 0 for line in straight[0])

    config_file, run = write_config(tmp_path, model, "killed", algorithm), tmp_path / "killed"
    process, deadline = start(*RECIPE, config_file), time.monotonic() + 240
    while len(list_checkpoints(run / "checkpoints")) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert len((run / "metrics.jsonl").read_text().splitlines()) < STEPS, output
    assert "resuming" in output_of(start(*RECIPE, config_file))
    assert read(run) == straight


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [OFFLINE | {"reference_logps": "live"}, ONLINE], ids=["offline", "online"])
def test_two_ranks_stop_and_go_on_to_the_same_weights(tmp_path, model, algorithm):
    files = [write_config(tmp_path, model, name, algorithm) for name in ("straight", "stopped")]
    run_on_two_ranks(RECIPE[0], *RECIPE[1:], files[0])
    # FREE_SETTINGS of checkpoints let the number of steps grow: the first half is a run of its own
    half = VPOConfig.model_validate(yaml.safe_load(files[1].read_text()) | {"batch": BATCH | {"steps": STEPS // 2}})
    part = tmp_path / "half.yaml"
    part.write_text(to_yaml(half))
    run_on_two_ranks(RECIPE[0], *RECIPE[1:], part)
    run_on_two_ranks(RECIPE[0], *RECIPE[1:], files[1])
    straight, stopped = read(tmp_path / "straight"), read(tmp_path / "stopped")
    assert len(straight[0]) == STEPS and all(line["pairs/count"] > 0 for line in straight[0])
    assert stopped == straight


@pytest.mark.slow
def test_precomputed_reference_log_probs_are_those_of_a_second_model(tmp_path, model):
    found = []
    for name in ("precomputed", "live"):
        output_of(start(*RECIPE, write_config(tmp_path, model, name, OFFLINE | {"reference_logps": name})))
        found.append(read(tmp_path / name))
    assert (tmp_path / "precomputed" / "reference_logps.safetensors").exists()
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["logps/chosen"] == pytest.approx(other["logps/chosen"], rel=1e-6)
