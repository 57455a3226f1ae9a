"""A reward model in `python -m eval run`: scores, best-of-k, a kill between the passes, ranks, refusals."""

import json
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from eval.__main__ import main
from eval.artefacts import read_part
from eval.asking import Batch
from eval.metrics import summarise
from eval.progress import EvalProgress
from eval.questions import Answer, Question
from eval.rescoring import rescore, reward_model_source
from eval.settings import EvalSettings
from rlhf.models.reward_model import RewardModel
from rlhf.training.run_folder import json_line
from tests.models.test_reward_model import CONFIGS, save_reward_model
from tests.processes import run_on_two_ranks, start
from tests.tiny_runs import save_tiny_model

QUESTIONS, SAMPLES = 8, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("reward"))


def arguments(model: str, output: Path, **changes: object) -> list[str]:
    settings = {
        "model": model, "benchmarks": "arithmetic", "engine": "transformers", "samples": SAMPLES, "temperature": 1.0,
        "max_tokens": 8, "limit": QUESTIONS, "samples_per_batch": 8, "output": output,
    } | changes  # fmt: skip
    return ["run", *(part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value)))]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def made_by_hand(folder: Path, count: int = 6) -> list[tuple[Batch, Path]]:
    """A part file of `count` questions with a right, a wrong and an ungradable sample each."""
    questions = [Question(f"sums:{n}", f"What is {n} + {n}?", str(2 * n)) for n in range(count)]
    outcomes = {0: "right", 1: "wrong", 2: "ungradable"}
    answers = [
        Answer(
            "sums", question.id, sample, 0, "prompt", f"It is {2 * number + turn}, I think.", 9, "stop", question.gold,
            outcomes[turn], str(2 * number + turn), "",
        )
        for number, question in enumerate(questions)
        for sample, turn in enumerate((number + s) % 3 for s in range(3))
    ]  # fmt: skip
    file = folder / "sums-00000.jsonl"
    file.write_bytes(b"".join(json_line(asdict(answer)) for answer in answers))
    return [(Batch("sums", 0, questions, []), file)]


@pytest.mark.slow
def test_a_run_that_was_killed_before_the_scoring_ends_in_the_same_bytes(model, reward_model, tmp_path):
    def told(folder: str) -> list[str]:
        return arguments(model, tmp_path / folder, reward_model=reward_model)

    assert main(told("whole")) == 0
    process = start("-m", "eval", *told("killed"))
    parts = tmp_path / "killed" / "parts"
    count = QUESTIONS * SAMPLES // 8
    while process.poll() is None and not (parts.is_dir() and len(list(parts.glob("*.jsonl"))) == count):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    left = [answer for file in parts.glob("*.jsonl") for answer in read_part(file)]
    assert len(left) == QUESTIONS * SAMPLES and all(answer.score is None for answer in left), output
    assert not (tmp_path / "killed" / "samples.jsonl").exists()
    # and as a kill after the first part leaves it
    first = "arithmetic-00000.jsonl"
    (parts / first).write_bytes((tmp_path / "whole" / "parts" / first).read_bytes())
    before = (parts / first).stat()
    assert main(told("killed")) == 0
    assert (parts / first).stat().st_mtime_ns == before.st_mtime_ns, "scored twice"
    for name in ("samples.jsonl", *(f"parts/{file.name}" for file in parts.iterdir())):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()

    whole = lines(tmp_path / "whole" / "samples.jsonl")
    plain = tmp_path / "plain"
    assert main(arguments(model, plain)) == 0
    assert [line | {"score": None} for line in whole] == lines(plain / "samples.jsonl")
    estimates = json.loads((tmp_path / "whole" / "summary.json").read_text())["benchmarks"]["arithmetic"]["estimates"]
    assert {name for name in estimates if name.startswith("best-of")} == {"best-of-1", "best-of-2", "best-of-4"}
    assert "| best-of-4 |" in (tmp_path / "whole" / "table.md").read_text()


