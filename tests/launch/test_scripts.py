"""The launch scripts: what they refuse, the command lines they make, and real runs of two CPU ranks."""

import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from rlhf.config.loading import to_yaml
from rlhf.training.run_folder import RunFolder
from tests.processes import ROOT
from tests.rollout_servers import free_port
from tests.tiny_runs import save_tiny_model, tiny_config

LAUNCH = ROOT / "launch"
SCRIPTS = ["single_node.sh", "multi_node.sh", "disaggregated.sh", "slurm.sbatch"]
DEMO = ["recipes/grpo.py", "--config", "configs/grpo/demo_arithmetic.yaml"]
# what a shell that started the tests may have set
CLEARED = ("MACHINE", "NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_CONFIG",
           "ROLE", "SERVERS", "RLHF_RANKS", "SLURM_PROCID", "SLURM_JOB_NODELIST", "CUDA_VISIBLE_DEVICES")  # fmt: skip
TIMEOUT_S = 600


def begin(script: str, *arguments: str | Path, **environment: str) -> subprocess.Popen:
    """The script on this CPU, unless `environment` says otherwise."""
    inherited = {name: value for name, value in os.environ.items() if name not in CLEARED}
    given = {"MACHINE": "cpu", "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(LAUNCH / script), *map(str, arguments)], cwd=ROOT, env=inherited | given | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output(process: subprocess.Popen, status: int = 0) -> str:
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status, text
    return text


def fake(folder: Path, name: str, body: str) -> None:
    """A program of this name that stands for another."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


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


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_a_script_is_sound_shell(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top_and_names_every_variable(script):
    text = output(begin(script, "--help"))
    assert text == output(begin(script)) and f"{script} recipes/grpo.py --config" in text
    assert "set -euo" not in text and "source" not in text
    defaults = re.findall(r"^(\w+)=\$\{\1:-", (LAUNCH / script).read_text(), re.MULTILINE)
    missing = [name for name in defaults if f"{name}=" not in text and name != "NNODES"]
    assert defaults and not missing


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "message"),
    [
        ("single_node.sh", ["recipes/grpo.py", "--config", "nowhere.yaml"], {}, "there is no config file nowhere.yaml"),
        ("single_node.sh", ["recipes/grpo.py"], {}, "no --config FILE"),
        ("single_node.sh", ["--config", "x.yaml"], {}, "the recipe comes first"),
        ("single_node.sh", ["recipes/grpoo.py", "--config", "x"], {}, "there is no recipe recipes/grpoo.py: one of "),
        ("single_node.sh", DEMO, {"ACCELERATE_CONFIG": "fsdp3"}, "no Accelerate config fsdp3: a file, or one of ddp "),
        ("single_node.sh", DEMO, {"NPROC_PER_NODE": "two"}, "NPROC_PER_NODE is the number of ranks"),
        ("single_node.sh", DEMO, {"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE is the number of ranks"),
        ("single_node.sh", DEMO, {"MACHINE": "tpu"}, "MACHINE is gpu or cpu, not tpu"),
        ("single_node.sh", DEMO, {"MACHINE": "gpu", "CUDA_VISIBLE_DEVICES": ""}, "nvidia-smi lists no GPU"),
        ("single_node.sh", DEMO, {"MACHINE": "gpu", "CUDA_VISIBLE_DEVICES": "0,1", "NPROC_PER_NODE": "3"},
         "has 2 GPUs"),
        ("single_node.sh", DEMO, {"PYTHON": "/no/python"}, "there is no Python at /no/python"),
        ("multi_node.sh", DEMO, {}, "no nodes: set NNODES"),
        ("multi_node.sh", DEMO, {"NNODES": "2"}, "NODE_RANK is not set: of 2 machines it is 0 to 1"),
        ("multi_node.sh", DEMO, {"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK is 2"),
        ("multi_node.sh", DEMO, {"NNODES": "2", "NODE_RANK": "0"}, "set MASTER_ADDR"),
        ("disaggregated.sh", DEMO, {"ROLE": "trainer"}, "no servers: set SERVERS"),
        ("disaggregated.sh", DEMO, {"ROLE": "both"}, "ROLE is all, servers or trainer"),
        ("disaggregated.sh", DEMO, {"SERVERS": "gpu-a:8001"}, "gpu-a:8001 is no address of a server"),
        ("disaggregated.sh", DEMO, {"NNODES": "2"}, "ROLE=all is for one machine"),
        ("disaggregated.sh", DEMO, {"ROLE": "servers", "SERVERS": "http://a:1"}, "SERVERS names some"),
        ("disaggregated.sh", DEMO, {"SERVER_COUNT": "0"}, "SERVER_COUNT is at least 1"),
        ("disaggregated.sh", DEMO, {"MACHINE": "gpu", "CUDA_VISIBLE_DEVICES": "0,1", "SERVER_COUNT": "2"},
         "leave none"),
        ("slurm.sbatch", DEMO, {}, "there are no nodes: submit with sbatch"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_to_do(script, arguments, environment, message):
    text = output(begin(script, *arguments, **environment), status=2)
    assert message in text and text.startswith("[launch] ")


def make_python(folder: Path) -> str:
    """An interpreter that shows its command and what ranks would be told; other programs of it are run."""
    names = "RLHF_RANKS ACCELERATE_USE_CPU CUDA_VISIBLE_DEVICES"
    shown = f'echo "RUN $*"; for n in {names}; do echo "$n=${{!n-unset}}"; done'
    fake(
        folder,
        "python",
        f'if [[ "$*" == *accelerate.commands.launch* ]]; then {shown}; else exec {sys.executable} "$@"; fi',
    )
    return str(folder / "python")


def test_the_command_of_a_machine_of_gpus(tmp_path):
    given = {"MACHINE": "gpu", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "PYTHON": make_python(tmp_path)}
    text = output(begin("single_node.sh", *DEMO, "--optimizer.lr", "1e-6", ACCELERATE_CONFIG="fsdp2", **given))
    assert (
        f"--config_file {ROOT}/configs/accelerate/fsdp2.yaml --num_machines 1 --machine_rank 0 --num_processes 4 "
        in text
    )
    assert text.count("--config configs/grpo/demo_arithmetic.yaml --optimizer.lr 1e-6") == 2
    assert "RLHF_RANKS=4\nACCELERATE_USE_CPU=unset\nCUDA_VISIBLE_DEVICES=0,1,2,3\n" in text


def test_ranks_on_a_cpu_are_named_to_accelerate_but_not_under_deepspeed(tmp_path):
    python = make_python(tmp_path)
    text = output(begin("single_node.sh", *DEMO, NPROC_PER_NODE="2", PYTHON=python))
    assert "RLHF_RANKS=2\nACCELERATE_USE_CPU=true\nCUDA_VISIBLE_DEVICES=\n" in text
    text = output(begin("single_node.sh", *DEMO, NPROC_PER_NODE="2", PYTHON=python, ACCELERATE_CONFIG="zero2"))
    assert "RLHF_RANKS=2\nACCELERATE_USE_CPU=unset\nCUDA_VISIBLE_DEVICES=\n" in text


def test_several_machines_meet_at_the_first_and_deepspeed_starts_no_ssh(tmp_path):
    text = output(begin("multi_node.sh", *DEMO, NNODES="3", NODE_RANK="1", MASTER_ADDR="10.0.0.1", NPROC_PER_NODE="8",
                        PYTHON=make_python(tmp_path)))  # fmt: skip
    assert (
        "--num_machines 3 --machine_rank 1 --num_processes 24 --main_process_port 29500 --main_process_ip 10.0.0.1 "
        in text
    )
    assert "--rdzv_backend static --deepspeed_multinode_launcher standard recipes/grpo.py" in text
    assert "accelerate/multi_node.yaml" in text and "RLHF_RANKS=24\n" in text


def run_in_slurm(tmp_path: Path, status: int = 0, **environment: str) -> str:
    """The batch script, with stand-ins for Slurm's programs: `srun` shows what it would start, and where."""
    variables = "ROLE NNODES MASTER_ADDR MASTER_PORT SERVERS SERVER_COUNT"
    fake(tmp_path / "bin", "scontrol", 'printf "%s\\n" n1 n2 n3 n4')
    fake(
        tmp_path / "bin",
        "srun",
        f"""line="SRUN $*"
for n in {variables}; do line+=" $n=${{!n-unset}}"; done
echo "$line"
[[ "${{ROLE-}}" != servers ]] || {{ trap 'echo SERVERS ENDED; kill $!; exit 0' TERM; sleep 60 & wait $!; }}
[[ "${{ROLE-}}" != trainer ]] || sleep 2""",
    )
    slurm = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_ID": "777", "SLURM_SUBMIT_DIR": str(ROOT)}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return output(begin("slurm.sbatch", *DEMO, PATH=path, **slurm | environment), status)


def test_slurm_starts_one_task_on_each_node(tmp_path):
    (line,) = [line for line in run_in_slurm(tmp_path).splitlines() if line.startswith("SRUN")]
    assert "--nodes=4 --ntasks=4 --ntasks-per-node=1 --nodelist=n1,n2,n3,n4 --kill-on-bad-exit=1" in line
    assert f"{LAUNCH}/multi_node.sh {' '.join(DEMO)} " in line
    assert "NNODES=4 MASTER_ADDR=n1 MASTER_PORT=20777" in line


def test_slurm_gives_the_last_nodes_to_servers_and_ends_them(tmp_path):
    text = run_in_slurm(tmp_path, SERVER_NODES="2", SERVERS_PER_NODE="2")
    ranks, servers = sorted(line for line in text.splitlines() if line.startswith("SRUN"))
    assert "--nodes=2" in ranks and "--nodelist=n1,n2" in ranks and "--nodelist=n3,n4" in servers
    assert "launch/disaggregated.sh" in ranks and "launch/disaggregated.sh" in servers
    assert "ROLE=servers" in servers and "SERVER_COUNT=2" in servers
    assert "ROLE=trainer NNODES=2 MASTER_ADDR=n1" in ranks
    assert "SERVERS=http://n3:8001 http://n3:8002 http://n4:8001 http://n4:8002" in ranks
    assert "servers on n3 n4" in text and text.endswith("SERVERS ENDED\n")
    assert "SERVER_NODES=4 of 4 nodes leave none" in run_in_slurm(tmp_path, 2, SERVER_NODES="4")


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers a health check as a rollout server does."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        """Not into the tests' output."""


def test_the_trainer_begins_when_servers_that_run_are_well_and_leaves_them_running(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}", f"http://localhost:{server.server_port}"]
        text = output(begin("disaggregated.sh", *DEMO, SERVERS=" ".join(urls), PYTHON=make_python(tmp_path)))
        server.shutdown()
    assert "[launch] 2 server(s) well after" in text and "RLHF_RANKS=1\n" in text
    assert f"--engine.type server --engine.urls [{','.join(urls)}]" in text


def test_servers_that_do_not_come_are_named(tmp_path):
    port = free_port()
    text = output(
        begin("disaggregated.sh", *DEMO, SERVERS=f"http://127.0.0.1:{port}", SERVER_TIMEOUT_S="0.1"), status=2
    )
    assert f"http://127.0.0.1:{port} is not well after 0.1 s: no answer" in text


def test_a_server_that_cannot_start_ends_the_script_and_its_log_is_named(tmp_path):
    text = output(begin("disaggregated.sh", *DEMO, SERVER_LOGS=str(tmp_path), SERVER_PORT=str(free_port()),
                        SERVER_OPTIONS="--dtype float8"), status=2)  # fmt: skip
    assert "a server's process ended before it was well" in text and f"their logs are in {tmp_path}" in text
    (log,) = tmp_path.glob("*.log")
    assert "invalid choice: 'float8'" in log.read_text()


def test_a_signal_reaches_the_ranks_first_and_then_the_servers_are_ended(tmp_path):
    fake(
        tmp_path / "bin",
        "python",
        f'''case "$*" in
*rollout_server.py*) trap 'echo SERVER ENDED; kill $!; exit 0' TERM; sleep 60 & wait $! ;;
*wait_for_servers.py*) sleep 0.5 ;;
*accelerate*) sleep 60 &
  trap 'echo SAVED; kill $!; sleep 0.5; cat "{tmp_path}"/8001.log; exit 7' TERM; echo READY; wait $! ;;
*) exec {sys.executable} "$@" ;;
esac''',
    )
    process = begin("disaggregated.sh", *DEMO, PYTHON=str(tmp_path / "bin" / "python"), SERVER_LOGS=str(tmp_path))
    lines = []
    while not lines or lines[-1] != "READY\n":
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    process.terminate()
    # the status is that of the ranks, and while they saved the server was there
    assert output(process, status=7) == "SAVED\n"
    assert (tmp_path / "8001.log").read_text() == "SERVER ENDED\n"


def test_a_server_that_ends_in_the_middle_is_told(tmp_path):
    fake(tmp_path / "bin", "python", f'''case "$*" in
*rollout_server.py*) sleep 1 ;;
*wait_for_servers.py*) ;;
*accelerate*) sleep 4 ;;
*) exec {sys.executable} "$@" ;;
esac''')  # fmt: skip
    text = output(begin("disaggregated.sh", *DEMO, PYTHON=str(tmp_path / "bin" / "python"), SERVER_LOGS=str(tmp_path)))
    assert text.count(f"a server ended (its log is in {tmp_path})") == 1


def test_servers_get_a_gpu_each_and_ranks_the_others(tmp_path):
    fake(
        tmp_path / "bin",
        "python",
        f"""case "$*" in
*rollout_server.py*) echo "GPU $CUDA_VISIBLE_DEVICES: $*"
  trap 'echo ENDED; kill $!; exit 0' TERM; sleep 60 & wait $! ;;
*wait_for_servers.py*) echo "WAIT $*"; sleep 1 ;;
*accelerate*) echo "RANKS $RLHF_RANKS GPUS $CUDA_VISIBLE_DEVICES: $*" ;;
*) exec {sys.executable} "$@" ;;
esac""",
    )
    text = output(begin("disaggregated.sh", *DEMO, MACHINE="gpu", CUDA_VISIBLE_DEVICES="0,1,4,5", SERVER_COUNT="1",
                        PYTHON=str(tmp_path / "bin" / "python"), SERVER_LOGS=str(tmp_path / "logs")))  # fmt: skip
    assert "RANKS 3 GPUS 0,1,4: " in text and "--engine.urls [http://127.0.0.1:8001]" in text
    log = (tmp_path / "logs" / "8001.log").read_text()
    assert log.startswith("GPU 5: ") and log.endswith("ENDED\n")
    # the checkpoint and the precision are the recipe's
    assert "--model embedded:smollm2-135m-instruct --host 127.0.0.1 --port 8001 --dtype float32" in log


def test_fewer_ranks_than_were_asked_for_are_refused(monkeypatch):
    from accelerate import Accelerator

    from rlhf.training.launch_checks import EXPECTED_RANKS, LaunchError, check_processes

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setenv(EXPECTED_RANKS, "1")
    check_processes(accelerator, "recipe.py")
    monkeypatch.setenv(EXPECTED_RANKS, "2")
    with pytest.raises(LaunchError, match=r"2 ranks were asked for \(RLHF_RANKS\) and 1 run"):
        check_processes(accelerator, "recipe.py")


@pytest.mark.slow
def test_two_ranks_on_one_machine(tmp_path):
    text = output(begin("single_node.sh", "recipes/grpo.py", "--config", write_config(tmp_path), NPROC_PER_NODE="2"))
    assert "cpu, 2 rank(s), machine 1 of 1" in text
    check_run(tmp_path, ranks=2)


@pytest.mark.slow
def test_two_machines_of_one_rank(tmp_path):
    config, port = write_config(tmp_path), str(free_port())
    nodes = [
        begin("multi_node.sh", "recipes/grpo.py", "--config", config, NNODES="2", NODE_RANK=rank, MASTER_PORT=port,
              MASTER_ADDR="127.0.0.1", NPROC_PER_NODE="1", ACCELERATE_CONFIG="ddp")
        for rank in ("0", "1")
    ]  # fmt: skip
    assert "machine 1 of 2" in output(nodes[0]) and "machine 2 of 2" in output(nodes[1])
    check_run(tmp_path, ranks=2)


@pytest.mark.slow
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
