import math
import os
import socket
import subprocess
import sys

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rlhf.config.training import TrackingConfig
from rlhf.data.types import Prompt, Sample, Verdict
from rlhf.training.metrics import MetricAverager, Trackers, deterministic, flatten, rollout_metrics


def test_deterministic_leaves_out_clocks_and_memory_only():
    clocks = {"time/step": 1.0, "speed/tokens_per_second": 2.0, "memory/peak_bytes": 3}
    rest = {"timeouts/count": 4, "loss": 5.0, "reward/mean": 6.0, "tokens/completion_mean": 7.0}
    assert deterministic(clocks | rest) == rest


def test_means_do_not_depend_on_the_split():
    values = [(0.5, 3.0), (2.0, 1.0), (-1.0, 4.0), (0.25, 2.0)]
    whole = MetricAverager()
    for value, weight in values:
        whole.add("policy/entropy", value, weight)
    parts = [MetricAverager() for _ in range(2)]
    for i, (value, weight) in enumerate(values):
        parts[i % 2].add("policy/entropy", value, weight)
    parts[0].merge(parts[1])
    # (1.5 + 2 - 4 + 0.5) / 10
    assert whole.result() == parts[0].result() == {"policy/entropy": 0.0}


def test_sums_maxima_empty_means_and_nan():
    averager = MetricAverager()
    averager.add("empty", 5.0, weight=0.0)
    averager.add("masked", math.inf, weight=0.0)
    averager.add("masked", 2.0)
    averager.add_sum("grading/timeouts", 2)
    averager.add_sum("grading/timeouts", 3)
    averager.add_max("memory/peak_bytes", 7)
    averager.add_max("memory/peak_bytes", 4)
    averager.add("loss", math.nan)
    averager.add("loss", 1.0)
    result = averager.result()
    assert math.isnan(result.pop("loss"))
    assert result == {"masked": 2.0, "grading/timeouts": 5.0, "memory/peak_bytes": 7.0}
    with pytest.raises(ValueError, match="'loss' is a mean and was used as a sum"):
        averager.add_sum("loss", 1.0)


def test_rollout_metrics_by_hand():
    def sample(prompt, index, reward, outcome, tokens, format_reward, timed_out=False):
        finish = "length" if tokens == 4 else "stop"
        return Sample(Prompt(prompt, (1,), "q"), index, (5,) * tokens, (0.0,) * tokens, finish, 0, 0, "",
                      {"correctness": reward, "format": format_reward}, reward, Verdict(outcome, timed_out=timed_out))

    samples = [sample("a", 0, 1.0, "right", 2, 1.0), sample("a", 1, 0.0, "wrong", 4, None),
               sample("b", 0, 0.0, "ungradable", 4, 0.0, timed_out=True), sample("b", 1, 0.0, "wrong", 2, 0.5)]
    assert rollout_metrics(samples).result() == {
        "reward/mean": 0.25, "reward/correctness": 0.25, "reward/format": 0.5, "tokens/completion_mean": 3.0,
        "tokens/truncated_share": 0.5, "grading/right_share": 0.25, "grading/ungradable_share": 0.25,
        "grading/timeouts": 1.0, "groups/zero_signal_share": 0.5, "reward/group_std": 0.25,
    }
    ungraded = Sample(Prompt("c", (1,), "q"), 3, (5,), (0.0,), "stop", 0, 0)
    with pytest.raises(ValueError, match="'c/3' has no reward"):
        rollout_metrics([ungraded])


TWO_RANKS = """
import json, os
from accelerate import PartialState
from rlhf.training.metrics import MetricAverager
state = PartialState(cpu=True)
averager = MetricAverager()
averager.add("reward/mean", [1.0, 4.0][state.process_index], weight=[3.0, 1.0][state.process_index])
averager.add_max("memory/peak_bytes", [5, 9][state.process_index])
if state.process_index:
    averager.add_sum("grading/timeouts", 2)
print(json.dumps(averager.reduce(), sort_keys=True))
state.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_with_different_names_reduce_to_the_same_values():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
              "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", TWO_RANKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=os.environ | common | {"RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    results = [process.communicate(timeout=120) for process in ranks]
    for output, errors in results:
        expected = '{"grading/timeouts": 2.0, "memory/peak_bytes": 9.0, "reward/mean": 1.75}'
        assert output.strip().splitlines()[-1:] == [expected], errors


def test_flat_config_holds_primitives_only():
    nested = {"optimizer": {"lr": 1e-6, "betas": (0.9, 0.99)}, "model": {"lora": None, "path": "x"}, "resume": True}
    assert flatten(nested) == {"optimizer.lr": 1e-6, "optimizer.betas": "(0.9, 0.99)", "model.lora": "None",
                               "model.path": "x", "resume": True}


@pytest.fixture
def fresh_accelerate_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_tensorboard_gets_the_numbers(tmp_path, fresh_accelerate_state):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(trackers=["tensorboard"], project="demo")
    trackers = Trackers(Accelerator(cpu=True, log_with=config.trackers, project_dir=tmp_path), config)
    trackers.start({"optimizer": {"lr": 1e-6, "betas": (0.9, 0.99)}, "model": {"lora": None}})
    trackers.log({"reward/mean": 0.25, "loss": math.nan}, step=1)
    trackers.log({"reward/mean": 0.5}, step=2)
    trackers.end()
    events = EventAccumulator(str(tmp_path / "demo"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]


def test_a_tracker_that_accelerate_would_drop_in_silence_is_an_error(tmp_path, fresh_accelerate_state):
    trackers = Trackers(Accelerator(cpu=True), TrackingConfig(trackers=["wandb"]))
    with pytest.raises(ModuleNotFoundError, match=r"pip install wandb, or take it out of tracking.trackers"):
        trackers.start({})


def test_without_trackers_nothing_is_written(tmp_path, fresh_accelerate_state):
    accelerator = Accelerator(cpu=True, project_dir=tmp_path)
    trackers = Trackers(accelerator, TrackingConfig())
    trackers.start({"a": 1})
    trackers.log({"loss": 1.0}, step=1)
    trackers.end()
    assert list(tmp_path.iterdir()) == [] and accelerator.trackers == []
