import errno
import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from rlhf.data.types import Prompt, Sample, Verdict
from rlhf.training.run_folder import RunFolder, RunFolderError

HOSTILE = "lone \ud800, separator \u2028, next \x85, nul \x00, emoji 🙂, quote \" and back\\slash \\ud800"


def make_sample(text="7", index=0, reward=1.0):
    prompt = Prompt("a:1", (1, 2), [{"role": "user", "content": "3 + 4?"}])
    verdict = Verdict("right", "7", "last integer")
    logps, rewards = (-0.1, -0.2, -0.3), {"correctness": reward}
    return Sample(prompt, index, (5, 6, 2), logps, "stop", 4, 99, text, rewards, reward, verdict)


def write_steps(run, steps):
    for step in steps:
        run.append_metrics(step, {"loss": step / 3, "gradient/norm": math.inf if step == 2 else 1.0})
        run.append_samples(step, [make_sample(f"{HOSTILE} {step}", index) for index in range(3)])
        if step % 2 == 0:
            run.append_evaluation(step, {"name": "held_out", "accuracy": 0.5})


def line_files(run):
    return {path.name: path.read_bytes() for path in (run.metrics, run.samples, run.evaluations)}


def test_numbers_and_text_come_back_as_they_were(tmp_path):
    run = RunFolder(tmp_path)
    metrics = {"a": math.nan, "b": -math.inf, "c": 1 / 3, "d": np.float32(0.5), "e": torch.tensor(3), "f": 2, "g": None}
    run.append_metrics(1, metrics)
    assert '"a": "nan", "b": "-inf"' in run.metrics.read_text()
    (record,) = run.read_metrics()
    assert math.isnan(record.pop("a"))
    assert record == {"step": 1, "b": -math.inf, "c": 1 / 3, "d": 0.5, "e": 3, "f": 2, "g": None}
    run.append_samples(1, [make_sample(HOSTILE), make_sample("nan", reward=math.nan)], token_ids=True)
    first, second = run.read_samples()
    assert (first["completion"], second["completion"], second["reward"]) == (HOSTILE, "nan", "nan")
    assert len(run.samples.read_bytes().split(b"\n")) == 3


def test_a_sample_line_has_everything_that_explains_its_reward(tmp_path):
    run = RunFolder(tmp_path)
    run.append_samples(3, [make_sample()])
    run.append_samples(4, [make_sample()], token_ids=True)
    run.append_samples(5, [])
    plain_line, with_ids = run.read_samples()
    assert plain_line == {
        "step": 3, "prompt_id": "a:1", "index": 0, "seed": 99, "policy_version": 4,
        "prompt": [{"role": "user", "content": "3 + 4?"}], "completion": "7", "completion_tokens": 3,
        "finish_reason": "stop", "rewards": {"correctness": 1.0}, "reward": 1.0, "outcome": "right", "extracted": "7",
        "reason": "last integer", "timed_out": False,
    }
    assert with_ids == plain_line | {"step": 4, "prompt_token_ids": [1, 2], "completion_token_ids": [5, 6, 2]}


