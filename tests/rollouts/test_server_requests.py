"""Which server is asked what, and which answers are taken, without a server."""

import copy
import math

import pytest

from rlhf.config.rollouts import SamplingConfig
from rlhf.rollouts.engine import EngineError
from rlhf.rollouts.server_requests import UselessAnswer, Wanted, deal, read_answer, request_body, request_id
from tests.rollouts.conftest import prompts, requests

SAMPLING = SamplingConfig(max_tokens=3)


def wanted(groups: int, samples: int) -> list[Wanted]:
    made = requests(prompts([3] * groups), samples)
    return [Wanted(place, request) for place, request in enumerate(made)]


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_all_samples_of_a_prompt_go_to_one_server_and_prompts_in_turn(servers, first):
    names = [f"server {number}" for number in range(servers)]
    dealt = deal(wanted(7, 4), names, first)
    assert sorted(each.place for part in dealt.values() for each in part) == list(range(28))
    owners = {each.request.prompt.id: name for name, part in dealt.items() for each in part}
    assert [owners[f"test:{number}"] for number in range(7)] == [names[(first + n) % servers] for n in range(7)]
    for name, part in dealt.items():
        assert all(owners[each.request.prompt.id] == name for each in part)
    assert max(map(len, dealt.values())) - min(map(len, dealt.values())) <= 4


def test_a_server_without_work_is_not_asked():
    assert list(deal(wanted(1, 4), ["a", "b"], first=1)) == ["b"]


def test_ids_differ_by_call_place_and_attempt():
    each, other = wanted(2, 1)
    again = Wanted(each.place, each.request, 1)
    ids = [request_id("run.0.1", each), request_id("run.0.1", other), request_id("run.0.1", again)]
    assert len({*ids, request_id("run.1.1", each)}) == 4
    assert ids[0].endswith(":test:0/0")


@pytest.fixture
def case(tokenizer):
    """A request, its body, and vLLM's answer to it."""
    (each,) = wanted(1, 1)
    body = request_body("id", each.request, SAMPLING, [0])
    content = [{"token_id": token, "logprob": -0.5 * token} for token in (5, 9, 0)]
    choice = {
        "token_ids": [5, 9, 0], "logprobs": {"content": content}, "finish_reason": "stop",
        "weight_versions": [{"version": "run.1.v4", "start": 0, "end": 3}],
    }  # fmt: skip
    answer = {"request_id": "generate-tokens-id", "prompt_token_ids": body["token_ids"], "choices": [choice]}
    return each.request, body, answer


def read(case, tokenizer, identity="id", label="run.1.v4"):
    return read_answer(case[2], identity, case[0], label, 4, tokenizer, "http://a:1")


def test_an_answer_becomes_a_sample(case, tokenizer):
    sample = read(case, tokenizer)
    assert (sample.completion_ids, sample.logps, sample.finish_reason) == ((5, 9, 0), (-2.5, -4.5, 0.0), "stop")
    assert (sample.policy_version, sample.seed, sample.text) == (4, case[0].seed, "w5 w9")
    assert case[1]["sampling_params"]["seed"] == case[0].seed
    assert case[1]["sampling_params"]["stop_token_ids"] == [0] and case[1]["sampling_params"]["ignore_eos"]


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        (["request_id"], "generate-tokens-other", EngineError, "asked for 'id', the answer is to 'other'"),
        (["prompt_token_ids"], [1], EngineError, "answered for another prompt"),
        (["choices"], [], EngineError, "lacks what training needs"),
        (["choices", 0, "logprobs"], None, EngineError, "lacks what training needs"),
        (["choices", 0, "token_ids"], [5, 9], EngineError, "log-probs of"),
        (["choices", 0, "weight_versions"], None, UselessAnswer, r"weights \[\], not with 'run.1.v4'"),
        (["choices", 0, "weight_versions", 0, "version"], "default", UselessAnswer, r"weights \['default'\]"),
        (["choices", 0, "finish_reason"], "abort", UselessAnswer, "broken off after 3 tokens"),
        (["choices", 0, "finish_reason"], "error", EngineError, "vLLM ended it with 'error'"),
        (["choices", 0, "logprobs", "content", 1, "logprob"], -9999.0, EngineError, "not finite"),
        (["choices", 0, "logprobs", "content", 1, "logprob"], math.nan, EngineError, "not finite"),
    ],
)
def test_an_answer_to_something_else_is_refused(case, tokenizer, path, value, error, message):
    answer = copy.deepcopy(case[2])
    target = answer
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(error, match=message):
        read((case[0], case[1], answer), tokenizer)


def test_a_completion_of_two_versions_is_refused(case, tokenizer):
    case[2]["choices"][0]["weight_versions"].append({"version": "run.2.v5", "start": 3, "end": 3})
    with pytest.raises(UselessAnswer):
        read(case, tokenizer)
