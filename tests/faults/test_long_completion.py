"""A completion of a megabyte: scored, recorded and reported in seconds, and not called right."""

import time

import pytest

from rlhf.config.rewards import RewardsConfig
from rlhf.data.types import Prompt, Sample
from rlhf.rewards import RewardScorer
from rlhf.training.metrics import rollout_metrics
from rlhf.training.report.run_report import write_report
from rlhf.training.run_folder import RunFolder

MEGABYTE = 1_000_000
TEXTS = {
    "digits": "7" * MEGABYTE,
    "braces": r"\boxed{" * (MEGABYTE // 7),
    "html": "<script>alert(1)</script>" * (MEGABYTE // 25),
    "words": "so the answer is " * (MEGABYTE // 17),
}
FUNCTIONS = [
    {"type": "correctness"},
    {"type": "format", "shape": "think_answer"},
    {"type": "length", "target_tokens": 256},
    {"type": "repetition", "ngram": 4},
    {"type": "soft_overlong", "max_tokens": 1000, "buffer_tokens": 100},
]


@pytest.mark.parametrize("scorer_name", ["math", "arithmetic", "countdown"])
def test_it_ends_as_promised(tmp_path, scorer_name):
    columns = {"answer": "12", "numbers": [3, 4, 5], "target": 12}
    prompt = Prompt("p:0", (1, 2), "What is 7 + 5?", columns, scorer_name)
    ids = tuple(range(250_000))
    samples = [
        Sample(prompt, index, ids, (-1.0,) * len(ids), "length", 0, index, text=text)
        for index, text in enumerate(TEXTS.values())
    ]
    started = time.monotonic()
    with RewardScorer(RewardsConfig(functions=FUNCTIONS, pool={"timeout_s": 5.0})) as scorer:
        scored = scorer.score(samples)
    assert all(s.verdict.outcome != "right" and s.rewards["correctness"] == 0.0 for s in scored)
    assert all(s.rewards["soft_overlong"] == s.rewards["length"] == -1.0 for s in scored)
    run = RunFolder(tmp_path / "run")
    run.create("", resume=False)
    run.append_samples(1, scored)
    run.append_metrics(1, rollout_metrics(scored).result())
    report = write_report(run)
    assert [len(record["completion"]) for record in run.read_samples()] == [len(text) for text in TEXTS.values()]
    assert report.stat().st_size < 2 * MEGABYTE, "a person has to open it"
    assert "<script>" not in report.read_text(encoding="utf-8")
    assert time.monotonic() - started < 60
