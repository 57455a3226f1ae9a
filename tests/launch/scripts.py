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
