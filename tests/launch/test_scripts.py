"""The launch scripts: what they refuse, and the command lines they make."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.launch.scripts import DEMO, LAUNCH, begin, fake, make_python, output, read_until
from tests.processes import ROOT

SCRIPTS = ["single_node.sh", "multi_node.sh", "disaggregated.sh", "slurm.sbatch"]


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


# What a step's task does of SIGTERM, and what srun does of it: it does not pass it on but kills the tasks. The ids say
# that the step which was begun last may be the first.
SRUN = """line="SRUN $*" name= task=
for n in ROLE NNODES MASTER_ADDR MASTER_PORT SERVERS SERVER_COUNT; do line+=" $n=${!n-unset}"; done
echo "$line"
for word in "$@"; do [[ $word != --job-name=* ]] || name=${word#*=}; done
work() {
  if [[ $name == servers ]]; then trap 'echo SERVERS ENDED; kill $!; exit 0' TERM; sleep 60 & wait $!
  elif [[ -n ${UNTIL_SAVED-} ]]; then trap 'kill $!; sleep 1; echo SAVED; exit 7' TERM; sleep 60 & echo BEGUN; wait $!
  else sleep 2; fi
}
trap 'echo srun: forcing job termination; kill -KILL -- "-$task"; exit 137' TERM
set -m  # a process group for the task
work &
task=$!
echo "$task" >"$STEPS/777.$([[ $name == ranks ]] && echo 0 || echo 1)"
wait "$task"
"""
SQUEUE = """[[ "$*" == "--noheader --steps --jobs=777 --format=%i %j" ]] || exit 1
printf '777.%s\n' "batch batch" "0 ranks" "1 servers"
"""
SCANCEL = """[[ $1 == --signal=TERM && -f $STEPS/$2 ]] && kill -TERM "$(<"$STEPS/$2")"
"""


def begin_in_slurm(tmp_path: Path, squeue: str = SQUEUE, **environment: str) -> subprocess.Popen:
    """The batch script, with stand-ins for Slurm's programs: `srun` shows what it would start, and where."""
    programs = {"scontrol": 'printf "%s\\n" n1 n2 n3 n4', "srun": SRUN, "squeue": squeue, "scancel": SCANCEL}
    for name, body in programs.items():
        fake(tmp_path / "bin", name, body)
    steps = tmp_path / "steps"
    steps.mkdir(exist_ok=True)
    slurm = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_ID": "777", "SLURM_SUBMIT_DIR": str(ROOT), "STEPS": str(steps)}
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return begin("slurm.sbatch", *DEMO, PATH=path, **slurm | environment)


def run_in_slurm(tmp_path: Path, status: int = 0, **environment: str) -> str:
    return output(begin_in_slurm(tmp_path, **environment), status)


def test_slurm_starts_one_task_on_each_node(tmp_path):
    (line,) = [line for line in run_in_slurm(tmp_path).splitlines() if line.startswith("SRUN")]
    assert line.startswith("SRUN --job-name=ranks ")
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


@pytest.mark.parametrize("servers", [{}, {"SERVER_NODES": "2"}], ids=["ranks alone", "with servers"])
def test_slurms_warning_lets_the_ranks_save_and_then_ends_the_servers(tmp_path, servers):
    process = begin_in_slurm(tmp_path, UNTIL_SAVED="1", **servers)
    read_until(process, "BEGUN")
    process.terminate()
    text = output(process, status=7)
    assert text.endswith("SAVED\nSERVERS ENDED\n" if servers else "SAVED\n") and "termination" not in text


def test_servers_are_ended_where_slurm_does_not_tell_of_their_step(tmp_path):
    text = output(begin_in_slurm(tmp_path, squeue="exit 1", SERVER_NODES="2"))
    assert text.endswith("srun: forcing job termination\n")


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
