"""The policy under FSDP2 on two real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # a tied LM head, and one of its own
def test_sharded_gradients_and_weights_equal_the_whole_policys(checkpoint, family):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*command, str(Path(__file__).with_name("sharded_policy.py")), checkpoint(family)],
        env=os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
