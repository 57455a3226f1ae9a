"""NaN in one sample's advantage or in one weight: the step is skipped, the culprit named and dumped, the run stops
after k."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf.trainers.grpo import PolicyGradient
from rlhf.training.guards import TrainingStopped
from tests.tiny_runs import make_learner, make_samples, save_tiny_model, tiny_config


@pytest.fixture
def parts(tmp_path):
    config = tiny_config(
        save_tiny_model(tmp_path / "model"),
        batch={"steps": 4, "prompts_per_step": 8},
        guards={"ratio_tolerance": 1e9, "max_skipped_steps": 2},
    )
    learner = make_learner(config, tmp_path / "dumps")
    algorithm = PolicyGradient(config.algorithm, 4)
    return learner, algorithm, algorithm.prepare(make_samples(), learner), tmp_path / "dumps"


def test_a_nan_advantage_names_its_sample_and_leaves_the_weights(parts):
    learner, algorithm, batch, dumps = parts
    index = next(i for i, sample in enumerate(batch) if sample.learned and sample.length > 2)
    poisoned = [replace(s, advantage=math.nan) if i == index else s for i, s in enumerate(batch)]
    before = [master.detach().clone() for master in learner.weights.masters]
    metrics = learner.update(poisoned, algorithm, 1)
    assert metrics["guards/skipped_updates"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, learner.weights.masters, strict=True))
    assert not learner.optimizer.state
    dump = json.loads(next(dumps.iterdir()).read_text())
    assert [culprit["id"] for culprit in dump["samples"]] == [batch[index].sample.id] and dump["weights"] == []
    with pytest.raises(TrainingStopped, match=rf"{batch[index].sample.id}.*2 in a row"):
        learner.update(poisoned, algorithm, 2)


def test_a_good_step_resets_the_count(parts):
    learner, algorithm, batch, _ = parts
    poisoned = [replace(s, advantage=math.nan) if s.learned else s for s in batch]
    for step, samples in enumerate([poisoned, batch, poisoned, batch], start=1):
        learner.update(samples, algorithm, step)
    assert learner.guard.skipped_in_row == 0


def test_a_nan_weight_is_named(parts):
    learner, algorithm, batch, dumps = parts
    position = next(i for i, name in enumerate(learner.weights.names) if name.endswith("layers.1.mlp.up_proj.weight"))
    with torch.no_grad():
        learner.weights.masters[position][0, 0] = math.nan
    learner.update(batch, algorithm, 1)
    assert json.loads(next(dumps.iterdir()).read_text())["weights"] == [learner.weights.names[position]]


def test_an_engine_with_another_policy_is_found_at_the_first_update(parts):
    learner, algorithm, batch, _ = parts
    learner.guard.config = learner.guard.config.model_copy(update={"ratio_tolerance": 0.1})
    with pytest.raises(TrainingStopped, match=r"times the engine's probability"):
        learner.update(batch, algorithm, 1)
