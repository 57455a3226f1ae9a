"""vLLM in this process on the real demo checkpoint in float32: against transformers, before and after weight pushes."""

import json
import math
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig, VllmEngineConfig
from rlhf.data.types import Prompt, Sample
from rlhf.models.embedded import resolve_model_path
from rlhf.rollouts.engine import EngineError, Request
from rlhf.rollouts.sampling import truncate
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.rollouts.vllm_engine import VllmEngine
from rlhf.rollouts.weights import compare_checksums, weight_checksums
from rlhf.training.background_call import BackgroundCall

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")

QUESTIONS = ["What is 12 + 7?", "Name a color.", "The capital of France is"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with sampling settings in its generation_config that would show in every number."""
    folder = tmp_path_factory.mktemp("smollm2")
    for file in Path(resolve_model_path("embedded:smollm2-135m-instruct")).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    hostile = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 2,
        "repetition_penalty": 1.8,
        "eos_token_id": [2, 253, 28],
    }
    (folder / "generation_config.json").write_text(json.dumps(hostile))
    return folder


@pytest.fixture(scope="module")
def smollm2_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def started(
    checkpoint: Path, smollm2_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmEngine, dict[str, bool]]]:
    """The engine, and what its start left as it was."""
    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(5)
    expected = random.random(), float(np.random.rand()), float(torch.rand(()))
    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(5)
    before = torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype(), torch.is_grad_enabled()
    log_file = tmp_path_factory.mktemp("log") / "engine" / "vllm.log"
    engine = VllmEngine(
        str(checkpoint),
        config=VllmEngineConfig(cpu_kv_cache_gib=0.5),
        max_model_len=256,
        tokenizer=smollm2_tokenizer,
        dtype=torch.float32,
        seed=3,
        log_file=log_file,
    )
    after = torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype(), torch.is_grad_enabled()
    kept = {
        "threads, default dtype and grad mode": before == after,
        "random states": expected == (random.random(), float(np.random.rand()), float(torch.rand(()))),
        "log in its file": "LlamaForCausalLM" in log_file.read_text(),
    }
    yield engine, kept
    engine.close()
    engine.close()
    assert not torch.distributed.is_initialized()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([], SamplingConfig())


@pytest.fixture(scope="module")
def learner(checkpoint: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def engine(started: tuple[VllmEngine, dict[str, bool]], learner: PreTrainedModel) -> Iterator[VllmEngine]:
    """The engine with the learner's weights, whatever the last test did to either."""
    original = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    started[0].load_weights(learner.named_parameters(), 0)
    yield started[0]
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            parameter.copy_(original[name])


def chat_prompts(tokenizer: PreTrainedTokenizerBase, questions: list[str] = QUESTIONS) -> list[Prompt]:
    made = []
    for number, question in enumerate(questions):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        made.append(Prompt(id=f"chat:{number}", token_ids=tuple(ids), text=question))
    return made


def requests(made: list[Prompt], samples: int = 1) -> list[Request]:
    return [Request(prompt, index, 2**62 + 10 * n + index) for n, prompt in enumerate(made) for index in range(samples)]


@torch.no_grad()
def largest_gap(model: PreTrainedModel, samples: list[Sample], sampling: SamplingConfig) -> float:
    """Largest difference between a sample's log-probs and those of one forward of `model`."""
    gaps = []
    for sample in samples:
        logits = model(torch.tensor([sample.prompt.token_ids + sample.completion_ids])).logits[0]
        logits = logits[len(sample.prompt.token_ids) - 1 : -1].double()
        if sampling.temperature > 0:
            logits = truncate(logits / sampling.temperature, sampling.top_k, sampling.top_p)
        logps = logits.log_softmax(-1).gather(-1, torch.tensor(sample.completion_ids)[:, None]).squeeze(-1)
        gaps.append((logps - torch.tensor(sample.logps).double()).abs().max().item())
    return max(gaps)


def perturb(model: PreTrainedModel, names: list[str] | None = None) -> None:
    """Add noise of 5 % of each matrix's scale to the parameters (all, or those named)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and (names is None or name in names):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.05)


def test_the_process_is_as_it_was(started: tuple[VllmEngine, dict[str, bool]]) -> None:
    assert all(started[1].values()), started[1]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(max_tokens=12),
        SamplingConfig(max_tokens=12, temperature=0.6),
        SamplingConfig(max_tokens=12, temperature=1.2, top_p=0.9, top_k=50),
        SamplingConfig(max_tokens=12, temperature=0),
    ],
    ids=["plain", "cold", "truncated", "greedy"],
)
def test_logps_are_those_of_the_distribution_drawn_from(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase, sampling: SamplingConfig
) -> None:
    samples = engine.generate(requests(chat_prompts(smollm2_tokenizer), samples=2), sampling)
    assert largest_gap(learner, samples, sampling) < 1e-3


def test_same_completions_as_the_transformers_engine(
    engine: VllmEngine, checkpoint: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    reference = TransformersEngine(
        str(checkpoint),
        config=TransformersEngineConfig(),
        tokenizer=smollm2_tokenizer,
        dtype=torch.float32,
        device="cpu",
    )
    wanted = requests(chat_prompts(smollm2_tokenizer), samples=3)
    comma_and_eos = [smollm2_tokenizer.eos_token_id, smollm2_tokenizer.convert_tokens_to_ids(",")]
    for sampling in (
        SamplingConfig(max_tokens=16, temperature=0.9),
        SamplingConfig(max_tokens=16, temperature=0.8, top_p=0.9, top_k=40, stop_token_ids=comma_and_eos),
        SamplingConfig(max_tokens=8, temperature=0),
        SamplingConfig(max_tokens=1, stop_token_ids=[]),
    ):
        expected, actual = reference.generate(wanted, sampling), engine.generate(wanted, sampling)
        same = [
            (a.id, a.completion_ids, a.finish_reason, a.text, a.seed)
            == (b.id, b.completion_ids, b.finish_reason, b.text, b.seed)
            for a, b in zip(expected, actual, strict=True)
        ]
        # the two differ by float rounding, which now and then tips a draw
        assert sum(same) >= 0.75 * len(same), same
    stopped = engine.generate(wanted, SamplingConfig(max_tokens=32, stop_token_ids=comma_and_eos))
    ends = {sample.completion_ids[-1] for sample in stopped if sample.finish_reason == "stop"}
    assert ends and ends <= set(comma_and_eos)
    assert all(not set(comma_and_eos) & set(sample.completion_ids[:-1]) for sample in stopped)


def test_greedy_equals_transformers_after_each_push(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    made = chat_prompts(smollm2_tokenizer)
    sampling = SamplingConfig(max_tokens=16, temperature=0, stop_token_ids=[])
    first = engine.generate(requests(made), sampling)
    perturb(learner)
    stale = compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), engine.checksums())
    # 7 matrices in each of 30 layers, the embedding, and the head that is tied to it
    assert len(stale) == 7 * 30 + 2
    engine.load_weights(learner.named_parameters(), 1)
    assert compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), engine.checksums()) == []
    second = engine.generate(requests(made), sampling)
    assert [sample.policy_version for sample in first + second] == [0] * 3 + [1] * 3
    assert [sample.completion_ids for sample in first] != [sample.completion_ids for sample in second]
    for sample in second:
        ids = torch.tensor([sample.prompt.token_ids])
        expected = learner.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=None,
            pad_token_id=0, repetition_penalty=1.0,
        )  # fmt: skip
        assert list(sample.completion_ids) == expected[0, ids.shape[1] :].tolist()


def test_a_push_of_the_embedding_alone_reaches_the_tied_head(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    perturb(learner, ["model.embed_tokens.weight"])
    engine.load_weights(learner.named_parameters(), 1)
    samples = engine.generate(requests(chat_prompts(smollm2_tokenizer)), SamplingConfig(max_tokens=16))
    assert largest_gap(learner, samples, SamplingConfig()) < 1e-3
    checksums = engine.checksums()
    assert checksums["lm_head.weight"] == checksums["model.embed_tokens.weight"]


def test_cached_prefixes_do_not_outlive_their_weights(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    made = chat_prompts(smollm2_tokenizer, ["Count with me: " + " ".join(str(i) for i in range(60))])
    assert len(made[0].token_ids) > 96, "the prompt must fill whole cache blocks"
    engine.generate(requests(made), SamplingConfig(max_tokens=4))
    perturb(learner)
    engine.load_weights(learner.named_parameters(), 1)
    samples = engine.generate(requests(made, samples=3), SamplingConfig(max_tokens=4))
    assert largest_gap(learner, samples, SamplingConfig()) < 1e-3


def test_one_changed_element_is_named(engine: VllmEngine, learner: PreTrainedModel) -> None:
    with torch.no_grad():
        learner.model.layers[7].self_attn.k_proj.weight[5, 100] += 1e-4
    lines = compare_checksums(weight_checksums(learner.named_parameters(), torch.float32), engine.checksums())
    assert len(lines) == 1 and lines[0].startswith("model.layers.7.self_attn.k_proj.weight:")


def test_seeds_repeat_and_do_not_depend_on_the_batch(
    engine: VllmEngine, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = requests(chat_prompts(smollm2_tokenizer), samples=4)
    sampling = SamplingConfig(max_tokens=8, stop_token_ids=[])
    together = engine.generate(wanted, sampling)
    assert together == engine.generate(wanted, sampling)
    assert len({(sample.prompt.id, sample.completion_ids) for sample in together}) == len(wanted)
    backwards = engine.generate(wanted[::-1], sampling)[::-1]
    alone = [engine.generate([request], sampling)[0] for request in wanted[::4]]
    same = [a.completion_ids == b.completion_ids for a, b in zip(together, backwards, strict=True)]
    same += [a.completion_ids == b.completion_ids for a, b in zip(together[::4], alone, strict=True)]
    # the shape of a batch changes float rounding, which now and then tips a draw
    assert sum(same) >= 0.8 * len(same), same


def test_sampled_frequencies_match_the_probabilities(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = chat_prompts(smollm2_tokenizer)[1]
    count = 1000
    samples = engine.generate([Request(prompt, i, seed=i) for i in range(count)], SamplingConfig(max_tokens=1))
    drawn = torch.bincount(torch.tensor([sample.completion_ids[0] for sample in samples]), minlength=49152).double()
    with torch.no_grad():
        expected = learner(torch.tensor([prompt.token_ids])).logits[0, -1].double().softmax(-1) * count
    kept = expected >= 5
    cells = torch.cat([drawn[kept], drawn[~kept].sum()[None]]), torch.cat([expected[kept], expected[~kept].sum()[None]])
    chi_square, degrees = ((cells[0] - cells[1]) ** 2 / cells[1]).sum().item(), len(cells[0]) - 1
    assert degrees >= 3
    # mean + 4.5 standard deviations of a chi-square distribution
    assert chi_square < degrees + 4.5 * math.sqrt(2 * degrees)


def test_bad_requests_and_bad_weights_are_loud_and_a_full_push_heals(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    made = chat_prompts(smollm2_tokenizer)
    with pytest.raises(ValueError, match=r"chat:0.*max_tokens 250.*max_model_len 256"):
        engine.generate(requests(made), SamplingConfig(max_tokens=250))
    with pytest.raises(ValueError, match=r"temperature 0.001.*greedy"):
        engine.generate(requests(made), SamplingConfig(max_tokens=4, temperature=0.001))
    weights = dict(learner.named_parameters())
    with pytest.raises(KeyError, match=r"1 of vLLM's parameters were not given.*model.norm.weight"):
        engine.load_weights([(name, weight) for name, weight in weights.items() if name != "model.norm.weight"], 1)
    with pytest.raises(EngineError, match="broke off half-way"):
        engine.generate(requests(made), SamplingConfig(max_tokens=4))
    engine.load_weights([(n, w * math.nan if n == "model.norm.weight" else w) for n, w in weights.items()], 2)
    with pytest.raises(EngineError, match=r"chat:0/0.*not finite.*version 2"):
        engine.generate(requests(made), SamplingConfig(max_tokens=4))
    engine.load_weights(weights.items(), 3)
    assert largest_gap(learner, engine.generate(requests(made), SamplingConfig(max_tokens=4)), SamplingConfig()) < 1e-3


def test_a_thread_generates_the_same_while_the_learner_trains(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Tokens and log-probs to the bit, and the process as it was: the learner's gradients and draws are its own."""
    wanted = requests(chat_prompts(smollm2_tokenizer), samples=4)
    sampling = SamplingConfig(max_tokens=24)
    expected = engine.generate(wanted, sampling)

    def train(is_done: Callable[[], bool]) -> list[torch.Tensor]:
        torch.manual_seed(3)
        results = []
        while len(results) < 4 or not is_done():
            ids = torch.randint(3, 49_000, (2, 32))
            learner.zero_grad(set_to_none=True)
            learner(ids, labels=ids).loss.backward()
            results.append(learner.model.embed_tokens.weight.grad.clone())
        assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
        return results

    learner.requires_grad_(True)
    alone = train(lambda: True)
    ended = threading.Event()

    def generate() -> list[Sample]:
        try:
            return engine.generate(wanted, sampling)
        finally:
            ended.set()

    call = BackgroundCall(generate, "a batch")
    beside = train(ended.is_set)
    assert call.result() == expected
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=False))
    # again from this thread, after the other
    assert engine.generate(wanted, sampling) == expected
    learner.zero_grad(set_to_none=True)


def test_a_failure_inside_vllm_names_itself_and_is_final(
    engine: VllmEngine, learner: PreTrainedModel, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Last in this file: it leaves the shared engine dead."""
    beyond_the_vocabulary = Prompt(id="bad", token_ids=(1, 10**6), text="")
    with pytest.raises(EngineError, match=r"vLLM failed while generating: \w+Error: (.|\n)*log"):
        engine.generate(requests([beyond_the_vocabulary]), SamplingConfig(max_tokens=4))
    for use in (
        lambda: engine.generate(requests(chat_prompts(smollm2_tokenizer)), SamplingConfig(max_tokens=4)),
        lambda: engine.load_weights(learner.named_parameters(), 9),
    ):
        with pytest.raises(EngineError, match="an earlier generation failed"):
            use()
