"""The gradient of preference learning is that of its loss, for any micro-batches, one rank or two."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.invariants.one_step import distance
from tests.invariants.vpo_update import SETTINGS, autograd_gradient, vpo_gradient
from tests.processes import run_on_two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_against_autograd(model, tmp_path, name):
    expected, loss = autograd_gradient(model, tmp_path, SETTINGS[name])
    assert expected.norm() > 1e-3
    for budget in (10_000, 48, 1):
        gradient, metrics = vpo_gradient(model, tmp_path, SETTINGS[name], budget)
        assert distance(gradient, expected) < 1e-5
        assert metrics["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_ranks(model, tmp_path):
    out = tmp_path / "gradients.safetensors"
    run_on_two_ranks(Path(__file__).with_name("vpo_on_ranks.py"), model, tmp_path, out)
    on_ranks = load_file(out)
    for name, settings in SETTINGS.items():
        whole, metrics = vpo_gradient(model, tmp_path, settings, 10_000)
        assert distance(on_ranks[name], whole) < 1e-5, name
        assert float(on_ranks[f"{name} loss"]) == pytest.approx(metrics["loss"], rel=1e-5), name
