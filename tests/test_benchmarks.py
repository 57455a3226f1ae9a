"""The benchmark of a step against TRL: what both sides are given, and the arithmetic between measurement and table."""

# ruff: noqa: E402 - a benchmark is a script, and finds its neighbours in its own folder

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import step_time
from peers import ours_grpo, table, trl_grpo
from peers.records import RunRecord, StepRecord, different_prompts, phase_seconds, summarise
from peers.workloads import (
    REWARDS,
    WORKLOADS,
    Trial,
    dataset_rows,
    even_length_reward,
    last_integer_reward,
    prompts_digest,
    question,
    read_rows,
)

from rlhf.config.extras import from_checkout
from rlhf.config.grpo import GRPOConfig

BATCH_S = Trial(WORKLOADS["batch-s"], steps=3, seed=5, precision="float32")


def step(total: float, tokens: int = 100, reward: float = 0.5, prompts: str = "a", **seconds: float) -> StepRecord:
    return StepRecord({"total": total, **seconds}, tokens, reward, prompts)


def run(name: str, steps: list[StepRecord], wall: float = 100.0, peak: int = 10**9, other: float = 0.0) -> RunRecord:
    return RunRecord(name, steps, wall, peak, other)


TRL = run(
    "trl",
    [
        step(90, generate=60, forward=10, backward=10, optimizer=1, prompts="a", reward=0.1),
        step(22, generate=10, forward=3, backward=7, optimizer=1, prompts="b", reward=0.2),
        step(26, generate=20, forward=2, backward=3, optimizer=1, old_logp=0, prompts="c", reward=0.4),
    ],
)
OURS = run(
    "ours",
    [
        step(9, generate=5, update=3, sync=0.5, reward=0.0, prompts="a"),
        step(4, generate=2, update=1.5, sync=0.25, prompts="b"),
        step(8, generate=5, update=2, sync=0.5, prompts="c"),
    ],
    peak=4 * 10**8,
)


def test_update_is_the_sum_of_its_parts_and_other_is_the_rest() -> None:
    seconds = phase_seconds(TRL.steps[1])
    assert seconds["update"] == 11
    assert seconds["other"] == 22 - 10 - 11
    ours = phase_seconds(OURS.steps[1])
    assert ours["update"] == 1.5
    assert ours["other"] == pytest.approx(0.25)


def test_medians_leave_out_the_first_step_of_every_process() -> None:
    second = run("trl", [step(1000, generate=1000), step(30, generate=12), step(28, generate=14)], wall=300)
    summary = summarise([TRL, second])
    assert summary.measured_steps == 4
    assert summary.seconds["total"] == 27  # of 22, 26, 30, 28
    assert summary.seconds["generate"] == 13  # of 10, 20, 12, 14
    assert "old_logp" not in summary.seconds  # not told by every step
    assert summary.tokens_per_second == pytest.approx((100 / 12 + 100 / 14) / 2)
    assert summary.steps_seconds == pytest.approx((90 + 22 + 26 + 1000 + 30 + 28) / 2)
    assert summary.wall_seconds == 200
    assert summary.first_reward == pytest.approx(0.3)


def test_final_reward_is_the_mean_of_the_last_five_steps() -> None:
    rewards = [0.0, 0.0, 0.5, 1.0, 1.0, 0.75, 0.75]
    assert run("ours", [step(1, reward=value) for value in rewards]).final_reward == pytest.approx(0.8)


def test_a_summary_refuses_one_step_and_two_contestants() -> None:
    with pytest.raises(ValueError, match="2 are needed"):
        summarise([run("trl", [step(1)])])
    with pytest.raises(ValueError, match="one contestant"):
        summarise([TRL, OURS])


def test_speedups_compare_median_steps_or_all_steps() -> None:
    summaries = [summarise([TRL]), summarise([OURS])]
    assert table.speedups(summaries, {"ours"}, end_to_end=False) == {"ours": {"trl": 24 / 6}}
    assert table.speedups(summaries, {"ours"}, end_to_end=True) == {"ours": {"trl": 138 / 21}}


