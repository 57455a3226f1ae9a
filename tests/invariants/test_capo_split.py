"""CAPO's masks and gradient are those of one big batch: any micro-batches, one rank or two."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.invariants.capo_step import capo_step
from tests.invariants.one_step import distance, one_step_gradient
from tests.processes import run_on_two_ranks
from tests.tiny_runs import save_tiny_model

PRESETS = ("capo", "dr_capo", "reincapo")
WIDE = {"max_policy_shift": 1e9, "min_objective_shift": -1e9, "max_objective_shift": 1e9}
# inside the range of this model's tokens in the second step, at the learning rate of its tests: some are rejected
LIMITS = dict.fromkeys(PRESETS, WIDE | {"max_policy_shift": 20.0})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_micro_batches(model, tmp_path, preset):
    whole, accepted, algorithm = capo_step(model, tmp_path, preset, 10_000, **LIMITS[preset])
    quantiles = torch.cat(algorithm.step.policy).quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert 0.05 < float(accepted.float().mean()) < 0.95, quantiles
    for budget in (48, 1):
        gradient, mask, _ = capo_step(model, tmp_path, preset, budget, **LIMITS[preset])
        assert int(mask.sum()) == int(accepted.sum()) and len(mask) == len(accepted)
        assert distance(gradient, whole) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sequence", "token_then_sequence"])
def test_sequences_are_judged_alike_in_any_micro_batch(model, tmp_path, rule):
    limits = LIMITS["capo"] | {"max_policy_shift": 2.0, "rule": rule}
    whole, accepted, algorithm = capo_step(model, tmp_path, "capo", 10_000, **limits)
    assert algorithm.step.sequences_rejected > 0
    assert 0.05 < float(accepted.float().mean()) < 0.95, algorithm.step.counts()
    by_token = capo_step(model, tmp_path, "capo", 10_000, **limits | {"rule": "token"})[1]
    if rule == "sequence":
        assert bool((accepted & ~by_token).any()), "sequences are accepted whole"
    else:
        assert not bool((accepted & ~by_token).any())
    for budget in (48, 1):
        gradient, mask, _ = capo_step(model, tmp_path, "capo", budget, **limits)
        assert int(mask.sum()) == int(accepted.sum())
        assert distance(gradient, whole) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("capo", "plain"), [("capo", "grpo"), ("dr_capo", "dr_grpo"), ("reincapo", "reinforce")])
def test_a_region_that_holds_everything_is_the_plain_policy_gradient(model, tmp_path, capo, plain):
    gradient, accepted, _ = capo_step(model, tmp_path, capo, 48, steps=1, **WIDE)
    assert bool(accepted.all())
    assert distance(gradient, one_step_gradient(model, tmp_path, plain, 48)) < 1e-6


@pytest.mark.slow
def test_ranks(model, tmp_path):
    out = tmp_path / "gradients.safetensors"
    run_on_two_ranks(Path(__file__).with_name("capo_on_ranks.py"), model, tmp_path, out)
    on_ranks = load_file(out)
    for preset in PRESETS:
        whole, accepted, _ = capo_step(model, tmp_path, preset, 10_000, **LIMITS[preset])
        assert int(on_ranks[f"{preset}_rejected"]) == int((~accepted).sum())
        assert distance(on_ranks[preset], whole) < 1e-5, preset
