"""Engine and learner are one policy: the ratio of an on-policy step is 1, and after an update both decode alike."""

import pytest
import torch
from accelerate import Accelerator

from rlhf.config.rollouts import SamplingConfig
from rlhf.data.order import PromptStream
from rlhf.data.sources import load_prompts
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.rewards import RewardScorer
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.requests import make_requests
from rlhf.trainers.grpo import PolicyGradient
from rlhf.training.guards import NonFiniteGuard
from rlhf.training.learner import Learner
from rlhf.training.weight_sync import sync_weights
from tests.tiny_runs import tiny_config

# engine, precision of both, largest |mean ratio - 1|, largest mean |log-prob gap|. In bfloat16 each of two correct
# implementations is about 0.03 to 0.08 from float32 (tests/models/test_policy.py)
CASES = [
    ("transformers", "float32", 1e-3, 1e-4),
    ("transformers", "bfloat16", 0.05, 0.1),
    ("vllm", "float32", 1e-3, 1e-4),
    ("vllm", "bfloat16", 0.05, 0.1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("engine_type", "dtype", "ratio_bound", "gap_bound"), CASES)
def test_one_policy_before_and_after_an_update(tmp_path, engine_type, dtype, ratio_bound, gap_bound):
    config = tiny_config(
        "embedded:smollm2-135m-instruct",
        model={"path": "embedded:smollm2-135m-instruct", "dtype": dtype},
        engine={"type": engine_type, **({"cpu_kv_cache_gib": 0.25} if engine_type == "vllm" else {})},
        sampling={"samples_per_prompt": 4, "max_tokens": 24},
        optimizer={"type": "adamw", "lr": 3e-5},
        batch={"steps": 1, "prompts_per_step": 4, "tokens_per_micro_batch": 512},
        guards={"ratio_tolerance": ratio_bound},
    )
    tokenizer = load_tokenizer(config.model)
    prompts = PromptStream(load_prompts(config.data, tokenizer, seed=0), seed=0).take(4)
    learner = Learner(
        load_policy(config.model), config, Accelerator(cpu=True), NonFiniteGuard(config.guards, tmp_path)
    )
    algorithm = PolicyGradient(config.algorithm, 4)
    engine = build_engine(config.engine, config.model, longest_sequence=96, tokenizer=tokenizer, seed=0)
    try:
        with RewardScorer(config.rewards) as scorer:
            samples = scorer.score(engine.generate(make_requests(prompts, 4, 0, 1), config.sampling))
        metrics = learner.update(algorithm.prepare(samples, learner), algorithm, 1)
        assert metrics["gradient/norm"] > 0
        assert abs(metrics["policy/engine_ratio_mean"] - 1) < ratio_bound
        assert metrics["policy/engine_logp_gap"] < gap_bound
        sync_weights(learner.policy.weights(), engine, version=1)
        greedy = SamplingConfig(samples_per_prompt=1, max_tokens=12, temperature=0.0)
        for sample in engine.generate(make_requests(prompts, 1, 0, 2), greedy):
            assert_most_likely(learner, sample, slack=1e-4 if dtype == "float32" else 0.3)
    finally:
        engine.close()


def assert_most_likely(learner, sample, slack):
    """The learner's plain forward finds no token more likely than the engine's, but for rounding (in nats)."""
    prompt, completion = list(sample.prompt.token_ids), list(sample.completion_ids)
    model = learner.policy.causal_lm
    with torch.no_grad():
        # an attention of transformers' own: the packed one needs a plan
        model.set_attn_implementation("sdpa")
        try:
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
        finally:
            model.set_attn_implementation("rlhf_packed")
    chosen = logits.gather(1, torch.tensor(completion)[:, None]).squeeze(1)
    assert float((logits.amax(1) - chosen).max()) <= slack