def test_tables_show_the_numbers_in_aligned_columns() -> None:
    summaries = [summarise([TRL]), summarise([OURS])]
    titles = {"trl": "TRL", "ours": "rlhf"}
    lines = table.step_table(summaries, titles, {"ours"}).splitlines()
    assert len({len(line) for line in lines}) == 1
    header = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    cells = dict(zip(header, [cell.strip() for cell in lines[3].split("|")[1:-1]], strict=True))
    assert (cells["total"], cells["generate"], cells["forward"]) == ("6.00", "3.50", "")
    assert (cells["x trl"], cells["peak GB"]) == ("4.00", "0.4")
    assert "138.0" in table.end_to_end_table(summaries, titles, {"ours"})


def test_different_prompts_are_named_and_noise_is_told() -> None:
    other = run("ours", [replace(OURS.steps[0], prompts="x"), *OURS.steps[1:]], other=0.6)
    assert different_prompts([TRL, OURS]) == []
    assert different_prompts([TRL, other]) == ["ours, step 1"]
    told = table.notes([summarise([TRL]), summarise([other])], ["ours, step 1"])
    assert "ours, step 1. The comparison does not hold" in told
    assert "ours 0.60. These times do not count" in told
    assert "same prompts in every step" in table.notes([summarise([TRL])], [])


def test_a_record_survives_json() -> None:
    assert RunRecord.from_json(json.loads(json.dumps(TRL.to_json()))) == TRL


def test_our_shuffled_file_is_taken_in_the_order_in_which_trl_takes_its_rows(tmp_path: Path) -> None:
    ours_grpo.command(BATCH_S, "transformers", tmp_path)
    arranged = read_rows(tmp_path / "prompts.jsonl")
    order = ours_grpo.run_order(len(arranged), BATCH_S.seed)
    rows = dataset_rows(BATCH_S)
    assert len(rows) == 12
    assert [arranged[order(position)] for position in range(len(rows))] == rows
    assert arranged != rows


def test_our_config_is_accepted_and_says_what_the_workload_says(tmp_path: Path) -> None:
    command = ours_grpo.command(BATCH_S, "vllm", tmp_path)
    config = GRPOConfig.model_validate(yaml.safe_load(Path(command[-1]).read_text()))
    assert (config.batch.prompts_per_step, config.sampling.samples_per_prompt, config.sampling.max_tokens) == (4, 8, 64)
    assert (config.model.dtype, config.optimizer.lr, config.engine.type) == ("float32", 1e-6, "vllm")
    algorithm = config.algorithm
    assert (algorithm.advantage, algorithm.loss, algorithm.denominator) == ("group_normalised", "clip", "token")
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.kl.coefficient) == (0.2, 0.2, 0.0)


