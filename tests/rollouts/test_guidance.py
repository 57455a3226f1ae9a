"""Decoding under guidance: what it is shown, that draws and log-probs are of what it gives, and that without it nothing
is different."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import EngineError, GuidedEngine
from rlhf.rollouts.transformers_engine import TransformersEngine
from tests.rollouts.conftest import MODELS, VOCABULARY, prompts, requests

FREE = SamplingConfig(max_tokens=12, stop_token_ids=[])
WEIGHT_DV = torch.randn(48, VOCABULARY, generator=torch.Generator().manual_seed(5)) / 4


def guidance(hidden_BD: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
    """Reads every state, and changes the distribution a lot."""
    return logits_BV.float() + hidden_BD.float() @ WEIGHT_DV


@pytest.fixture(params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tested(name: str, checkpoints: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> TransformersEngine:
    return make(checkpoints[name], tokenizer)


def make(path: Path, tokenizer: PreTrainedTokenizerFast, max_rows: int = 128) -> TransformersEngine:
    config = TransformersEngineConfig(max_rows=max_rows)
    return TransformersEngine(str(path), config=config, tokenizer=tokenizer, dtype=torch.float32, device="cpu")


@torch.no_grad()
def guided_logps(model: PreTrainedModel, sample: Sample, temperature: float) -> torch.Tensor:
    """By one full forward over prompt and completion."""
    ids = torch.tensor([sample.prompt.token_ids + sample.completion_ids])
    output = model(ids, output_hidden_states=True)
    rows = slice(len(sample.prompt.token_ids) - 1, -1)
    logits = guidance(output.hidden_states[-1][0, rows], output.logits[0, rows]).double() / temperature
    return logits.log_softmax(-1).gather(-1, torch.tensor(sample.completion_ids)[:, None]).squeeze(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_and_log_probs_are_of_the_guided_distribution(
    name: str, checkpoints: dict[str, Path], tested: TransformersEngine, temperature: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints[name], dtype=torch.float32, attn_implementation="eager")
    assert isinstance(tested, GuidedEngine)
    wanted = requests(prompts([7, 1, 13]), samples=3)
    sampling = SamplingConfig(max_tokens=12, stop_token_ids=[], temperature=temperature)
    plain = tested.generate(wanted, sampling)
    tested.guide(guidance, 3)
    guided = tested.generate(wanted, sampling)
    for before, sample in zip(plain, guided, strict=True):
        assert sample.completion_ids != before.completion_ids and sample.policy_version == 3
        expected = guided_logps(model.eval(), sample, temperature)
        torch.testing.assert_close(torch.tensor(sample.logps).double(), expected, atol=1e-4, rtol=0)
    greedy = tested.generate(wanted[:1], SamplingConfig(max_tokens=1, stop_token_ids=[], temperature=0))[0]
    with torch.no_grad():
        output = model(torch.tensor([wanted[0].prompt.token_ids]), output_hidden_states=True)
    assert greedy.completion_ids[0] == int(guidance(output.hidden_states[-1][0, -1], output.logits[0, -1]).argmax())


def test_a_guided_sample_does_not_depend_on_its_batch(
    name: str, checkpoints: dict[str, Path], tested: TransformersEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    wanted = requests(prompts([7, 1, 13, 2, 9]), samples=4)
    sampling = SamplingConfig(max_tokens=20, stop_token_ids=list(range(3, 13)))
    small = make(checkpoints[name], tokenizer, max_rows=3)
    for engine in (tested, small):
        engine.guide(guidance, 1)
    together = tested.generate(wanted, sampling)
    assert together == tested.generate(wanted, sampling), "bit by bit"
    assert len({len(sample.completion_ids) for sample in together}) > 3, "rows must finish at different steps"
    shuffled = small.generate(wanted[::-1], sampling)[::-1]
    for request, one, other in zip(wanted, together, shuffled, strict=True):
        alone = tested.generate([request], sampling)[0]
        assert one.completion_ids == other.completion_ids == alone.completion_ids
        assert one.logps == pytest.approx(alone.logps, abs=2e-5)


def test_without_guidance_nothing_is_different(name: str, tested: TransformersEngine) -> None:
    wanted = requests(prompts([7, 1, 13]), samples=3)
    plain = tested.generate(wanted, FREE)
    tested.guide(lambda _hidden_BD, logits_BV: logits_BV, 0)
    assert tested.generate(wanted, FREE) == plain, "bit by bit"
    tested.guide(guidance, 0)
    assert tested.generate(wanted, FREE) != plain
    tested.load_weights(MODELS[name](seed=0).named_parameters(), 0)
    assert tested.generate(wanted, FREE) != plain, "weights leave the guidance as it is"
    tested.guide(None, 0)
    assert tested.generate(wanted, FREE) == plain


def test_guidance_that_is_not_finite_is_loud(tested: TransformersEngine) -> None:
    tested.guide(lambda _hidden_BD, logits_BV: logits_BV * torch.nan, 4)
    with pytest.raises(EngineError, match=r"not finite.*version 4.*what guides them"):
        tested.generate(requests(prompts([4])), FREE)
    tested.close()
    with pytest.raises(EngineError, match="closed"):
        tested.guide(None, 5)
