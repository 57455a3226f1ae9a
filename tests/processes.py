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
    """As `run_on_ranks`."""
    run_on_ranks(2, script, *arguments)


def run_on_ranks(
    ranks: int, script: Path, *arguments: str | Path, timeout_s: float = 300, **environment: str
) -> None:
    """`torchrun --nproc-per-node RANKS SCRIPT ARGUMENTS` with gloo; every rank must succeed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # DeepSpeed's ranks find the CPU by themselves, and are not seen by Accelerate where it is named
    cpu = {} if "ACCELERATE_USE_DEEPSPEED" in environment else {"ACCELERATE_USE_CPU": "true"}
    given = {"CUDA_VISIBLE_DEVICES": ""} | cpu | environment
    output_of(start(*launcher, script, *arguments, **given), timeout_s=timeout_s)
