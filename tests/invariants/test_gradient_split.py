"""The same 32 samples give the same gradient for every preset: any micro-batches, packed or padded, one rank or two."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf.config.algorithm import PRESETS
from tests.invariants.one_step import count_micro_batches, distance, one_step_gradient
from tests.processes import run_on_two_ranks

WHOLE, SOME, SINGLE = 10_000, 48, 1  # tokens of a micro-batch
SPLITS = [(SOME, "packed"), (SINGLE, "packed"), (WHOLE, "padded"), (SINGLE, "padded")]


def test_the_splits_are_splits():
    """32 samples at once, about eight at a time, and one at a time (those with tokens): each exceeds the budget."""
    assert [count_micro_batches(budget) for budget in (WHOLE, SOME, SINGLE)] == [1, 4, 27]


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_micro_batches_and_packing(model, tmp_path, preset):
    whole = one_step_gradient(model, tmp_path, preset, WHOLE)
    assert float(whole.norm()) > 0
    for budget, attention in SPLITS:
        assert distance(one_step_gradient(model, tmp_path, preset, budget, attention), whole) < 1e-5


@pytest.mark.slow
def test_dropped_groups(model, tmp_path):
    """Forwarding groups without a signal changes nothing: their advantage is exactly 0."""
    base = one_step_gradient(model, tmp_path, "grpo", WHOLE)
    # a bonus too small to see forces all groups to be forwarded
    kept = one_step_gradient(model, tmp_path, "grpo", WHOLE, entropy_coefficient=1e-12)
    assert distance(kept, base) < 1e-5


@pytest.mark.slow
def test_ranks(model, tmp_path):
    out = tmp_path / "gradients.safetensors"
    run_on_two_ranks(Path(__file__).with_name("gradients_on_ranks.py"), model, tmp_path, out)
    on_ranks = load_file(out)
    assert on_ranks.keys() == PRESETS.keys()
    for preset, gradient in on_ranks.items():
        assert distance(gradient, one_step_gradient(model, tmp_path, preset, WHOLE)) < 1e-5, preset
