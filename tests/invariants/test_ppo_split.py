"""The critic's step is the same for any micro-batches, on one rank or two."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.invariants.one_step import distance
from tests.invariants.ppo_step import weights_after_a_step
from tests.processes import run_on_two_ranks

TRUNKS = ("separate", "policy")


@pytest.mark.slow
@pytest.mark.parametrize("trunk", TRUNKS)
def test_micro_batches(model, tmp_path, trunk):
    whole = weights_after_a_step(model, tmp_path, trunk, 10_000)
    for budget in (48, 1):
        assert distance(weights_after_a_step(model, tmp_path, trunk, budget), whole) < 1e-6


@pytest.mark.slow
def test_ranks(model, tmp_path):
    out = tmp_path / "weights.safetensors"
    run_on_two_ranks(Path(__file__).with_name("ppo_on_ranks.py"), model, tmp_path, out)
    for trunk, weights in load_file(out).items():
        assert distance(weights, weights_after_a_step(model, tmp_path, trunk, 10_000)) < 1e-6, trunk
