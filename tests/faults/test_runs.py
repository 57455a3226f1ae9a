"""What befalls a run from outside: it ends in seconds, says what to do, keeps its checkpoints, and can be resumed."""

import resource
import sys
import time
from pathlib import Path

import pytest

from rlhf.config.loading import to_yaml
from rlhf.training.checkpoint import list_checkpoints, load_checkpoint
from rlhf.training.run_folder import RunFolder
from tests.processes import RECIPE, output_of, start
from tests.tiny_runs import EVEN_TOKENS, save_tiny_model, tiny_config

pytestmark = pytest.mark.slow
REWARDS = Path(__file__).with_name("bad_rewards.py")
STEPS = 6
ENGINE_DIES = """
import sys
from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import load_config
from rlhf.rollouts.transformers_engine import TransformersEngine
from rlhf.trainers.run import run

generate = TransformersEngine.generate

def generate_until_step_3(self, *arguments):
    if self.version == 2:
        self.close()
    return generate(self, *arguments)

TransformersEngine.generate = generate_until_step_3
run(load_config(GRPOConfig, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def write_config(folder: Path, model: str, reward: dict | None = None, **changes) -> Path:
    functions = [{"type": "callable", **(reward or {"path": f"{EVEN_TOKENS}:even_share"})}]
    sections = {
        "run": {"folder": str(folder), "name": "run"},
        "batch": {"steps": STEPS, "prompts_per_step": 4, "tokens_per_micro_batch": 128},
        "rewards": {"functions": functions},
        "checkpoint": {"every": 1, "keep_last": 3},
    }
    config = tiny_config(model, **(sections | changes))
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return file


def checkpoints(folder: Path) -> list[Path]:
    return list_checkpoints(RunFolder(folder / "run").checkpoints)


def assert_two_steps_are_kept(folder: Path) -> None:
    """Both steps before the fault are recorded, and the second's checkpoint is whole."""
    assert [line["step"] for line in RunFolder(folder / "run").read_metrics()] == [1, 2]
    assert load_checkpoint(checkpoints(folder)[-1]).state["step"] == 2


def test_a_reward_that_raises_names_function_and_sample(tmp_path, model):
    output = output_of(start(*RECIPE, write_config(tmp_path, model, {"path": f"{REWARDS}:raises"})), 1)
    assert "reward function raises raised ConnectionError: the judge is gone (sample 'arithmetic-level2" in output
    assert_two_steps_are_kept(tmp_path)


def test_a_reward_that_hangs_ends_the_run(tmp_path, model):
    started = time.monotonic()
    config_file = write_config(tmp_path, model, {"path": f"{REWARDS}:hangs", "timeout_s": 2.0})
    output = output_of(start(*RECIPE, config_file), 1)
    assert "reward function hangs has not returned after 2 s for 16 samples" in output
    assert time.monotonic() - started < 120
    assert_two_steps_are_kept(tmp_path)


def test_a_dead_engine_in_the_thread_of_the_next_batch_ends_the_run(tmp_path, model):
    """With weights of version 2 the batch of step 4 is made, while step 3 is learned."""
    ahead = {"batch": {"steps": STEPS, "prompts_per_step": 4, "tokens_per_micro_batch": 128, "staleness": 1}}
    config_file = write_config(tmp_path, model, **ahead, algorithm={"mismatch": {"level": "token"}})
    output = output_of(start("-c", ENGINE_DIES, "--config", config_file), 1)
    assert "EngineError: the transformers engine cannot be used" in output
    assert "in the thread that was busy with: the batch of step 4" in output
    assert_two_steps_are_kept(tmp_path)
    assert "after step 2" in output_of(start(*RECIPE, config_file))
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_metrics()] == list(range(1, STEPS + 1))


def test_a_dead_engine_ends_the_run_which_a_new_engine_goes_on_with(tmp_path, model):
    config_file = write_config(tmp_path, model)
    output = output_of(start("-c", ENGINE_DIES, "--config", config_file), 1)
    assert "EngineError: the transformers engine cannot be used" in output
    assert_two_steps_are_kept(tmp_path)
    assert "after step 2" in output_of(start(*RECIPE, config_file))
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_metrics()] == list(range(1, STEPS + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit to take the disk away from a running process")
def test_no_room_for_a_checkpoint_ends_the_run_and_keeps_the_last(tmp_path, model):
    """The limit on the size of files fails a write in the middle, as a full disk does."""
    config_file = write_config(tmp_path, model)
    process = start(*RECIPE, config_file)
    while not checkpoints(tmp_path) and process.poll() is None:
        time.sleep(0.002)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    output = output_of(process, 1)
    assert "CheckpointError" in output and "MiB free there" in output and "start the same command again" in output
    kept = [load_checkpoint(path).state["step"] for path in checkpoints(tmp_path)]
    assert kept and kept[-1] < STEPS
    assert f"after step {kept[-1]}" in output_of(start(*RECIPE, config_file))


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(tmp_path, model):
    config_file = write_config(tmp_path, model)
    output_of(start(*RECIPE, config_file))
    newest = checkpoints(tmp_path)[-1] / "weights.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    output = " ".join(output_of(start(*RECIPE, config_file)).split())
    assert "weights.safetensors is damaged" in output and f"after step {STEPS - 1}" in output
    assert f"damaged-step-{STEPS:06d}" in output
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_metrics()] == list(range(1, STEPS + 1))
    assert load_checkpoint(checkpoints(tmp_path)[-1]).state["step"] == STEPS
    assert (checkpoints(tmp_path)[-1].parent / f"damaged-step-{STEPS:06d}" / newest.name).read_bytes() == content
