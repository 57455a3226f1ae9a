"""The rooms import each other in one direction only, and optional libraries are loaded only where they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# stages that are TRL's trainers with our parts: only their recipes import them
ON_TRL = {"rlhf.trainers.sft", "rlhf.trainers.reward_model", "rlhf.trainers.trl_names"}
# vLLM alone imports it, in a rollout server
IN_VLLM = {"rlhf.rollouts.serving.worker"}
IMPORT_ALL = f"""
import importlib, pkgutil, sys
import rlhf
for module in pkgutil.walk_packages(rlhf.__path__, "rlhf."):
    if module.name not in {ON_TRL | IN_VLLM}:
        importlib.import_module(module.name)
print(sorted({{"trl", "vllm", "deepspeed"}} & set(sys.modules)))
"""


def test_arrows_run_downward():
    """The contracts are in pyproject.toml under tool.importlinter."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout and " 0 kept" not in done.stdout


@pytest.mark.slow
def test_no_module_loads_an_optional_library_on_import():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
