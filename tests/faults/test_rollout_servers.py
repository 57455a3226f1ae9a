"""A rollout server is killed in the middle of a run and started again: the run goes on, nothing is lost or doubled."""

import time
from collections import Counter
from pathlib import Path

import pytest

from rlhf.config.loading import to_yaml
from rlhf.training.run_folder import RunFolder
from tests.processes import RECIPE, output_of, start
from tests.rollout_servers import free_port, start_server, stop, wait_until_well
from tests.tiny_runs import save_tiny_model, tiny_config

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")
STEPS = 8
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def write_config(folder: Path, model: str, port: int, name: str) -> Path:
    config = tiny_config(
        model,
        run={"folder": str(folder), "name": name},
        engine={"type": "server", "urls": [f"http://127.0.0.1:{port}"], "retry_for_s": 300, "heartbeat_s": 0.5},
        batch={"steps": STEPS, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
        checkpoint={"every": 0, "export": False},
    )
    file = folder / f"{name}.yaml"
    file.write_text(to_yaml(config))
    return file


def consumed(run: Path) -> Counter:
    """(step, prompt, sample index, seed, version of the weights) of everything that was learned from."""
    keys = ("step", "prompt_id", "index", "seed", "policy_version")
    return Counter(tuple(record[key] for key in keys) for record in RunFolder(run).read_samples())


def test_a_killed_server_is_given_its_weights_again_and_every_prompt_consumed_once(tmp_path):
    """Two ranks share the server that dies; then a trainer of one rank finds the server with the weights of the old."""
    model = save_tiny_model(tmp_path / "model", hidden_size=128, intermediate_size=128)
    port, log_file = free_port(), tmp_path / "server.log"
    server = start_server(model, port, log_file)
    try:
        disturbed = start(
            *TWO_RANKS, *RECIPE, write_config(tmp_path, model, port, "disturbed"),
            ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="",
        )  # fmt: skip
        metrics = RunFolder(tmp_path / "disturbed").metrics
        deadline = time.monotonic() + 300
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
            assert disturbed.poll() is None and time.monotonic() < deadline, disturbed.communicate()[0]
            time.sleep(0.02)
        stop(server)
        at_kill = len(metrics.read_text().splitlines())
        assert at_kill < STEPS - 1
        server = start_server(model, port, log_file)
        output = output_of(disturbed)
        # neither stopped for good nor waited for a time-out that is meant for slow completions
        assert f"http://127.0.0.1:{port} is down" in output and "pushed in" in output, output
        assert [line["step"] for line in RunFolder(tmp_path / "disturbed").read_metrics()] == list(range(1, STEPS + 1))
        wait_until_well(server, port, log_file)
        output_of(start(*RECIPE, write_config(tmp_path, model, port, "undisturbed")))
    finally:
        stop(server)
    expected = consumed(tmp_path / "undisturbed")
    assert set(expected.values()) == {1} and len(expected) == STEPS * 4 * 4
    assert consumed(tmp_path / "disturbed") == expected


def test_no_server_at_all_ends_the_run_in_time_and_names_the_address(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    port = free_port()
    file = write_config(tmp_path, model, port, "alone")
    begun = time.monotonic()
    output = " ".join(output_of(start(*RECIPE, file, "--engine.start_timeout_s", "1"), 1).split())
    assert f"http://127.0.0.1:{port}: health check: nothing listens there" in output
    assert "engine.start_timeout_s): start it with launch/rollout_server.py" in output
    assert time.monotonic() - begun < 120
