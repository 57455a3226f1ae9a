"""How much memory the shifts of a real head's tokens take, measured in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

TOKENS, VOCABULARY, HIDDEN = 4096, 49152, 576

# resident memory as the kernel counts it, so that the scratch space of matrix products is in it too
PROGRAM = """
import sys
import torch
from rlhf.algorithms.curvature import token_shifts

tokens, vocabulary, hidden = map(int, sys.argv[2:])
g = torch.Generator().manual_seed(0)
arguments = (
    torch.randn(tokens, hidden, generator=g),
    torch.randn(vocabulary, hidden, generator=g) * 0.05,
    torch.randint(vocabulary, (tokens,), generator=g),
    torch.randn(tokens, generator=g),
)
moments = torch.randn(vocabulary, hidden, generator=g) * 1e-4
settings = dict(lr=1e-5, step_model=sys.argv[1], exp_avg_VD=moments, exp_avg_sq_VD=moments.square(), step=10)

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

# libraries are loaded, and threads started
token_shifts(*(a if i == 1 else a[:64] for i, a in enumerate(arguments)), **settings)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = resident("VmRSS")
shifts = token_shifts(*arguments, **settings)
assert bool(shifts.objective_N.isfinite().all())
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("model", ["sgd", "adam_frozen"])
def test_extra_memory_is_below_a_twentieth_of_one_tokens_x_vocabulary_tensor(model):
    command = [sys.executable, "-c", PROGRAM, model, str(TOKENS), str(VOCABULARY), str(HIDDEN)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    extra = int(result.stdout)
    assert extra < TOKENS * VOCABULARY * 4 / 20, f"{extra / 2**20:.1f} MiB"
