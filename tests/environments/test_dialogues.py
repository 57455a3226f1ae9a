"""Sessions turn by turn: ids are what the template gives, nothing is tokenised twice, chance is a function of seeds."""

from dataclasses import replace

import pytest
import torch

from rlhf.config.environments import CallableEnvironmentConfig, NumberGuessingEnvironmentConfig
from rlhf.config.model import ModelConfig
from rlhf.config.rollouts import SamplingConfig, TransformersEngineConfig
from rlhf.data.errors import DataError
from rlhf.data.seeds import derive_seed
from rlhf.data.sources import load_prompts
from rlhf.data.types import Prompt
from rlhf.environments.build import build_environment
from rlhf.environments.protocol import EnvironmentFailure, Reply
from rlhf.models.loading import load_tokenizer
from rlhf.rollouts.chat_turns import ChatTurns
from rlhf.rollouts.dialogues import Dialogues
from rlhf.rollouts.engine import Request
from rlhf.rollouts.requests import make_requests
from rlhf.rollouts.transformers_engine import TransformersEngine
from tests.environments.sessions import Echo, Failing, Scripted, Silent, messages_of
from tests.tiny_runs import save_tiny_model, tiny_config

SAMPLING = SamplingConfig(samples_per_prompt=2, max_tokens=6)
SETTINGS = NumberGuessingEnvironmentConfig(turns=4)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(path="embedded:smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def prompts(tokenizer):
    config = tiny_config("x", data={"type": "number_guessing", "numbers": 8}, environment={"type": "number_guessing"},
                         rewards={"functions": [{"type": "environment"}]})
    source = load_prompts(config.data, tokenizer, seed=0)
    return [source[index] for index in range(3)]


def test_ids_are_those_of_the_template(tokenizer, prompts):
    """What the model saw, turn by turn, is the template's rendering of the conversation, id by id."""
    engine = Scripted(tokenizer, lambda request: "three" if request.index else "seven")
    dialogues = Dialogues(SETTINGS, tokenizer, Echo())
    for sample in dialogues.play(engine, make_requests(prompts, 2, 0, 1), SAMPLING):
        said = "three" if sample.index else "seven"
        chat = list(sample.prompt.text)
        for turn in range(4):
            chat += [{"role": "assistant", "content": said}, {"role": "user", "content": f"turn {turn}"}]
        whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert [*sample.prompt.token_ids, *sample.completion_ids] == whole
        assert sample.messages == (said, "turn 0", said, "turn 1", said, "turn 2", said, "turn 3")
        assert sample.text == "\n".join([said] * 4)
        assert sample.turn_rewards == (1.0,) * 4 and sample.finish_reason == "length"
        assert tokenizer.decode(sample.own(sample.completion_ids)) == f"{said}<|im_end|>" * 4
        assert set(sample.own(sample.logps)) == set(sample.logps) - {0.0}
    # every turn's prompt is the ids of all before it, and may use what is cached of them
    assert engine.continued == [False, True, True, True]
    assert all(len(call) == 6 for call in engine.calls)


def test_a_turn_that_was_cut_is_ended_by_the_environment(tokenizer, prompts):
    engine = Scripted(tokenizer, lambda request: "three and...")
    (sample,) = Dialogues(SETTINGS, tokenizer, Echo()).play(engine, make_requests(prompts[:1], 1, 0, 1), SAMPLING)
    own = len(tokenizer("three and", add_special_tokens=False)["input_ids"])
    assert [mine for mine, _ in sample.turns] == [own] * 4
    assert sample.completion_ids[own] == tokenizer.eos_token_id and sample.logps[own] == 0
    said = [text for role, text in messages_of(tokenizer.decode(sample.completion_ids)) if role == "user"]
    assert said == [f"turn {turn}" for turn in range(4)]


def test_a_session_that_ends(tokenizer, prompts):
    """The last text of an ended session is shown to people and not to the model."""

    class Ends(Echo):
        def answer(self, state, text):
            reply = super().answer(state, text)
            return replace(reply, done="stop" in text)

    start = len(prompts[0].token_ids)
    engine = Scripted(tokenizer, lambda r: "stop" if r.index and len(r.prompt.token_ids) > start else "go")
    samples = Dialogues(SETTINGS, tokenizer, Ends()).play(engine, make_requests(prompts[:1], 2, 0, 1), SAMPLING)
    goes_on, ended = samples
    assert goes_on.finish_reason == "length" and len(goes_on.turns) == 4 and goes_on.turns[-1][1] > 0
    assert ended.finish_reason == "stop" and len(ended.turns) == 2 and ended.turns[-1][1] == 0
    assert ended.messages[-1] == "turn 1"
    assert [len(call) for call in engine.calls] == [2, 2, 1, 1]


def test_seeds_of_turns(tokenizer, prompts):
    engine = Scripted(tokenizer, lambda request: "one")
    requests = make_requests(prompts, 2, 7, 3)
    Dialogues(SETTINGS, tokenizer, Echo()).play(engine, requests, SAMPLING)
    for turn, call in enumerate(engine.calls):
        assert [request.seed for request in call] == [derive_seed(request.seed, "turn", turn) for request in requests]
    assert len({request.seed for call in engine.calls for request in call}) == 4 * 6


@pytest.mark.slow
def test_the_same_sessions_in_any_company(tokenizer, prompts, tmp_path):
    """A session is a function of its request: alone, among others and in another order."""
    path = save_tiny_model(tmp_path / "tiny")
    engine = TransformersEngine(path, config=TransformersEngineConfig(), tokenizer=tokenizer, dtype=torch.float32)
    dialogues = Dialogues(NumberGuessingEnvironmentConfig(turns=3), tokenizer)
    requests = make_requests(prompts, 2, 0, 1)
    together = dialogues.play(engine, requests, SAMPLING)
    assert dialogues.play(engine, requests, SAMPLING) == together
    backwards = dialogues.play(engine, requests[::-1], SAMPLING)[::-1]
    alone = [dialogues.play(engine, [request], SAMPLING)[0] for request in requests]
    for one, other, third in zip(together, backwards, alone, strict=True):
        assert one.completion_ids == other.completion_ids == third.completion_ids
        assert one.turns == third.turns and one.turn_rewards == third.turn_rewards
        assert one.logps == pytest.approx(third.logps, abs=1e-4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Failing(), r"sample number_guessing-8x1-train:0/0, turn 2: the environment's answer raised ZeroDivisionError"),
        (Silent(), r"train:0/0, turn 0: the environment answered with NoneType, and must with a Reply"),
    ],
)
def test_errors_of_an_environment_name_the_sample(tokenizer, prompts, environment, message):
    dialogues = Dialogues(SETTINGS, tokenizer, environment)
    with pytest.raises(EnvironmentFailure, match=message):
        dialogues.play(Scripted(tokenizer, lambda request: "one"), make_requests(prompts, 2, 0, 1), SAMPLING)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": float("nan")}, "reward is nan, and must be a finite number"),
        ({"reward": True}, "reward is True"),
        ({"text": 3}, "text is of type int"),
        ({"text": " "}, "text is empty and done is false"),
    ],
)
def test_replies_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        Reply(**({"text": "go on"} | values))


