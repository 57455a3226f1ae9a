"""The simulation of steps on many devices: closed forms, and costs that are found again."""

# ruff: noqa: E402 - a benchmark is a script, and finds its neighbours in its own folder

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scaling
from peers.scaling_costs import Observed, fit, lognormal_workload, non_negative, read_costs, read_steps, write_costs
from peers.scaling_model import (
    MODES,
    Batch,
    Costs,
    Network,
    Workload,
    best_step,
    decoding_steps,
    draw,
    engine_s,
    largest_load,
    mean_step,
    splits,
    step,
)

from rlhf.training.balance import assign
from rlhf.training.run_folder import RunFolder

COSTS = Costs(0.02, 0.001, 0.0001, 0.5, 0.002, 0.003, 1e-9, 2 * 10**9, 10**9)
NETWORK = Network(per_machine=8, inside_bytes_per_s=100e9, between_bytes_per_s=10e9)
CONSTANT = Workload(prompts=64, samples=4, prompt_tokens=50, median_tokens=100, sigma=0.0, max_tokens=1000, slots=128)
RAGGED = replace(CONSTANT, sigma=0.8)


def steps_of(mode, ranks, servers, workload=CONSTANT):
    return mean_step(mode, ranks, servers, [draw(workload, 0, n) for n in range(4)], workload, COSTS, NETWORK)


def test_one_device_with_constant_lengths_is_the_sum_of_its_costs():
    # 256 rows of 100 tokens in 128 slots: two rounds of 100 steps
    generate = 64 * 50 * 0.0001 + 200 * 0.02 + 256 * 100 * 0.001 + 256 * 0.003
    learn = 0.5 + 64 * (50 + 4 * 99) * 0.002
    found = steps_of("colocate", 1, 0)
    assert (found.generate, found.learn, found.sync) == pytest.approx((generate, learn, 2.0))
    assert found.total == pytest.approx(generate + learn + 2.0)


def test_sixteen_devices_share_rows_but_not_decoding_steps_and_reduce_between_machines():
    generate = 4 * 50 * 0.0001 + 100 * 0.02 + 16 * 100 * 0.001 + 16 * 0.003
    learn = 0.5 + 2 * 15 / 16 * 10**9 / 10e9 + 4 * (50 + 4 * 99) * 0.002
    found = steps_of("colocate", 16, 0)
    assert (found.generate, found.learn, found.sync) == pytest.approx((generate, learn, 2.0))


def test_ahead_is_the_longer_of_both_and_the_sync_and_disaggregated_their_sum():
    for ranks, servers in [(4, 4), (8, 2), (2, 14)]:
        apart, ahead = steps_of("disaggregated", ranks, servers), steps_of("ahead", ranks, servers)
        assert apart.total == pytest.approx(apart.generate + apart.learn + apart.sync)
        assert ahead.total == pytest.approx(max(ahead.generate, ahead.learn) + ahead.sync)
        assert (ahead.generate, ahead.learn, ahead.sync) == pytest.approx((apart.generate, apart.learn, apart.sync))


def test_no_step_is_faster_than_the_longest_of_its_parts():
    for mode in MODES:
        for devices in (2, 16, 64):
            found = best_step(mode, devices, [draw(RAGGED, 1, n) for n in range(4)], RAGGED, COSTS, NETWORK)
            assert found.ranks + found.servers == devices
            assert found.total >= max(found.generate, found.learn, found.sync)


def test_a_minibatch_more_costs_an_optimizer_step_and_a_reduction_more():
    one, two = (steps_of("colocate", 2, 0, replace(CONSTANT, minibatches=k)) for k in (1, 2))
    assert two.learn - one.learn == pytest.approx(0.5 + 2 * 1 / 2 * 10**9 / 100e9)