def test_our_record_is_read_from_the_folder_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / ours_grpo.RUN_NAME
    folder.mkdir()
    times = {"time/generate": 2.0, "time/reward": 0.1, "time/update": 3.0, "time/sync": 0.2, "time/step": 5.5}
    metrics = {"step": 1, "reward/mean": 0.25, "tokens/trained": 11.0, **times}
    (folder / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    texts = ["What is 1 + 2?", "What is 3 + 4?"]
    samples = [
        {"step": 1, "prompt": [{"role": "user", "content": text}], "completion_tokens": 5 + index}
        for text in texts
        for index in range(2)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    resolved = {
        "model": {"dtype": "float32", "gradient_checkpointing": False},
        "batch": {"tokens_per_micro_batch": 8192},
        "algorithm": {"preset": "grpo", "denominator": "token"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    (folder / "environment.json").write_text(json.dumps({"torch_threads": 2}))
    steps, settings = ours_grpo.read_record(tmp_path)
    seconds = {"generate": 2.0, "reward": 0.1, "update": 3.0, "sync": 0.2, "total": 5.5}
    assert steps == [StepRecord(seconds, 22, 0.25, prompts_digest(texts * 2), None, 11)]
    assert settings["threads"] == 2


def test_the_reward_counts_the_last_integer() -> None:
    chat = [[{"role": "assistant", "content": "2 + 3 is 5."}], [{"role": "assistant", "content": "5, as 2 + 3"}]]
    assert last_integer_reward([None] * 2, chat, ["5", "5"]) == [1.0, 0.0]
    assert last_integer_reward([None] * 3, ["07", "seven", ""], ["7", "7", "7"]) == [1.0, 0.0, 0.0]


def test_the_dense_reward_is_the_parity_of_the_length() -> None:
    assert even_length_reward([None] * 3, ["", "7", "42"]) == [1.0, 0.0, 1.0]
    assert {workload.reward for workload in WORKLOADS.values()} <= REWARDS.keys()


def test_a_digest_tells_prompts_apart_but_not_their_order() -> None:
    rows = dataset_rows(BATCH_S)
    questions = [question(row["prompt"]) for row in rows]
    assert prompts_digest(questions) == prompts_digest(reversed(questions))
    assert prompts_digest(questions) != prompts_digest([*questions, questions[0]])


def test_only_the_variant_decides_about_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    plain = step_time.child_environment(step_time.CONTESTANTS["trl"], threads=2)
    tuned = step_time.child_environment(step_time.CONTESTANTS["trl-malloc"], threads=2)
    assert not step_time.MALLOC.keys() & plain.keys()
    assert {name: tuned[name] for name in step_time.MALLOC} == step_time.MALLOC
    assert {k: v for k, v in tuned.items() if k not in step_time.MALLOC} == plain
    assert plain["OMP_NUM_THREADS"] == "2"


def test_arguments_and_their_limits(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = step_time.parse_arguments(["--vs", "trl", "--workload", "task-d", "--json"])
    assert (parsed.trial.steps, parsed.trial.workload.name, parsed.json) == (24, "task-d", True)
    assert [contestant.name for contestant in parsed.contestants] == ["trl", "ours", "ours-vllm"]
    chosen = step_time.parse_arguments(["--contestants", "trl-vllm", "ours-vllm", "--steps", "3", "--seed", "7"])
    assert [contestant.name for contestant in chosen.contestants] == ["trl-vllm", "ours-vllm"]
    assert (chosen.trial.workload.name, chosen.trial.steps, chosen.trial.seed) == ("batch-s", 3, 7)
    for wrong in (["--steps", "1"], ["--rounds", "0"], ["--folder", str(ROOT)], ["--contestants", "nobody"]):
        with pytest.raises(SystemExit):
            step_time.parse_arguments(wrong)
    assert "results are never mixed" in capsys.readouterr().err


def test_a_contestant_that_fails_is_reported_with_the_end_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_grpo, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such model')"])
    with pytest.raises(step_time.ContestantFailed, match=r"trl: exit status 1 (.|\n)*no such model"):
        step_time.run_contestant(step_time.CONTESTANTS["trl"], BATCH_S, 1, tmp_path / "run")


def test_peak_memory_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = "import time; block = bytearray(300_000_000); time.sleep(0.3)"
    monkeypatch.setattr(trl_grpo, "command", lambda *_: [sys.executable, "-c", hold])
    recorded = [step(1), step(2), step(3)]
    monkeypatch.setattr(trl_grpo, "read_record", lambda _: (recorded, {}))
    record = step_time.run_contestant(step_time.CONTESTANTS["trl"], BATCH_S, 1, tmp_path / "run")
    assert record.steps == recorded
    # the kernel counts what this process had when it started the other one, so the peak may be larger
    assert record.peak_rss_bytes > 300_000_000
    assert record.wall_seconds > 0.3


@pytest.mark.slow
def test_ours_and_trl_run_the_smoke_workload_on_the_same_prompts(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason=f"the peer is not installed; {from_checkout('trl')}")
    flags = ["--workload", "smoke", "--contestants", "trl", "ours", "--rounds", "1", "--threads", "1", "--json"]
    command = [sys.executable, str(ROOT / "benchmarks" / "step_time.py"), *flags, "--out", str(tmp_path / "table.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["different_prompts"] == []
    trl, ours = result["summaries"]
    for summary in (trl, ours):
        assert 4 <= summary["sampled_tokens"] <= 16
        assert summary["seconds"]["total"] > summary["seconds"]["generate"] > 0
        assert summary["peak_rss_bytes"] > 5e8
    assert trl["model_tokens"] >= 4 * 45
    assert trl["trained_tokens"] == trl["sampled_tokens"]
    assert ours["trained_tokens"] <= ours["sampled_tokens"]
    assert 0 <= trl["seconds"]["other"] < trl["seconds"]["total"]
    assert result["times_as_fast"]["ours"]["trl"] == pytest.approx(
        trl["seconds"]["total"] / ours["seconds"]["total"]
    )
    assert "same prompts in every step" in (tmp_path / "table.md").read_text()
