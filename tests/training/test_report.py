import html
import math
import re
from html.parser import HTMLParser

import pytest
import yaml

from rlhf.config.grpo import GRPOConfig
from rlhf.data.types import Prompt, Sample, Verdict
from rlhf.training.environment import describe_environment
from rlhf.training.report.__main__ import main
from rlhf.training.report.run_report import SAMPLES_PER_GROUP, checks, headline, pick_samples, write_report
from rlhf.training.run_folder import RunFolder, sample_record
from rlhf.training.statistics import wilson_interval

HOSTILE = "</pre><script>alert('owned')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \ud800"


def evaluation(step, right, n=500):
    low, high = wilson_interval(right, n)
    return {"step": step, "name": "held_out", "right": right, "wrong": n - right, "ungradable": 0, "n": n,
            "accuracy": right / n, "low": low, "high": high, "mean_tokens": 9.5, "truncated_share": 0.02}


def sample(index, outcome, text, reward):
    prompt = Prompt(f"p:{index}", (1,), [{"role": "user", "content": f"question {HOSTILE}"}])
    verdict = Verdict(outcome, text if outcome == "right" else None, f"because {HOSTILE}")
    return Sample(prompt, 0, (5,), (0.0,), "stop", 0, 0, text, {"correctness": reward}, reward, verdict)


@pytest.fixture
def run(tmp_path):
    config = GRPOConfig(model={"path": "my/checkpoint"}, data={"type": "arithmetic"}, batch={"steps": 20})
    run = RunFolder(tmp_path / "run")
    run.create(yaml.safe_dump(config.model_dump(mode="json")), resume=False)
    run.write_environment(describe_environment())
    run.write_memory_plan([("weights", 2**30), ("engine", 2**29)], measured_peak_bytes=2**30)
    run.append_evaluation(0, evaluation(0, 150))
    for step in range(1, 21):
        run.append_metrics(step, {
            "reward/mean": 0.3 + 0.02 * step, "policy/engine_ratio_mean": 1.0 + 0.012 * (step == 7),
            "loss": math.nan if step == 4 else 0.0, "guards/skipped_updates": float(step == 4),
            "grading/ungradable_share": 0.05, "grading/timeouts": 0.0, "time/generate": 1.0, "time/step": 3.0,
            "speed/tokens_per_second": 321.0})
        run.append_samples(step, [sample(1, "right", "7", 1.0), sample(2, "ungradable", HOSTILE, 0.0)])
    run.append_evaluation(20, evaluation(20, 400))
    return run


class Tags(HTMLParser):
    VOID = {"meta", "input", "br", "img", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_has_the_numbers_of_the_run(run):
    page = write_report(run).read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)))
    for expected in (
        "30.0 % → 80.0 %", "30.0 % [26.1, 34.2]", "80.0 % [76.3, 83.3]", "+50.0 points", "intervals do not overlap",
        "20 of 20", "1 min 00 s", "321", "my/checkpoint", "not finite: loss (first at step 4)",
        "optimizer steps skipped for a non-finite loss or gradient: 1", "mean ratio within 0.012 of 1",
        "ungradable completions: 5.0 % on average", "0.330 → 0.690", "1.50 GiB", "measured peak",
        "samples_per_prompt: 8",
    ):
        assert expected in text, expected


def test_hostile_text_stays_text_and_nothing_is_fetched(run):
    page = write_report(run).read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"script", "img", "link", "iframe", "object"}
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for name, value in tags.attributes if name.endswith("href"))
    outside = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;" in page and "{{ 7 * 7 }}" in page


def test_partial_runs_have_a_report(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(run)
    run.create("", resume=True)
    assert "no step was recorded" in write_report(run).read_text()
    run.append_metrics(1, {"reward/mean": 0.125})
    page = write_report(run).read_text()
    assert "0.125" in page and "No held-out evaluation was made" in page and "Completions" not in page
    run.append_evaluation(0, evaluation(0, 150))
    run.metrics.write_bytes(run.metrics.read_bytes() + b'{"step": 2, "rew')
    page = write_report(run).read_text()
    assert "30.0 %" in page and "no change can be stated" in page


def test_overlap_is_said(run):
    assert headline([]) is None
    first = headline([evaluation(0, 150), evaluation(10, 165)])
    assert first["overlap"] and first["change"] == pytest.approx(0.03)
    assert first["change_low"] < 0 < first["change_high"]
    run.truncate_after(19)
    run.append_evaluation(19, evaluation(19, 165))
    assert "The two intervals overlap" in write_report(run).read_text()


def test_missing_and_repeated_steps_are_found():
    def failed(steps):
        return [check.text for check in checks([{"step": s} for s in steps], {}) if not check.passed]

    assert failed([1, 2, 3]) == []
    assert failed([1, 2, 4, 4]) == ["steps jump from 2 to 4, 4 to 4"]


def test_samples_are_picked_by_why_they_are_worth_reading():
    records = [sample_record(step, sample(step * 10 + i, "right" if step > 3 else "wrong", str(i), step + i / 10))
               for step in range(1, 6) for i in range(9)]
    records[4] |= {"reward": "nan", "outcome": "ungradable"}
    groups = pick_samples(iter(records))
    ids = {name: [record["prompt_id"] for record in group] for name, group in groups.items()}
    assert ids["First step"] == [f"p:{10 + i}" for i in range(SAMPLES_PER_GROUP)]
    assert ids["Last step"] == [f"p:{50 + i}" for i in range(SAMPLES_PER_GROUP)]
    assert ids["Highest reward"] == [f"p:{58 - i}" for i in range(SAMPLES_PER_GROUP)]
    assert ids["Lowest reward"] == [f"p:{i}" for i in (10, 11, 12, 13, 15, 16)]
    assert ids["Ungradable"] == ["p:14"]
    assert pick_samples([]) == {}


def test_the_command_rebuilds_the_report(run, capsys):
    assert main([str(run.path)]) == 0
    assert capsys.readouterr().out.strip() == str(run.report)
    assert "80.0 %" in run.report.read_text()
    assert main([str(run.path / "nowhere")]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err


def test_a_paired_change_is_taken_as_it_is_recorded() -> None:
    before, after = evaluation(0, 10, 40), evaluation(5, 20, 40)
    after["change"] = {"value": 0.25, "low": 0.2, "high": 0.3, "p_value": 0.01}
    found = headline([before, after])
    assert (found["change"], found["change_low"], found["change_high"]) == (0.25, 0.2, 0.3)