def test_long_answers_and_plain_prompts(tokenizer, prompts):
    short = Dialogues(NumberGuessingEnvironmentConfig(turns=2, max_reply_tokens=3), tokenizer, Echo())
    engine = Scripted(tokenizer, lambda request: "one")
    with pytest.raises(EnvironmentFailure, match=r"turn 0: .* environment.max_reply_tokens is 3: raise it"):
        short.play(engine, make_requests(prompts, 1, 0, 1), SAMPLING)
    plain = Request(Prompt("p:0", (1, 2), "plain"), 0, 0)
    with pytest.raises(DataError, match=r"set data\.as_chat to true"):
        Dialogues(SETTINGS, tokenizer, Echo()).play(engine, [plain], SAMPLING)


def test_tokenizers_without_dialogues(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        ChatTurns(bare)
    bare.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(DataError, match="changes or repeats what the model wrote"):
        ChatTurns(bare)
    bare.chat_template = "{{ raise_exception('one question only') }}"
    with pytest.raises(DataError, match="does not accept a dialogue"):
        ChatTurns(bare)


def test_one_s_own_environment_by_name(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.environments.sessions import Echo as make\nnothing = dict\ndef broken(): raise OSError(3)"
    )
    assert isinstance(build_environment(CallableEnvironmentConfig(path=f"{file}:make")), Echo)
    with pytest.raises(EnvironmentFailure, match="makes a dict without start and answer"):
        build_environment(CallableEnvironmentConfig(path=f"{file}:nothing"))
    with pytest.raises(EnvironmentFailure, match="making it raised OSError"):
        build_environment(CallableEnvironmentConfig(path=f"{file}:broken"))
