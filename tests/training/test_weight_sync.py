"""The engine proves that it holds the learner's weights; a sync that did nothing is found and named."""

import pytest
import torch

from rlhf.config.model import ModelConfig
from rlhf.config.rollouts import TransformersEngineConfig
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.training.guards import TrainingStopped
from rlhf.training.weight_sync import sync_weights
from tests.tiny_runs import save_tiny_model


def test_a_sync_is_verified_and_a_skipped_one_is_found(tmp_path, monkeypatch):
    config = ModelConfig(path=save_tiny_model(tmp_path / "model"), dtype="float32")
    policy = load_policy(config)
    engine = TransformersEngine(
        config.path, config=TransformersEngineConfig(), tokenizer=load_tokenizer(config), dtype=torch.float32
    )
    sync_weights(policy.weights(), engine, version=1)
    with torch.no_grad():
        policy.causal_lm.get_input_embeddings().weight[5] += 1.0
    load = engine.load_weights
    monkeypatch.setattr(engine, "load_weights", lambda weights, version: list(weights))
    with pytest.raises(TrainingStopped, match="embed_tokens"):
        sync_weights(policy.weights(), engine, version=2)
    monkeypatch.setattr(engine, "load_weights", load)
    sync_weights(policy.weights(), engine, version=2)
    assert torch.equal(engine.model.get_input_embeddings().weight, policy.causal_lm.get_input_embeddings().weight)
