"""Programs of the project in processes of their own, as a user starts them: on the CPU, offline, one thread."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = [str(ROOT / "recipes" / "grpo.py"), "--config"]


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen:
    """`python ARGUMENTS`, with its output and errors in one text stream."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen, status: int = 0, timeout_s: float = 300) -> str:
    """What the process printed; it must end with this exit status."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == status, output
    return output


def run_on_two_ranks(script: Path, *arguments: str | Path) -> None:
    """`torchrun --nproc-per-node 2 SCRIPT ARGUMENTS` with gloo; every rank must succeed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output_of(start(*launcher, script, *arguments, ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES=""))
