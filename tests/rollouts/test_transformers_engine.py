"""The transformers engine against the model's own full forward and generate(), in float32 on tiny random models."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig
from rlhf.data.types import Prompt, Sample
from rlhf.rollouts.engine import EngineError, Request
from rlhf.rollouts.sampling import truncate
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.rollouts.weights import compare_checksums, weight_checksums
from tests.rollouts.conftest import END_OF_TURN, EOS, MODELS, llama, prompts, requests

LENGTHS = [7, 1, 13, 2, 9]
FREE = SamplingConfig(max_tokens=20, stop_token_ids=[])


def engine(path: Path, tokenizer: PreTrainedTokenizerFast, max_rows: int = 128) -> TransformersEngine:
    return TransformersEngine(
        str(path),
        config=TransformersEngineConfig(max_rows=max_rows),
        tokenizer=tokenizer,
        dtype=torch.float32,
        device="cpu",
    )


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def reference(name: str, checkpoints: dict[str, Path]) -> PreTrainedModel:
    """The same checkpoint with eager attention: no code shared with the engine's path."""
    return AutoModelForCausalLM.from_pretrained(
        checkpoints[name], dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture
def tested(name: str, checkpoints: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> TransformersEngine:
    return engine(checkpoints[name], tokenizer)


@torch.no_grad()
def full_forward_logps(model: PreTrainedModel, sample: Sample, sampling: SamplingConfig) -> torch.Tensor:
    """Log-probs (tokens,) of a sample's completion by one forward over prompt + completion."""
    ids = torch.tensor([sample.prompt.token_ids + sample.completion_ids])
    start = len(sample.prompt.token_ids) - 1
    logits = model(ids).logits[0, start:-1].double()
    if sampling.temperature > 0:
        logits = truncate(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    return logits.log_softmax(-1).gather(-1, torch.tensor(sample.completion_ids)[:, None]).squeeze(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        FREE,
        SamplingConfig(max_tokens=20, temperature=0.7, stop_token_ids=[5, 6, 7]),
        SamplingConfig(max_tokens=20, temperature=1.3, top_p=0.8, stop_token_ids=[]),
        SamplingConfig(max_tokens=20, top_k=5, stop_token_ids=[]),
        SamplingConfig(max_tokens=20, temperature=0, stop_token_ids=[]),
    ],
    ids=["free", "cold-stops", "hot-top-p", "top-k", "greedy"],
)
def test_logps_equal_the_full_forward(
    tested: TransformersEngine, reference: PreTrainedModel, sampling: SamplingConfig
) -> None:
    for sample in tested.generate(requests(prompts(LENGTHS), samples=3), sampling):
        expected = full_forward_logps(reference, sample, sampling)
        torch.testing.assert_close(torch.tensor(sample.logps).double(), expected, atol=1e-4, rtol=0)


def test_greedy_equals_generate(tested: TransformersEngine, reference: PreTrainedModel) -> None:
    sampling = SamplingConfig(max_tokens=24, temperature=0, stop_token_ids=[EOS, END_OF_TURN])
    for sample in tested.generate(requests(prompts([5, 12, 1, 30])), sampling):
        ids = torch.tensor([sample.prompt.token_ids])
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[EOS, END_OF_TURN],
        )
        assert list(sample.completion_ids) == expected[0, ids.shape[1] :].tolist()


def test_a_sample_does_not_depend_on_its_batch(
    name: str, checkpoints: dict[str, Path], tested: TransformersEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    wanted = requests(prompts(LENGTHS), samples=4)
    sampling = SamplingConfig(max_tokens=20, stop_token_ids=[3, 4, 5, 6])
    together = tested.generate(wanted, sampling)
    assert len({len(sample.completion_ids) for sample in together}) > 3, "rows must finish at different steps"
    small = engine(checkpoints[name], tokenizer, max_rows=3)
    shuffled = small.generate(wanted[::-1], sampling)[::-1]
    for request, one, other in zip(wanted, together, shuffled, strict=True):
        alone = tested.generate([request], sampling)[0]
        assert one.id == f"{request.prompt.id}/{request.index}" == other.id == alone.id
        assert one.completion_ids == other.completion_ids == alone.completion_ids
        assert one.logps == pytest.approx(alone.logps, abs=1e-5)
        assert one.finish_reason == other.finish_reason == alone.finish_reason


def test_repeats_to_the_bit_and_differs_by_seed(tested: TransformersEngine) -> None:
    prompt = prompts([9])[0]
    wanted = [Request(prompt, index, seed=2**63 - 1 - index) for index in range(16)]
    first, second = tested.generate(wanted, FREE), tested.generate(wanted, FREE)
    assert first == second
    assert len({sample.completion_ids for sample in first}) == 16
    assert [sample.seed for sample in first] == [request.seed for request in wanted]
    # a shorter limit is a prefix: the random number of a token depends on its position only
    short = tested.generate(wanted, SamplingConfig(max_tokens=5, stop_token_ids=[]))
    assert [sample.completion_ids for sample in short] == [sample.completion_ids[:5] for sample in first]


def test_sampled_frequencies_match_the_probabilities(tested: TransformersEngine, reference: PreTrainedModel) -> None:
    prompt = prompts([6])[0]
    count = 4096
    samples = tested.generate([Request(prompt, i, seed=i) for i in range(count)], SamplingConfig(max_tokens=1))
    drawn = torch.bincount(torch.tensor([sample.completion_ids[0] for sample in samples]), minlength=64).double()
    with torch.no_grad():
        expected = reference(torch.tensor([prompt.token_ids])).logits[0, -1].double().softmax(-1) * count
    kept = expected >= 5
    cells = torch.cat([drawn[kept], drawn[~kept].sum()[None]]), torch.cat([expected[kept], expected[~kept].sum()[None]])
    chi_square = ((cells[0] - cells[1]) ** 2 / cells[1]).sum().item()
    degrees = len(cells[0]) - 1
    assert degrees > 5
    # mean + 4.5 standard deviations of a chi-square distribution
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees)


def test_stop_tokens_end_a_completion_and_belong_to_it(tested: TransformersEngine) -> None:
    free = tested.generate(requests(prompts([8])), FREE)[0]
    stop = free.completion_ids[6]
    first = free.completion_ids.index(stop)
    stopped = tested.generate(requests(prompts([8])), SamplingConfig(max_tokens=20, stop_token_ids=[stop]))[0]
    assert stopped.completion_ids == free.completion_ids[: first + 1]
    assert stopped.finish_reason == "stop" and free.finish_reason == "length"
    assert len(free.completion_ids) == 20
    at_the_limit = tested.generate(requests(prompts([8])), SamplingConfig(max_tokens=first + 1, stop_token_ids=[stop]))[
        0
    ]
    assert at_the_limit.finish_reason == "stop" and at_the_limit.completion_ids == stopped.completion_ids


def test_default_stops_are_eos_and_end_of_turn_and_text_drops_them(tested: TransformersEngine) -> None:
    samples = tested.generate(requests(prompts([5, 3]), samples=64), SamplingConfig(max_tokens=40))
    ends = [sample.completion_ids[-1] for sample in samples if sample.finish_reason == "stop"]
    assert {EOS, END_OF_TURN} == set(ends)
    for sample in samples:
        assert not {EOS, END_OF_TURN} & set(sample.completion_ids[:-1])
        assert sample.text.split() == [f"w{i}" for i in sample.completion_ids if i > 2]


def test_one_token_and_no_requests(tested: TransformersEngine, reference: PreTrainedModel) -> None:
    sampling = SamplingConfig(max_tokens=1, stop_token_ids=[])
    samples = tested.generate(requests(prompts(LENGTHS)), sampling)
    for sample in samples:
        assert len(sample.completion_ids) == 1
        assert sample.logps[0] == pytest.approx(full_forward_logps(reference, sample, sampling)[0].item(), abs=1e-4)
    assert tested.generate([], sampling) == []


def test_load_weights_changes_outputs_version_and_checksums(name: str, tested: TransformersEngine) -> None:
    old = tested.generate(requests(prompts(LENGTHS)), FREE)
    learner = MODELS[name](seed=1)
    assert compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), tested.checksums())
    tested.load_weights(learner.named_parameters(), version=7)
    assert compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), tested.checksums()) == []
    new = tested.generate(requests(prompts(LENGTHS)), FREE)
    assert [sample.policy_version for sample in old + new] == [0] * 5 + [7] * 5
    for before, after in zip(old, new, strict=True):
        assert before.completion_ids != after.completion_ids
        torch.testing.assert_close(
            torch.tensor(after.logps).double(), full_forward_logps(learner, after, FREE), atol=1e-4, rtol=0
        )


