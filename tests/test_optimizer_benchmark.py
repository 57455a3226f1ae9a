"""The benchmark of optimizer steps: its rows run, its figures are what they are called, its targets are judged."""

# ruff: noqa: E402 - a benchmark is a script, and finds its neighbours in its own folder

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import optimizers
from peers import optimizer_rows
from peers.optimizer_rows import PARAMETER_SETS, TARGETS, predicted_bytes, rows, tensors_of, verdicts


def test_every_target_is_a_row_s():
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
    assert {target.row for target in TARGETS} <= set(names)
    assert len([name for name in names if name.endswith(", in a run")]) >= 10


def test_the_sets_have_the_tensors_of_their_models():
    for name, tensors, elements in (("smollm2-135m", 272, 134_515_008), ("llama-8b-layers", 18, 436_224_000)):
        with torch.device("meta"):
            model = PARAMETER_SETS[name]()
        found = tensors_of(model)
        assert (len(found), sum(tensor.numel for tensor in found)) == (tensors, elements)


def test_ratios_are_taken_within_rounds_in_turning_order():
    seconds = iter([1.0, 2.0, 4.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0])
    called = []
    contestants = {name: lambda name=name: called.append(name) for name in ("foreach", "fused", "row")}

    def clock(step):
        step()
        return next(seconds)

    times = optimizers.in_turn(contestants, clock, 3, budget=0.0)
    assert called == ["foreach", "fused", "row", "row", "fused", "foreach", "foreach", "fused", "row"]
    assert times == {"foreach": [1, 2, 1], "fused": [2, 4, 1], "row": [4, 8, 1]}
    assert optimizers._ratio(times["row"], times["foreach"]) == 4


def test_state_and_scratch_are_counted():
    model = PARAMETER_SETS["smoke"]()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    row = next(row for row in rows() if row.name == "torch AdamW foreach")
    optimizer = row.build(model)
    optimizer.step()
    elements = sum(parameter.numel() for parameter in model.parameters())
    assert optimizers.state_bytes_of(optimizer) == predicted_bytes(row, model) == 8 * elements
    # the root of the second moment, of all tensors at once
    assert 4 * elements <= optimizers.scratch_bytes(optimizer.step, "cpu") < 5 * elements


def test_targets_are_judged_beside_the_row_as_in_a_run():
    results = {"AdaBelief compiled": {"vs_fused": 1.25}, "AdaBelief compiled, in a run": {"vs_fused": 1.0}}
    (line,) = verdicts(results, "smollm2-135m")
    assert line == "**missed**: AdaBelief compiled, vs fused 1.25 (at most 1.1); in a run 1.00"
    assert verdicts(results, "smoke") == []
    assert optimizer_rows.Target("a", "b", 1).parameters == ("smollm2-135m", "llama-8b-layers")


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit):
        optimizers.parse_arguments(["--rows", "Sophia"])
    assert "no row has such a name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        optimizers.parse_arguments(["--rounds", "2"])


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "optimizers.py"), "--quick", "--device", "cpu", "--json"]
    wanted = ["--rows", "fused", "Muon", "AdaBelief", "0.25", "AuON", "--out", str(tmp_path / "table.md")]
    done = subprocess.run(command + wanted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert len(results) > 15 and not any("compiled" in name for name in results)
    for name, found in results.items():
        assert found["rounds"] == 3 and found["ms"] >= found["ms_min"] > 0, name
        if "block_budget" not in name:
            assert abs(found["plan_error"]) < 1e-3, name
    assert "off %" in (tmp_path / "table.md").read_text()
