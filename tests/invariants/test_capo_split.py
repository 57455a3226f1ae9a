"""CAPO's masks and gradient are those of one big batch: any micro-batches, one rank or two."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.capo_step import accepted_share, capo_step
from tests.invariants.one_step import distance, one_step_gradient
from tests.processes import run_on_two_ranks

WIDE = {"max_policy_shift": 1e9, "min_objective_shift": -1e9, "max_objective_shift": 1e9}
# inside the range of this model's tokens in the second step, at the learning rate of its tests: some are rejected
NARROW = WIDE | {"max_policy_shift": 20.0}
CASES = {
    "capo": ("capo", NARROW), "dr_capo": ("dr_capo", NARROW), "reincapo": ("reincapo", NARROW),
    "adam_row": ("capo", WIDE | {"max_policy_shift": 7.3e-4, "step_model": "adam_row"}),
    "sequence": ("capo", WIDE | {"max_policy_shift": 2.0, "rule": "sequence"}),
}  # fmt: skip

# of the second step's gradient: the first has rounded otherwise on the way, by how much depends on the CPU's kernels
CLOSE = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_micro_batches(model, tmp_path, case):
    preset, limits = CASES[case]
    whole, accepted, algorithm = capo_step(model, tmp_path, preset, 10_000, **limits)
    quantiles = torch.cat(algorithm.step.policy).quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert 0.05 < accepted_share(algorithm) < 0.95, quantiles
    for budget in (96, 48, 1):
        gradient, others, _ = capo_step(model, tmp_path, preset, budget, **limits)
        assert torch.equal(others, accepted)
        assert distance(gradient, whole) < CLOSE


@pytest.mark.slow
def test_sequences_are_judged_whole_or_by_what_their_tokens_left(model, tmp_path):
    preset, limits = CASES["sequence"]
    whole, accepted, algorithm = capo_step(model, tmp_path, preset, 10_000, **limits)
    assert algorithm.step.sequences_rejected > 0
    by_token = set(capo_step(model, tmp_path, preset, 10_000, **limits | {"rule": "token"})[1].tolist())
    assert set(accepted.tolist()) - by_token, "sequences are accepted whole"
    both = limits | {"rule": "token_then_sequence"}
    whole, accepted, _ = capo_step(model, tmp_path, preset, 10_000, **both)
    assert set(accepted.tolist()) <= by_token
    gradient, others, _ = capo_step(model, tmp_path, preset, 48, **both)
    assert torch.equal(others, accepted) and distance(gradient, whole) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(("capo", "plain"), [("capo", "grpo"), ("dr_capo", "dr_grpo"), ("reincapo", "reinforce")])
def test_a_region_that_holds_everything_is_the_plain_policy_gradient(model, tmp_path, capo, plain):
    gradient, _, algorithm = capo_step(model, tmp_path, capo, 48, steps=1, **WIDE)
    assert accepted_share(algorithm) == 1
    assert distance(gradient, one_step_gradient(model, tmp_path, plain, 48)) < 1e-6


@pytest.mark.slow
def test_ranks(model, tmp_path):
    out = tmp_path / "gradients.safetensors"
    run_on_two_ranks(Path(__file__).with_name("capo_on_ranks.py"), model, tmp_path, out)
    on_ranks = load_file(out)
    for name, (preset, limits) in CASES.items():
        whole, accepted, _ = capo_step(model, tmp_path, preset, 10_000, **limits)
        assert torch.equal(on_ranks[f"{name}_accepted"], accepted), name
        assert distance(on_ranks[name], whole) < CLOSE, name
