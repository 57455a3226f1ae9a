"""Real runs of the launch scripts on this CPU: two ranks, two machines of one, and a rollout server."""

from pathlib import Path

import psutil
import pytest

from rlhf.config.loading import to_yaml
from rlhf.training.run_folder import RunFolder
from tests.launch.scripts import begin, output
from tests.rollout_servers import free_port
from tests.tiny_runs import save_tiny_model, tiny_config

pytestmark = pytest.mark.slow


def write_config(folder: Path, **changes) -> Path:
    # vLLM's attention on CPU has no heads narrower than 32
    model = save_tiny_model(folder / "model", hidden_size=128, intermediate_size=128)
    config = tiny_config(
        model,
        run={"folder": str(folder), "name": "run"},
        batch={"steps": 2, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
        checkpoint={"every": 0, "export": False},
        **changes,
    )
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return file


def check_run(folder: Path, ranks: int) -> None:
    """Two steps of 16 samples, of which each rank made its part: a run that is alone in silence makes all of them."""
    run = RunFolder(folder / "run")
    assert [line["step"] for line in run.read_metrics()] == [1, 2]
    assert len(list(run.read_samples())) == 2 * 16
    if ranks > 1:
        assert all("balance/imbalance" in line for line in run.read_metrics())


def test_two_ranks_on_one_machine(tmp_path):
    text = output(begin("single_node.sh", "recipes/grpo.py", "--config", write_config(tmp_path), NPROC_PER_NODE="2"))
    assert "cpu, 2 rank(s), machine 1 of 1" in text
    check_run(tmp_path, ranks=2)


def test_two_machines_of_one_rank(tmp_path):
    config, port = write_config(tmp_path), str(free_port())
    nodes = [
        begin("multi_node.sh", "recipes/grpo.py", "--config", config, NNODES="2", NODE_RANK=rank, MASTER_PORT=port,
              MASTER_ADDR="127.0.0.1", NPROC_PER_NODE="1", ACCELERATE_CONFIG="ddp")
        for rank in ("0", "1")
    ]  # fmt: skip
    assert "machine 1 of 2" in output(nodes[0]) and "machine 2 of 2" in output(nodes[1])
    check_run(tmp_path, ranks=2)


def test_a_real_server_beside_a_rank_is_started_used_and_ended(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    port = free_port()
    text = output(begin(
        "disaggregated.sh", "recipes/grpo.py", "--config", write_config(tmp_path), SERVER_PORT=str(port),
        SERVER_LOGS=str(tmp_path / "logs"), SERVER_OPTIONS="--max-model-len 256 --cpu-kv-cache-gib 0.5",
    ))  # fmt: skip
    assert "[launch] 1 server(s) well after" in text
    check_run(tmp_path, ranks=1)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]
    assert not left