def test_a_skipped_sync_is_named(name: str, tested: TransformersEngine) -> None:
    learner = MODELS[name](seed=0)
    assert compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), tested.checksums()) == []
    with torch.no_grad():
        learner.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    lines = compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), tested.checksums())
    assert len(lines) == 1 and lines[0].startswith("model.layers.1.mlp.up_proj.weight:")


def test_partial_or_wrong_weights_are_refused(checkpoints: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> None:
    tested = engine(checkpoints["llama"], tokenizer)
    weights = dict(llama(seed=1).named_parameters())
    with pytest.raises(KeyError, match=r"no parameter 'base_model.lm_head.weight'"):
        tested.load_weights([("base_model.lm_head.weight", weights["lm_head.weight"])], 1)
    with pytest.raises(ValueError, match=r"lm_head.weight.*\(64, 48\).*\(48, 64\)"):
        tested.load_weights([("lm_head.weight", weights["lm_head.weight"].T)], 1)
    with pytest.raises(KeyError, match=r"1 parameters were not given.*lm_head"):
        tested.load_weights([(name, weight) for name, weight in weights.items() if name != "lm_head.weight"], 1)
    with pytest.raises(EngineError, match="broke off half-way"):
        tested.generate(requests(prompts([4])), FREE)
    tested.load_weights(weights.items(), 2)
    assert tested.generate(requests(prompts([4])), FREE)[0].policy_version == 2


def test_non_finite_weights_and_closing_are_loud(
    checkpoints: dict[str, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    tested = engine(checkpoints["llama"], tokenizer)
    bad = llama(seed=1)
    torch.nn.init.constant_(bad.lm_head.weight, math.nan)
    tested.load_weights(bad.named_parameters(), 3)
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineError, match=r"not finite.*version 3.*test:0/0"):
            tested.generate(requests(prompts([4])), SamplingConfig(max_tokens=4, temperature=temperature))
    tested.close()
    tested.close()
    with pytest.raises(EngineError, match="closed"):
        tested.generate(requests(prompts([4])), FREE)
    with pytest.raises(EngineError, match="closed"):
        tested.load_weights(bad.named_parameters(), 4)


def test_a_prompt_too_long_for_the_model_is_named(tested: TransformersEngine) -> None:
    prompt = Prompt(id="gsm8k:5", token_ids=(5,) * 500, text="")
    with pytest.raises(ValueError, match=r"gsm8k:5.*500 tokens.*max_tokens 20.*512"):
        tested.generate([Request(prompt, 0, 0)], FREE)
