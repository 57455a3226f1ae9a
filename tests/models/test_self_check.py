"""The check of an architecture is strict in every precision and leaves the weights as they were."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.config.model import ModelConfig
from rlhf.models.head import HeadSettings
from rlhf.models.loading import load_policy
from rlhf.models.policy import Policy
from rlhf.models.self_check import UnsupportedArchitecture, at_least_float32


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, attn_implementation="rlhf_packed",
    )  # fmt: skip
    return Policy(LlamaForCausalLM(config).to(torch.bfloat16), head=HeadSettings())


def test_half_precision_weights_come_back_bit_by_bit(policy):
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with at_least_float32(policy.causal_lm):
        assert policy.causal_lm.dtype == torch.float32
    policy.self_check()
    after = policy.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
    embedding, head = policy.causal_lm.get_input_embeddings(), policy.causal_lm.get_output_embeddings()
    assert embedding.weight is head.weight


def test_a_scale_that_half_precision_would_hide_is_found(policy):
    policy.self_check()
    policy.head = dataclasses.replace(policy.head, logit_scale=1.05)
    with pytest.raises(UnsupportedArchitecture, match=r"torch.float32 explains"):
        policy.self_check()


@pytest.mark.slow
def test_the_demo_model_is_accepted_in_half_precision():
    policy = load_policy(ModelConfig(path="embedded:smollm2-135m-instruct", dtype="bfloat16"))
    assert policy.causal_lm.dtype == torch.bfloat16