def test_what_is_not_a_number_or_text_is_refused_before_anything_is_written(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(TypeError, match="object"):
        run.append_metrics(1, {"a": object()})
    with pytest.raises(ValueError, match="step 1 has another step inside it: 2"):
        run.append_evaluation(1, {"step": 2})
    assert not run.metrics.exists() and not run.evaluations.exists()


def test_a_line_torn_at_any_byte_is_left_out_and_never_glued_to_the_next(tmp_path):
    run = RunFolder(tmp_path)
    write_steps(run, [1])
    one = run.metrics.read_bytes()
    run.append_metrics(2, {"text": "ä"})
    both = run.metrics.read_bytes()
    for size in range(len(one), len(both)):
        run.metrics.write_bytes(both[:size])
        assert [r["step"] for r in run.read_metrics()] == [1]
        run.create("", resume=True)
        run.append_metrics(2, {"text": "ä"})
        assert run.metrics.read_bytes() == both


def test_damage_that_no_kill_makes_is_reported_with_its_line(tmp_path):
    run = RunFolder(tmp_path)
    write_steps(run, [1, 2, 3])
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(lines[0] + b'{"step": 2, "lo\n' + lines[2])
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is damaged"):
        run.read_metrics()


@pytest.mark.parametrize("checkpoint", [0, 3, 5])
def test_truncate_and_continue_equals_an_unbroken_run(tmp_path, checkpoint):
    unbroken, broken = RunFolder(tmp_path / "unbroken"), RunFolder(tmp_path / "broken")
    for run in (unbroken, broken):
        run.create("seed: 0\n", resume=True)
    write_steps(unbroken, range(1, 7))
    write_steps(broken, range(1, 6))
    for path in (broken.metrics, broken.samples):
        path.write_bytes(path.read_bytes()[:-7])
    broken.create("seed: 0\n", resume=True)
    broken.truncate_after(checkpoint if checkpoint < 5 else 4)
    write_steps(broken, range((checkpoint if checkpoint < 5 else 4) + 1, 7))
    assert line_files(broken) == line_files(unbroken)
    assert not list(broken.path.glob("*.tmp"))


def test_truncating_to_nothing_and_to_everything(tmp_path):
    run = RunFolder(tmp_path)
    write_steps(run, [0, 1, 2])
    before = line_files(run)
    run.truncate_after(2)
    assert line_files(run) == before
    run.truncate_after(-1)
    assert line_files(run) == dict.fromkeys(before, b"")


def test_a_used_folder_is_refused_when_resume_is_never(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create("seed: 0\n", resume=False)
    with pytest.raises(FileExistsError, match=r"run.resume is 'never': choose another run.name"):
        run.create("seed: 0\n", resume=False)
    run.create("seed: 1\n", resume=True)
    assert run.config.read_text() == "seed: 1\n"
    assert (run.path / "config.before-1.yaml").read_text() == "seed: 0\n"
    run.create("seed: 1\n", resume=True)
    assert len(list(run.path.glob("config.before-*"))) == 1


def test_each_resume_adds_its_environment(tmp_path):
    run = RunFolder(tmp_path)
    for version in ("1", "2", "3"):
        run.write_environment({"torch": version})
    assert json.loads(run.environment.read_text()) == {"torch": "1", "resumed": [{"torch": "2"}, {"torch": "3"}]}


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full exists on Linux only")
def test_a_full_disk_names_the_file_and_the_free_space(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.symlink_to("/dev/full")
    message = r"cannot write .*metrics.jsonl: No space left .*MiB free there\); free some"
    with pytest.raises(RunFolderError, match=message) as caught:
        run.append_metrics(1, {"loss": 1.0})
    assert caught.value.errno == errno.ENOSPC


LIMITED = """
import resource, sys
from rlhf.training.run_folder import RunFolder, RunFolderError
run = RunFolder(sys.argv[1])
run.append_metrics(1, {"loss": 1.0})
size = run.metrics.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, size + 10))
try:
    run.append_metrics(2, {"loss": 2.0})
except RunFolderError as error:
    print(error.errno, [r["step"] for r in run.read_metrics()], run.metrics.stat().st_size == size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE to cut a write in the middle")
def test_a_write_that_fails_half_way_leaves_no_half_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"{errno.EFBIG} [1] True", done.stderr


ENDLESS = """
import itertools, sys
from rlhf.training.run_folder import RunFolder
run = RunFolder(sys.argv[1])
for step in itertools.count(1):
    run.append_metrics(step, {"text": "x" * 3000})
"""


def test_kill_leaves_at_most_one_torn_line(tmp_path):
    run = RunFolder(tmp_path)
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (run.metrics.exists() and run.metrics.stat().st_size > 200_000):
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=30)
    steps = [record["step"] for record in run.read_metrics()]
    assert len(steps) > 50
    assert steps == list(range(1, len(steps) + 1))
