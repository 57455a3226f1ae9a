"""`python -m eval run` on a tiny model: files, figures, refusals, and a killed run that gives the same samples."""

import json
import signal
import time
from pathlib import Path

import pytest

from eval.__main__ import main
from tests.processes import output_of, run_on_two_ranks, start
from tests.tiny_runs import save_tiny_model

QUESTIONS, SAMPLES = 12, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def arguments(model: str, output: Path, **changes: object) -> list[str]:
    settings = {
        "model": model, "benchmarks": "arithmetic,word_problems", "engine": "transformers", "samples": SAMPLES,
        "temperature": 1.0, "max_tokens": 8, "limit": QUESTIONS, "samples_per_batch": 8, "output": output,
    } | changes  # fmt: skip
    return ["run", *(part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value)))]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_samples(model, tmp_path):
    assert main(arguments(model, tmp_path / "whole")) == 0
    process = start("-m", "eval", *arguments(model, tmp_path / "killed"))
    parts = tmp_path / "killed" / "parts"
    while process.poll() is None and not (parts.is_dir() and list(parts.glob("*.jsonl"))):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert not (tmp_path / "killed" / "samples.jsonl").exists(), output
    assert main(arguments(model, tmp_path / "killed")) == 0
    whole, killed = (tmp_path / name / "samples.jsonl" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert len(lines(tmp_path / "whole")) == 2 * QUESTIONS * SAMPLES
    assert len({(a["benchmark"], a["id"], a["sample"]) for a in lines(tmp_path / "whole")}) == 2 * QUESTIONS * SAMPLES
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    counts = summary["benchmarks"]["arithmetic"]["counts"]
    assert counts["questions"] == QUESTIONS and counts["samples"] == QUESTIONS * SAMPLES
    estimates = summary["benchmarks"]["arithmetic"]["estimates"]
    assert {"avg@2", "pass@1", "pass@2", "maj@1", "maj@2", "truncated"} <= estimates.keys()
    assert all(0 <= e["low"] <= e["value"] <= e["high"] for e in estimates.values())
    assert "| arithmetic | 12 | avg@2 |" in (tmp_path / "whole" / "table.md").read_text()


@pytest.mark.slow
def test_other_settings_do_not_continue_a_run_and_it_compares_with_itself(model, tmp_path, capsys):
    changes = {"benchmarks": "arithmetic", "samples": 1, "temperature": 0.0}
    assert main(arguments(model, tmp_path / "a", **changes)) == 0
    capsys.readouterr()
    assert main(arguments(model, tmp_path / "a", **changes, seed=1)) == 1
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "gained: 0" in told and "lost: 0" in told and "McNemar" in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 4, "temperature": 0.0}, "set temperature above 0"),
        ({"benchmarks": "gsm8l"}, "there is no benchmark 'gsm8l'"),
        ({"template": "qwen"}, "unknown template 'qwen'"),
        ({"max_tokes": 8}, "max_tokes"),
    ],
)
def test_what_cannot_be_run_is_said(model, tmp_path, capsys, changes, said):
    assert main(arguments(model, tmp_path / "out", **changes)) in (1, 2)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_share_the_batches_and_give_the_samples_of_one(model, tmp_path):
    changes = {"benchmarks": "arithmetic", "samples_per_batch": 4}
    assert main(arguments(model, tmp_path / "one", **changes)) == 0
    script = tmp_path / "shared.py"
    script.write_text("import sys\nfrom eval.__main__ import main\nsys.exit(main(sys.argv[1:]))\n")
    run_on_two_ranks(script, *arguments(model, tmp_path / "two", **changes))
    assert (tmp_path / "one" / "samples.jsonl").read_bytes() == (tmp_path / "two" / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_ranks_that_would_each_evaluate_everything_are_refused(model, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eval"]
    output = output_of(start(*launcher, *arguments(model, tmp_path / "two"), CUDA_VISIBLE_DEVICES=""), status=1)
    assert "2 processes were launched but Accelerate sees 1" in output
