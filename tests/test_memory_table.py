"""The benchmark of memory: its shapes are the published ones, and its table is the plan's."""

# ruff: noqa: E402 - a benchmark is a script, and finds its neighbours in its own folder

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import memory_table

from rlhf.config.division import METHODS


def test_the_shapes_have_the_published_numbers_of_parameters():
    published = {
        "0.5B": 494_032_768, "1.5B": 1_543_714_304, "3B": 3_085_938_688, "7B": 7_615_616_512, "14B": 14_770_033_664,
        "32B": 32_763_876_352, "72B": 72_706_203_648,
    }  # fmt: skip
    assert {name: shape.parameters for name, shape in memory_table.SHAPES.items()} == published


def test_the_table_has_a_row_for_each_model_and_number_of_ranks():
    text = memory_table.lay_out_plan("adamw", list(METHODS), 80)
    rows = [line for line in text.splitlines() if line.startswith(("| 7B", "| 72B"))]
    assert len(rows) == 2 * 2 * (4 + 1)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows]
    (one_process,) = (float(row[3]) for row in cells if row[:3] == ["7B", "all", "1"])
    # weights, masters, gradients, those of a micro-batch, state: 20 bytes a parameter, and activations with the head
    least = 20 * memory_table.SHAPES["7B"].parameters / 2**30
    assert least < one_process < least + 10


def test_the_committed_table_is_what_the_program_prints():
    committed = ROOT / "benchmarks" / "results" / "memory_table_2026-11-29.md"
    assert committed.read_text(encoding="utf-8") == memory_table.lay_out_plan("adamw", list(METHODS), 80)


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_the_plan_have_their_counterparts(method):
    cell = memory_table.CELLS[0]
    planned = memory_table.planned_parts(cell, method)
    assert planned["state"] > 0 and planned["gradients"] > 0 and planned["weights"] > 0
    counts = {
        "built": {"weights": 5, "masters": 7, "state": 0, "gradients": 1, "buckets": 3, "other": 0},
        "forward": {"weights": 9, "masters": 7, "state": 0, "gradients": 1, "buckets": 3, "other": 2},
        "step": {"weights": 5, "masters": 7, "state": 0, "gradients": 11, "buckets": 3, "other": 0},
        "backward": {"weights": 5, "masters": 7, "state": 0, "gradients": 9, "buckets": 3, "other": 0},
        "after": {"weights": 6, "masters": 7, "state": 13, "gradients": 1, "buckets": 3, "other": 0},
    }
    assert memory_table.measured_parts(counts) == {
        "weights": 6, "masters": 7, "gradients": 9, "in the step": 11, "state": 13, "bucket": 3, "gathered": 3,
    }  # fmt: skip