def test_weights_go_to_each_server_on_another_machine():
    gb = 10**9
    # 6 ranks on a machine of 8: 2 servers read what the main rank wrote, and 8 on another machine are sent it
    assert NETWORK.push_s(6, 2, gb) == 0
    assert NETWORK.push_s(6, 10, gb) == pytest.approx(8 * 0.1)
    assert NETWORK.push_s(16, 7, gb) == pytest.approx(7 * 0.1)
    assert replace(NETWORK, tree=True).push_s(16, 7, gb) == pytest.approx(3 * 0.1)


def test_a_slot_takes_the_next_sample_when_it_is_free():
    assert decoding_steps([5, 1, 1, 4], slots=4) == 5
    assert decoding_steps([5, 1, 1, 4], slots=2) == 6  # 5 beside 1 + 1 + 4
    assert decoding_steps([5, 1, 1, 4], slots=1) == 11
    assert decoding_steps([], slots=4) == 0


def test_the_longest_sample_of_an_engine_decides():
    lengths = np.array([[10, 10], [10, 500]])
    even = np.array([[10, 10], [255, 255]])
    gap = engine_s(lengths, CONSTANT, COSTS) - engine_s(even, CONSTANT, COSTS)
    assert gap == pytest.approx((500 - 255) * COSTS.decode_step_s)


def test_the_largest_load_is_that_of_the_trainer_s_own_assignment():
    costs = np.random.default_rng(3).integers(1, 1000, 60).tolist()
    for ranks in (1, 4, 7, 60):
        loads = [0] * ranks
        for cost, owner in zip(costs, assign(costs, ranks), strict=True):
            loads[owner] += cost
        assert largest_load(costs, ranks) == max(loads)


def test_splits_are_those_that_a_recipe_takes():
    assert list(splits(8, "colocate", CONSTANT)) == [(8, 0)]
    assert list(splits(8, "ahead", CONSTANT)) == [(1, 7), (2, 6), (4, 4)]
    assert list(splits(8, "ahead", replace(CONSTANT, minibatches=16))) == [(1, 7), (2, 6), (4, 4)]
    assert list(splits(8, "ahead", replace(CONSTANT, minibatches=32))) == [(1, 7), (2, 6)]
    assert not list(splits(3, "colocate", CONSTANT)) and not list(splits(1, "ahead", CONSTANT))


def test_draws_are_a_function_of_seed_and_number_and_lognormal():
    workload = replace(RAGGED, prompts=4000, signal_share=0.25)
    first, again, other = draw(workload, 5, 2), draw(workload, 5, 2), draw(workload, 5, 3)
    assert (first.lengths == again.lengths).all() and (first.lengths != other.lengths).any()
    logs = np.log(first.lengths)
    assert np.median(first.lengths) == pytest.approx(100, rel=0.03) and logs.std() == pytest.approx(0.8, rel=0.03)
    assert first.lengths.max() <= 1000 and first.has_signal.mean() == pytest.approx(0.25, abs=0.03)


def observed(prompts: int, samples: int, median: float, number: int) -> Observed:
    """A step whose seconds are what COSTS say."""
    workload = replace(RAGGED, prompts=prompts, samples=samples, median_tokens=median, signal_share=0.7, slots=16)
    batch = draw(workload, 7, number)
    found = step("colocate", 1, 0, batch, batch, workload, COSTS, NETWORK)
    rest = 0.003 * batch.lengths.size
    return Observed(batch, 50, 16, found.generate - rest, found.learn, found.sync, rest)


