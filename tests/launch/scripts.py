"""Starts a launch script, with stand-ins for the programs that it would call."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

LAUNCH = ROOT / "launch"
DEMO = ["recipes/grpo.py", "--config", "configs/grpo/demo_arithmetic.yaml"]
# what a shell that started the tests may have set
CLEARED = ("MACHINE", "NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_CONFIG",
           "ROLE", "SERVERS", "RLHF_RANKS", "SLURM_PROCID", "SLURM_JOB_NODELIST", "CUDA_VISIBLE_DEVICES")  # fmt: skip
TIMEOUT_S = 600


def begin(script: str, *arguments: str | Path, own_group: bool = False, **environment: str) -> subprocess.Popen:
    """The script on this CPU, unless `environment` says otherwise. `own_group`: as a terminal starts it, in a process
    group that can be interrupted as a whole."""
    inherited = {name: value for name, value in os.environ.items() if name not in CLEARED}
    given = {"MACHINE": "cpu", "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # tests that run in the background have SIGINT ignored, and a shell cannot trap what was ignored before it began
    prefix = ["env", "--default-signal=INT"] if own_group else []
    return subprocess.Popen(
        [*prefix, str(LAUNCH / script), *map(str, arguments)], cwd=ROOT, env=inherited | given | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=own_group,
    )  # fmt: skip


def output(process: subprocess.Popen, status: int = 0) -> str:
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == status, text
    return text


def read_until(process: subprocess.Popen, line: str) -> None:
    """Reads what the process prints up to this line."""
    lines = []
    while not lines or lines[-1] != f"{line}\n":
        lines.append(process.stdout.readline())
        assert lines[-1], lines


def fake(folder: Path, name: str, body: str) -> None:
    """A program of this name that stands for another."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


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
