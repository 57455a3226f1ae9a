"""Completions made to hang, crash or run something: each ends in well under a second, and nothing runs."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf.rewards import grade
from tests.cpu_time import cpu_seconds

PAYLOADS = [
    'open("graderpwned","w")',
    '__import__("os").system("touch graderpwned")',
    '[open("graderpwned","w") for _ in range(1)]',
    '(lambda: open("graderpwned","w"))()',
    "\\pi if open('graderpwned','w') else 0",
    "5+0*len(str(open('graderpwned','w')))",
    "{__import__('os').system('touch graderpwned')}",
    "\\input{|touch graderpwned}",
]
SIZES = {
    "power tower": r"\boxed{9**9**9**9}",
    "power tower in TeX": r"\boxed{9^{9^{9^{9}}}}",
    "huge power": r"\boxed{2^{2^{40}}}",
    "tiny power": r"\boxed{10^{-10^{10}}}",
    "nested factorials": r"\boxed{((100!)!)!}",
    "huge binomial": r"\boxed{\binom{10^{9}}{5\cdot 10^{8}}}",
    "sine of a huge number": r"\boxed{\sin(10^{10^{9}})}",
    "exponential tower": r"\boxed{e^{e^{e^{e^{e}}}}}",
    "gamma of a huge number": r"\boxed{(10^{30}+0.5)!}",
    "long integer": r"\boxed{" + "9" * 100_000 + "}",
    "long decimal": r"\boxed{0." + "3" * 100_000 + "}",
    "scientific notation": r"\boxed{1e999999999}",
    "long sum": r"\boxed{1" + "+1" * 20_000 + "}",
    "long set": r"\boxed{\{" + "1," * 5_000 + r"5\}}",
    "many factors": r"\boxed{" + "(x+1)^{99}" * 390 + "}",
    "many factorials": r"\boxed{" + "+".join(["3000!"] * 600) + "}",
    "many sines": r"\boxed{" + "+".join(rf"\sin({i}x)" for i in range(250)) + "}",
    "nested roots": r"\boxed{" + r"\sqrt{2+" * 55 + "1" + "}" * 55 + "}",
    "deep groups": r"\boxed{" + "{" * 1500 + "5" + "}" * 1500 + "}",
    "deep powers": r"\boxed{" + "x^{" * 1000 + "1" + "}" * 1000 + "}",
    "deep parentheses": r"\boxed{x+" + "(" * 1900 + "5" + ")" * 1900 + "}",
    "many signs": r"\boxed{" + "-" * 3001 + "5}",
    "many plus-minus": r"\boxed{" + r"\pm 1 " * 500 + "}",
    "long word": r"\boxed{" + "a" * 100_000 + "}",
    "50,001 boxes": r"\boxed{4}" * 50_001,
    "unclosed boxes": r"\boxed{" * 100_000 + "5",
    "blanks in a box": r"\boxed{" + " " * 1_000_000 + "4}",
    "blanks around text": r"\boxed{4" + " x" * 400_000 + "}",
    "empty boxes": r"\boxed{}" * 50_000,
    "open braces": "{" * 250_000,
    "phrases": "The answer is " * 70_000,
    "phrase and blanks": "answer" + " " * 1_000_000 + "is",
    "think tags": "<think>" * 100_000 + "</think>" * 100_000,
    "dollars": "$" * 1_000_000 + "4",
    "digits": "7" * 1_000_000,
    "numbers with commas": "1," * 500_000 + "5",
    "minus signs": "-" * 1_000_000 + "4",
    "stars": "answer is " + "**" * 500_000,
    "hashes": "#" * 1_000_000,
    "new lines": "answer:" + "\n" * 1_000_000,
}


@pytest.mark.parametrize("name", SIZES)
def test_every_size_ends_within_a_second_and_is_not_right(name: str) -> None:
    grade(r"\boxed{\sqrt{2}}", r"\sqrt{3}")  # libraries are loaded once
    for gold in ("5", "x^2 + 1"):
        assert grade(SIZES[name], gold).outcome != "right"
        assert cpu_seconds(lambda text=SIZES[name], gold=gold: grade(text, gold)) < 1.0


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs(payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (payload, f"\\boxed{{{payload}}}", f"The answer is {payload}", f"<answer>{payload}</answer>"):
        for gold in ("6", r"\begin{pmatrix}1&2\end{pmatrix}", "1, 2"):
            assert grade(text, gold).outcome != "right"
    assert not (tmp_path / "graderpwned").exists()


def test_a_limit_is_ungradable_and_says_which() -> None:
    verdict = grade(r"\boxed{2^{2^{40}}}", "5")
    assert verdict.outcome == "ungradable"
    assert "32768 bits" in verdict.reason


def test_long_literals_are_compared_digit_by_digit() -> None:
    number = "9" * 100_000
    assert grade(f"\\boxed{{{number}}}", number).outcome == "right"
    assert grade(f"\\boxed{{{number[:-1]}8}}", number).outcome == "wrong"


@pytest.mark.parametrize(
    "text", [r"a " * 500_000 + r"\boxed{5}", r"\boxed{5} " + "a " * 500_000, "{" * 200_000 + r"\boxed{5}"]
)
def test_a_good_answer_in_a_megabyte_of_noise_is_right(text: str) -> None:
    assert grade(text, "5").outcome == "right"


def test_threads_and_asyncio() -> None:
    """No signal is used: the same verdicts from many threads at once and inside an event loop."""
    cases = [
        (rf"\boxed{{\sqrt{{{n}}} + \sqrt{{{n + 1}}}}}", rf"\sqrt{{{n + 1}}}+\sqrt{{{n + k}}}")
        for n in range(2, 40)
        for k in (0, 1)
    ]
    expected = ["right" if i % 2 == 0 else "wrong" for i in range(len(cases))]

    async def judge_all() -> list[str]:
        return [v.outcome for v in await asyncio.gather(*(asyncio.to_thread(grade, *case) for case in cases))]

    assert asyncio.run(judge_all()) == expected
    with ThreadPoolExecutor(8) as threads:
        assert [v.outcome for v in threads.map(lambda case: grade(*case), cases)] == expected


def test_a_deep_stack_is_no_obstacle() -> None:
    """Depth is limited by the grader, not by what is left of Python's stack in a small thread."""
    outcomes: list[str] = []
    previous = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(
            target=lambda: outcomes.append(grade(r"\boxed{" + r"\sqrt{1+" * 15 + "1" + "}" * 15 + "}", "5").outcome)
        )
        thread.start()
        thread.join()
    finally:
        threading.stack_size(previous)
    assert outcomes == ["wrong"]
    assert sys.getrecursionlimit() >= 1000