def test_costs_are_found_again_in_steps_that_they_made():
    steps = [observed(p, s, m, n) for n, (p, s, m) in enumerate([(2, 4, 20), (8, 4, 60), (16, 8, 30), (4, 8, 200)] * 2)]
    found = fit(steps, COSTS.weight_bytes, COSTS.gradient_bytes)
    for name, value in vars(COSTS).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def test_a_negative_cost_is_left_out_of_the_fit():
    rows = [[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]
    assert non_negative(rows, [3.0, 5.0, 7.0]) == pytest.approx([1.0, 2.0])
    falling = non_negative(rows, [3.0, 2.0, 1.0])
    assert min(falling) >= 0 and falling.count(0.0) == 1


def test_a_workload_is_found_again_in_its_lengths():
    workload = replace(RAGGED, prompts=2000, median_tokens=300, sigma=0.5, max_tokens=10**6)
    found = lognormal_workload([Observed(draw(workload, 0, 0), 50, 128, 1, 1, 1, 0)], 10**6)
    assert (found.median_tokens, found.sigma) == pytest.approx((300, 0.5), rel=0.03)
    assert (found.prompts, found.samples, found.signal_share) == (2000, 4, 1.0)


def test_steps_are_read_from_a_run_s_folder(tmp_path):
    folder = RunFolder(tmp_path)
    metrics = [
        {"step": n, "time/step": 10.0, "time/generate": 4.0, "time/update": 3.0, "time/sync": 0.5} for n in (1, 2)
    ]
    samples = [
        {"step": n, "prompt_id": prompt, "completion_tokens": tokens, "reward": reward}
        for n in (1, 2)
        for prompt, tokens, reward in [("a", 3, 1.0), ("a", 5, 0.0), ("b", 7, 1.0), ("b", 9, 1.0)]
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    folder.samples.write_text("".join(json.dumps(line) + "\n" for line in samples))
    (only,) = read_steps(folder, 40.0, 64)
    assert only.batch.lengths.tolist() == [[3, 5], [7, 9]] and only.batch.has_signal.tolist() == [True, False]
    assert (only.generate, only.learn, only.sync, only.rest) == (4.0, 3.0, 0.5, 2.5)
    assert only.learned_tokens == 40 + 2 + 4
    folder.metrics.write_text("".join(json.dumps(line | {"time/wait": 0.1}) + "\n" for line in metrics))
    with pytest.raises(ValueError, match="generated ahead"):
        read_steps(folder, 40.0, 64)


def test_costs_survive_their_file_and_bad_ones_are_named(tmp_path):
    file = tmp_path / "costs.json"
    write_costs(COSTS, file, "here")
    assert read_costs(file) == (COSTS, "here")
    file.write_text(json.dumps({**vars(COSTS), "decode_row_s": -1.0}))
    with pytest.raises(ValueError, match="below 0: decode_row_s"):
        read_costs(file)
    file.write_text(json.dumps({"decode_row_s": 1.0, "typo": 2}))
    with pytest.raises(ValueError, match=r"missing or unknown: .*decode_step_s.*typo"):
        read_costs(file)


def test_the_shipped_costs_are_readable_and_the_table_shows_the_numbers():
    costs, origin = read_costs(scaling.COSTS)
    assert "SmolLM2" in origin.replace("smollm2", "SmolLM2") and costs.weight_bytes == 4 * 134_515_008
    arguments = scaling.parse_arguments(["--devices", "1", "8", "--prompts", "64", "--draws", "2"])
    found = scaling.simulate([1, 8], arguments.workload, costs, NETWORK, arguments)
    assert list(found[1]) == ["colocate"] and list(found[8]) == list(MODES)
    report = scaling.lay_out(arguments, costs, origin, "", NETWORK, {1.0: found})
    assert "Computed, not measured" in report and f"{found[8]['ahead'].ranks} + {found[8]['ahead'].servers}" in report
    assert f"{found[8]['colocate'].total:.3g}" in report
    assert scaling.simulate([1, 8], arguments.workload, costs, NETWORK, arguments) == found


def test_a_faster_device_divides_seconds_and_leaves_bytes():
    faster = COSTS.faster(10)
    assert faster.decode_row_s == pytest.approx(1e-4) and faster.weight_bytes == COSTS.weight_bytes
    batch = Batch(np.full((64, 4), 100), np.full(64, True))
    plain = step("colocate", 1, 0, batch, batch, CONSTANT, COSTS, NETWORK)
    assert step("colocate", 1, 0, batch, batch, CONSTANT, faster, NETWORK).total == pytest.approx(plain.total / 10)