@pytest.mark.slow
def test_two_ranks_score_their_own_parts_to_the_samples_of_one(model, reward_model, tmp_path):
    changes = {"reward_model": reward_model, "reward_model_revision": "main"}
    assert main(arguments(model, tmp_path / "one", **changes)) == 0
    script = tmp_path / "shared.py"
    script.write_text("import sys\nfrom eval.__main__ import main\nsys.exit(main(sys.argv[1:]))\n")
    run_on_two_ranks(script, *arguments(model, tmp_path / "two", **changes))
    assert (tmp_path / "one" / "samples.jsonl").read_bytes() == (tmp_path / "two" / "samples.jsonl").read_bytes()


def test_each_answer_has_the_score_of_its_question_and_completion(reward_model, tmp_path):
    batches = made_by_hand(tmp_path)
    (batch, file), unscored = batches[0], read_part(batches[0][1])
    settings = EvalSettings(model="none", benchmarks=["gsm8k"], reward_model=reward_model)
    with EvalProgress(is_shown=False) as progress:
        rescore(reward_model_source(settings), batches, CPU, progress)
        scored = read_part(file)
        written = file.stat().st_mtime_ns
        rescore(reward_model_source(settings), batches, CPU, progress)
    assert file.stat().st_mtime_ns == written
    texts = {question.id: question.text for question in batch.questions}
    scorer = RewardModel(reward_model, device="cpu")
    chats = [
        [{"role": "user", "content": texts[a.id]}, {"role": "assistant", "content": a.completion}] for a in unscored
    ]
    expected = [scorer.score([chat])[0] for chat in chats]
    assert [a.score for a in scored] == pytest.approx(expected, rel=0, abs=1e-5)
    assert [asdict(a) | {"score": None} for a in scored] == [asdict(a) for a in unscored]
    # best-of-k by brute force
    estimates = summarise(scored, 3).estimates
    for k in (1, 2):
        picked = [max(scored[i : i + k], key=lambda a: a.score) for i in range(0, len(scored), 3)]
        value = sum(a.outcome == "right" for a in picked) / len(picked)
        assert estimates[f"best-of-{k}"].value == pytest.approx(value)
    assert 0 < estimates["best-of-2"].value < 1


def test_texts_that_are_cut_are_counted_aloud(tmp_path):
    reward_model = save_reward_model(tmp_path / "short", CONFIGS["llama"](max_position_embeddings=16))
    settings = EvalSettings(model="none", benchmarks=["gsm8k"], reward_model=reward_model)
    said = r"sums, batch 0: 18 of 18 texts are longer than the 16 tokens .* their beginnings were cut off"
    with EvalProgress(is_shown=False) as progress, pytest.warns(UserWarning, match=said):
        rescore(reward_model_source(settings), made_by_hand(tmp_path), CPU, progress)


def test_a_score_that_is_no_number_leaves_the_part_unscored(tmp_path):
    reward_model = save_reward_model(tmp_path / "broken")
    scorer = RewardModel(reward_model, device="cpu")
    with torch.no_grad():
        scorer.model.score.weight.fill_(torch.nan)
    scorer.model.save_pretrained(reward_model)
    batches = made_by_hand(tmp_path)
    before = batches[0][1].read_bytes()
    settings = EvalSettings(model="none", benchmarks=["gsm8k"], reward_model=reward_model)
    with EvalProgress(is_shown=False) as progress, pytest.raises(ValueError, match=r"'sums:\d', sample \d: .* nan"):
        rescore(reward_model_source(settings), batches, CPU, progress)
    assert batches[0][1].read_bytes() == before


def test_a_wrong_reward_model_is_refused_before_the_folder_is_claimed(model, reward_model, tmp_path, capsys):
    out = tmp_path / "out"
    for changes, status, said in (
        ({"reward_model": model}, 1, "is no reward model: it has 2 labels"),
        ({"reward_model": str(tmp_path / "nowhere")}, 1, "nowhere"),
        ({"reward_model_revision": "main"}, 2, "there is no reward_model"),
    ):
        assert main(arguments(model, out, **changes)) == status
        assert said in capsys.readouterr().err and not out.exists()


def test_another_reward_model_does_not_continue_a_run(model, reward_model, tmp_path, capsys):
    changes = {"limit": 2, "reward_model": reward_model}
    assert main(arguments(model, tmp_path / "out", **changes)) == 0
    other = save_reward_model(tmp_path / "other")
    assert main(arguments(model, tmp_path / "out", **changes | {"reward_model": other})) == 1
    assert "reward_model: " in capsys.readouterr().err
