"""A real vLLM server process on the demo checkpoint in float32, against vLLM in this process."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig, ServerEngineConfig, VllmEngineConfig
from rlhf.data.types import Prompt
from rlhf.models.embedded import resolve_model_path
from rlhf.rollouts.engine import EngineError, Request
from rlhf.rollouts.server_client import INCOMPLETE, RolloutServer
from rlhf.rollouts.server_engine import ServerEngine
from rlhf.rollouts.vllm_engine import VllmEngine
from rlhf.rollouts.weights import compare_checksums, weight_checksums
from tests.rollout_servers import free_port, start_server, stop, wait_until_well

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")

QUESTIONS = ["What is 12 + 7?", "Name a color.", "The capital of France is"]
GREEDY = SamplingConfig(max_tokens=8, temperature=0, stop_token_ids=[])


@dataclass(frozen=True)
class Started:
    url: str
    process: subprocess.Popen
    tokenizer: PreTrainedTokenizerBase
    in_process: VllmEngine
    """With the checkpoint's weights."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    path, port = resolve_model_path("embedded:smollm2-135m-instruct"), free_port()
    log_file = tmp_path_factory.mktemp("server") / "server.log"
    process = start_server(path, port, log_file)
    tokenizer = AutoTokenizer.from_pretrained(path)
    try:
        engine = VllmEngine(
            path, config=VllmEngineConfig(cpu_kv_cache_gib=0.5), max_model_len=256, tokenizer=tokenizer,
            dtype=torch.float32, seed=3,
        )  # fmt: skip
        wait_until_well(process, port, log_file)
        yield Started(f"http://127.0.0.1:{port}", process, tokenizer, engine)
        engine.close()
    finally:
        stop(process)


@pytest.fixture(scope="module")
def learner() -> PreTrainedModel:
    path = resolve_model_path("embedded:smollm2-135m-instruct")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def connect(started: Started, **settings: object) -> ServerEngine:
    config = ServerEngineConfig(**{"urls": [started.url], "retry_for_s": 5, "start_timeout_s": 5} | settings)
    return ServerEngine(config, dtype=torch.float32, tokenizer=started.tokenizer, longest_sequence=256)


@pytest.fixture
def engine(started: Started) -> Iterator[ServerEngine]:
    engine = connect(started)
    yield engine
    engine.close()
    engine.close()


def requests(tokenizer: PreTrainedTokenizerBase, samples: int = 1) -> list[Request]:
    made = []
    for number, question in enumerate(QUESTIONS):
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        prompt = Prompt(id=f"chat:{number}", token_ids=tuple(ids), text=question)
        made += [Request(prompt, index, 2**62 + 10 * number + index) for index in range(samples)]
    return made


