"""Rewards of samples: weighted sums, TRL's calling convention, failures that name function and sample, metrics."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.rewards import RewardsConfig
from rlhf.data.types import Sample
from rlhf.rewards import RewardError, RewardScorer
from rlhf.rewards.callables import call_all, load_function

FUNCTIONS = """
import asyncio, math, pathlib, time
calls = []
def seen(prompts, completions, **kwargs):
    calls.append({"prompts": prompts, "completions": completions, **kwargs})
    return [float(len(i)) for i in kwargs["completion_ids"]]
def narrow(completions):
    return [None if "skip" in c else 2 for c in completions]
def conversational(prompts, completions, answer, **kwargs):
    return [float(c[0]["content"] == a and c[0]["role"] == "assistant" and p[-1]["role"] == "user")
            for p, c, a in zip(prompts, completions, answer)]
async def until_three_wait():
    waiting = pathlib.Path(__file__).with_suffix(".waiting")  # the file is a module of its own for each function
    with waiting.open("a") as file:
        file.write("x")
    while len(waiting.read_text()) < 3:
        await asyncio.sleep(0.01)
async def wait_one(completions, **kwargs):
    await until_three_wait()
    return [1.0] * len(completions)
async def wait_two(completions, **kwargs):
    await until_three_wait()
    return [2.0] * len(completions)
async def fails_later(completions, **kwargs):
    await asyncio.sleep(0.01)
    if "bad" in completions:
        raise OSError("no connection")
    return [1.0] * len(completions)
def raises(completions, **kwargs):
    return [1 / (c != "bad") for c in completions]
def only_together(completions, **kwargs):
    if len(completions) > 1:
        raise RuntimeError("too many")
    return [0.0]
def short(completions, **kwargs): return [1.0]
def nan(completions, **kwargs): return [math.nan if c == "bad" else 1.0 for c in completions]
def word(completions, **kwargs): return ["high" if c == "bad" else 1.0 for c in completions]
def single(completions, **kwargs): return 1.0
def array(completions, **kwargs):
    import numpy
    return numpy.arange(len(completions)) / 2
def truth(completions, **kwargs): return [c == "bad" for c in completions]
def hangs(completions, **kwargs): time.sleep(30)
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    file = tmp_path / "my_rewards.py"
    file.write_text(FUNCTIONS, encoding="utf-8")
    return file


Score = Callable[..., list[Sample]]


@pytest.fixture
def score(reward_file: Path) -> Score:
    """Score samples with functions of the file, by name."""

    def run(names: list[str], samples: list[Sample], timeout_s: float = 60.0, **settings: Any) -> list[Sample]:
        functions = [{"type": "callable", "path": f"{reward_file}:{name}", "timeout_s": timeout_s} for name in names]
        with RewardScorer(RewardsConfig(functions=functions, **settings)) as scorer:
            return scorer.score(samples)

    return run


def test_parts_are_named_and_summed_by_weight(make_sample: Any) -> None:
    config = RewardsConfig(
        functions=[
            {"type": "correctness", "weight": 2.0},
            {"type": "format", "weight": 0.5},
            {"type": "format", "shape": "number_only", "weight": -1.0},
            {"type": "length", "target_tokens": 20, "weight": 0.1},
            {"type": "repetition", "ngram": 1},
            {"type": "soft_overlong", "max_tokens": 10, "buffer_tokens": 4},
        ]
    )
    with RewardScorer(config) as scorer:
        right, wrong = scorer.score([make_sample(r"\boxed{5}"), make_sample("4", index=1)])
    assert right.rewards == {
        "correctness": 1.0,
        "format": 1.0,
        "format_2": 0.0,
        "length": -9 / 20,
        "repetition": 0.0,
        "soft_overlong": -3 / 4,
    }
    assert right.reward == pytest.approx(2.0 + 0.5 - 0.045 - 0.75, abs=1e-12)
    assert wrong.rewards["format_2"] == 1.0
    assert wrong.reward == pytest.approx(-1.0 - 0.1 / 20, abs=1e-12)
    assert (right.verdict.outcome, wrong.verdict.outcome) == ("right", "wrong")
    assert right.completion_ids == make_sample(r"\boxed{5}").completion_ids


def test_each_prompt_is_judged_by_its_own_scorer(make_sample: Any) -> None:
    samples = [
        make_sample(r"\boxed{\frac{1}{2}}", answer="0.5"),
        make_sample("3 + 4 = 7", answer="7", scorer="arithmetic"),
        make_sample("(8 - 2) * 4", columns={"numbers": [8, 2, 4], "target": 24, "answer": "?"}, scorer="countdown"),
        make_sample("5", answer=r"\int x"),
    ]
    with RewardScorer(RewardsConfig()) as scorer:
        scored = scorer.score(samples)
        assert scorer.score([]) == []
    assert [s.verdict.outcome for s in scored] == ["right", "right", "right", "ungradable"]
    assert [s.reward for s in scored] == [1.0, 1.0, 1.0, 0.0]