def perturbed(model: PreTrainedModel, seed: int) -> list[tuple[str, torch.Tensor]]:
    """Every matrix with noise of 5 % of its scale."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            name,
            weight + (torch.randn(weight.shape, generator=generator) * weight.std() * 0.05 if weight.ndim == 2 else 0),
        )
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    ]


def test_equal_seeds_give_the_samples_of_the_engine_in_this_process(
    started: Started, engine: ServerEngine, learner: PreTrainedModel
) -> None:
    """Before a push, with the checkpoint that the server started with, and after one."""
    wanted = requests(started.tokenizer, samples=4)
    plain = SamplingConfig(max_tokens=16, temperature=0.9)
    truncated = SamplingConfig(max_tokens=16, temperature=0.8, top_p=0.9, top_k=40)
    for weights in (None, perturbed(learner, 1)):
        if weights is not None:
            engine.load_weights(iter(weights), 7)
            started.in_process.load_weights(iter(weights), 7)
        for sampling in (plain, truncated, GREEDY):
            expected, actual = started.in_process.generate(wanted, sampling), engine.generate(wanted, sampling)
            same = [a.completion_ids == b.completion_ids for a, b in zip(expected, actual, strict=True)]
            # other batches of completions have other rounding, which now and then tips a draw
            assert sum(same) >= 0.75 * len(same), same
            for a, b, is_same in zip(expected, actual, same, strict=True):
                assert (a.id, a.seed, a.policy_version) == (b.id, b.seed, b.policy_version)
                if is_same:
                    assert (a.finish_reason, a.text) == (b.finish_reason, b.text)
                    assert torch.allclose(torch.tensor(a.logps), torch.tensor(b.logps), atol=1e-3)


@pytest.mark.parametrize("transfer", ["shared_memory", "http"])
def test_pushed_weights_are_those_computed_with(started: Started, learner: PreTrainedModel, transfer: str) -> None:
    engine = connect(started, transfer=transfer, bucket_mib=32)
    weights = perturbed(learner, 2 if transfer == "http" else 3)
    before = RolloutServer(started.url, push_timeout_s=60, probe_timeout_s=10).checksums()
    engine.load_weights(iter(weights), 1)
    expected = weight_checksums(weights, torch.float32)
    assert compare_checksums(expected, engine.checksums()) == []
    # 7 matrices in each of 30 layers, the embedding, and the head that is tied to it
    assert len(compare_checksums(before, engine.checksums())) >= 7 * 30 + 2
    assert {sample.policy_version for sample in engine.generate(requests(started.tokenizer), GREEDY)} == {1}
    kept = list(Path(engine.config.weights_folder).glob("rlhf-weights-*/*.safetensors"))
    assert len(kept) > 10 and max(path.stat().st_size for path in kept) < 120 * 2**20
    engine.close()
    assert not list(Path(engine.config.weights_folder).glob("rlhf-uploads-*/*.safetensors"))


def test_samples_of_other_weights_are_refused_and_the_push_repeated(
    started: Started, engine: ServerEngine, learner: PreTrainedModel
) -> None:
    """As when a server was started again, or when another trainer took it."""
    weights = perturbed(learner, 4)
    engine.load_weights(iter(weights), 3)
    expected, agreed = engine.generate(requests(started.tokenizer), GREEDY), engine.checksums()
    other = RolloutServer(started.url, push_timeout_s=60, probe_timeout_s=10)
    other.set_version("another trainer's")
    again = engine.generate(requests(started.tokenizer), GREEDY)
    assert [sample.completion_ids for sample in again] == [sample.completion_ids for sample in expected]
    assert [sample.policy_version for sample in again] == [3] * len(again)
    assert other.version().endswith(".v3")
    assert engine.checksums() == agreed


def test_a_server_that_falls_silent_is_given_up_and_used_again_when_it_answers(
    started: Started, learner: PreTrainedModel
) -> None:
    """A stopped process keeps its connections open, as a machine that lost its network does."""
    engine = connect(started, heartbeat_s=0.2, heartbeat_timeout_s=1, retry_for_s=60)
    engine.load_weights(iter(perturbed(learner, 6)), 1)
    sampling = SamplingConfig(max_tokens=48, stop_token_ids=[])
    wanted, made = requests(started.tokenizer, samples=4), []
    thread = threading.Thread(target=lambda: made.extend(engine.generate(wanted, sampling)))
    thread.start()
    time.sleep(0.5)
    started.process.send_signal(signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 30
        while engine.states() != {started.url: "down"}:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        started.process.send_signal(signal.SIGCONT)
    thread.join(timeout=60)
    assert [(sample.prompt.id, sample.index, sample.seed) for sample in made] == [
        (request.prompt.id, request.index, request.seed) for request in wanted
    ]
    assert all(len(sample.completion_ids) == 48 for sample in made)
    engine.close()


def test_a_second_trainer_does_not_learn_from_the_first_ones_weights(started: Started) -> None:
    other = RolloutServer(started.url, push_timeout_s=60, probe_timeout_s=10)
    other.set_version("abc.1.v5")
    engine = connect(started)
    with pytest.raises(EngineError, match=r"holds weights 'abc\.1\.v5', not 'default'"):
        engine.generate(requests(started.tokenizer), GREEDY)
    engine.close()


def test_bad_weights_and_bad_settings_are_told_at_once(
    started: Started, engine: ServerEngine, learner: PreTrainedModel
) -> None:
    other = RolloutServer(started.url, push_timeout_s=60, probe_timeout_s=10)
    weights = perturbed(learner, 5)
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"weights of version 1 were refused.*model\.norm\.weight"):
        engine.load_weights(((name, weight) for name, weight in weights if name != "model.norm.weight"), 1)
    assert time.monotonic() - begun < 5 and other.version() == INCOMPLETE
    with pytest.raises(EngineError, match="a weight update broke off"):
        engine.generate(requests(started.tokenizer), GREEDY)
    engine.load_weights(iter(weights), 2)
    assert engine.generate(requests(started.tokenizer), GREEDY)[0].policy_version == 2
    with pytest.raises(ValueError, match=r"chat:0.*max_tokens 250.*max_model_len 256"):
        engine.generate(requests(started.tokenizer), SamplingConfig(max_tokens=250))
    beyond = Request(Prompt(id="bad", token_ids=(1, 10**6), text=""), 0, 1)
    with pytest.raises(EngineError, match=r"generate: refused with HTTP 4.*1000000"):
        engine.generate([beyond], GREEDY)
    engine.load_weights(((n, w * float("nan") if n == "model.norm.weight" else w) for n, w in weights), 3)
    with pytest.raises(EngineError, match=r"chat:0/0.*not finite.*version 3"):
        engine.generate(requests(started.tokenizer), GREEDY)
    with pytest.raises(ValueError, match=r"computes in float32 and engine.dtype says bfloat16"):
        ServerEngine(engine.config, dtype=torch.bfloat16, tokenizer=started.tokenizer, longest_sequence=256)
    with pytest.raises(ValueError, match=r"holds 256 tokens.*start it with --max-model-len 300"):
        ServerEngine(engine.config, dtype=torch.float32, tokenizer=started.tokenizer, longest_sequence=300)