def test_trl_convention_with_strings(reward_file: Path, make_sample: Any) -> None:
    seen = load_function(f"{reward_file}:seen")
    samples = [
        make_sample("ab", columns={"answer": "5", "level": 1}),
        make_sample("c", columns={"answer": "6"}, index=1),
    ]
    assert call_all({"seen": seen}, samples, {"seen": 60.0}) == {"seen": [2.0, 1.0]}
    assert seen.__globals__["calls"] == [
        {
            "prompts": ["What is 2 + 3?"] * 2,
            "completions": ["ab", "c"],
            "completion_ids": [[97, 98], [99]],
            "answer": ["5", "6"],
            "level": [1, None],
        }
    ]


def test_trl_convention_with_messages(score: Score, make_sample: Any) -> None:
    samples = [make_sample("5", messages=True), make_sample("4", messages=True)]
    assert [s.reward for s in score(["conversational"], samples)] == [1.0, 0.0]


def test_none_does_not_count_and_narrow_signatures_get_what_they_take(score: Score, make_sample: Any) -> None:
    scored = score(["narrow", "seen"], [make_sample("skip"), make_sample("ab")])
    assert [s.rewards for s in scored] == [{"narrow": None, "seen": 4.0}, {"narrow": 2.0, "seen": 2.0}]
    assert [s.reward for s in scored] == [4.0, 4.0]
    assert score(["narrow"], [make_sample("skip")])[0].reward == 0.0


def test_asynchronous_functions_run_at_the_same_time(score: Score, make_sample: Any) -> None:
    """Each returns only when all three wait: one after the other they would reach their time limit."""
    scored = score(["wait_one", "wait_two", "wait_one"], [make_sample("a"), make_sample("b")])
    assert [s.rewards for s in scored] == [{"wait_one": 1.0, "wait_two": 2.0, "wait_one_2": 1.0}] * 2


def test_arrays_and_truth_values_are_numbers(score: Score, make_sample: Any) -> None:
    scored = score(["array", "truth"], [make_sample("bad"), make_sample("good")])
    assert [s.rewards for s in scored] == [{"array": 0.0, "truth": 1.0}, {"array": 0.5, "truth": 0.0}]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"reward function raises raised ZeroDivisionError: .*\(sample 'sums:7/1'\)"),
        ("fails_later", r"fails_later raised OSError: no connection \(sample 'sums:7/1'\)"),
        ("nan", r"reward function nan returned nan for sample 'sums:7/1'; it must be a finite number or None"),
        ("word", r"word returned 'high' for sample 'sums:7/1'"),
        ("short", r"short returned 1 values for 3 samples \(a batch of 3 samples, 'sums:7/0' to 'sums:7/2'\)"),
        ("single", r"single returned a float for 1 samples"),
        ("only_together", r"only_together raised RuntimeError: too many \(a batch of 3 samples"),
    ],
)
def test_a_failure_names_function_and_sample(score: Score, make_sample: Any, name: str, message: str) -> None:
    samples = [make_sample(text, index=i) for i, text in enumerate(["good", "bad", "good"])]
    with pytest.raises(RewardError, match=message):
        score([name], samples)


def test_the_cause_is_kept(score: Score, make_sample: Any) -> None:
    with pytest.raises(RewardError) as caught:
        score(["raises"], [make_sample("bad")])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_failures_can_be_ungradable_instead(score: Score, make_sample: Any) -> None:
    samples = [make_sample(text, index=i) for i, text in enumerate(["good", "bad", "good"])]
    scored = score(["raises", "seen"], samples, on_error="ungradable")
    assert [s.rewards["raises"] for s in scored] == [1.0, None, 1.0]
    assert [s.reward for s in scored] == [5.0, 3.0, 5.0]
    assert [s.verdict for s in scored[::2]] == [None, None]
    assert scored[1].verdict.outcome == "ungradable"
    assert "raises raised ZeroDivisionError" in scored[1].verdict.reason


def test_a_hanging_function_is_an_error(score: Score, make_sample: Any) -> None:
    started = time.perf_counter()
    with pytest.raises(RewardError, match=r"hangs has not returned after 0.4 s for 2 samples"):
        score(["hangs"], [make_sample("a"), make_sample("b")], timeout_s=0.4)
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.rewards:f", "no module 'no_such_package.rewards'"),
        ("no/such/file.py:f", "there is no file"),
        ("rlhf.rewards.functions:no_such_function", "has no function 'no_such_function'"),
    ],
)
def test_a_function_that_is_not_there_is_refused_at_once(path: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        RewardScorer(RewardsConfig(functions=[{"type": "callable", "path": path}]))


def test_modules_of_the_working_directory_are_found(
    reward_file: Path, monkeypatch: pytest.MonkeyPatch, make_sample: Any
) -> None:
    monkeypatch.chdir(reward_file.parent)
    with RewardScorer(RewardsConfig(functions=[{"type": "callable", "path": "my_rewards:narrow"}])) as scorer:
        assert scorer.score([make_sample("x")])[0].reward == 2.0
