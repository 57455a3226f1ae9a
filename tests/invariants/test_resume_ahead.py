"""2n steps equal n steps, an end of any kind, n steps more, to the bit, with batches generated ahead of the learner."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.grpo import GRPOConfig
from rlhf.config.loading import to_yaml
from rlhf.trainers.run import run
from rlhf.training.checkpoint import list_checkpoints, load_checkpoint
from rlhf.training.collecting import RolloutCollector
from rlhf.training.learner import Learner
from tests.invariants.test_resume import KILLED_RUN, read
from tests.processes import output_of, run_on_two_ranks, start
from tests.tiny_runs import EVEN_TOKENS, tiny_config

pytestmark = pytest.mark.slow
STEPS = 6


def make_config(path: str, folder: Path, name: str, staleness: int, steps: int = STEPS) -> GRPOConfig:
    """With groups that teach nothing, so that prompts are taken at the join too."""
    return tiny_config(
        path,
        run={"folder": str(folder), "name": name},
        batch={"steps": steps, "prompts_per_step": 4, "minibatches": 2, "tokens_per_micro_batch": 128,
               "staleness": staleness},
        algorithm={"mismatch": {"level": "token"}, "dynamic_sampling": {"max_refills": 2}},
        rewards={"functions": [{"type": "callable", "path": f"{EVEN_TOKENS}:mostly_even"}]},
        guards={"max_ungradable_share": 1.0, "ratio_tolerance": 1.0},
        checkpoint={"every": 1, "export": False},
    )  # fmt: skip


def newest(folder: Path) -> Any:
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])


@pytest.fixture(scope="module", params=[1, 2])
def straight(request: pytest.FixtureRequest, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    """(staleness, what an undisturbed run leaves behind)."""
    result = read(run(make_config(model, tmp_path_factory.mktemp("straight"), "straight", request.param)))
    assert all(line["gradient/norm"] > 0 for line in result[0]) and any(line["groups/discarded"] for line in result[0])
    samples = [json.loads(line) for line in result[1].splitlines()]
    assert len({(s["prompt_id"], s["index"]) for s in samples}) == len(samples) == STEPS * 4 * 4
    assert max(line["staleness/max"] for line in result[0]) == request.param
    return request.param, result


def test_killed_and_resumed_equals_straight(tmp_path: Path, model: str, straight: tuple[int, Any]) -> None:
    """The thread in the middle of a batch, or the main thread in the middle of an update."""
    staleness, expected = straight
    config = make_config(model, tmp_path, "killed", staleness)
    file = tmp_path / "killed.yaml"
    file.write_text(to_yaml(config))
    phase = {1: "generate", 2: "update"}[staleness]
    output_of(start(KILLED_RUN, file, phase, STEPS), -signal.SIGKILL)
    checkpoint = newest(tmp_path / "killed")
    assert 1 <= checkpoint.state["step"] < STEPS and len(checkpoint.pending) == staleness * 16
    assert read(run(config)) == expected


def test_terminated_and_resumed_equals_straight(
    tmp_path: Path, model: str, straight: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is learned, or while the first batches are made, of which one is saved."""
    staleness, expected = straight
    when = {1: 3, 2: 0}[staleness]
    config = make_config(model, tmp_path, "ended", staleness)
    owner, name = (Learner, "update") if when else (RolloutCollector, "complete")
    method = getattr(owner, name)

    def terminated(self: Any, *arguments: Any) -> Any:
        if not when or arguments[2] == when:
            os.kill(os.getpid(), signal.SIGTERM)
        return method(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, terminated)
        run(config)
    checkpoint = newest(tmp_path / "ended")
    assert checkpoint.state["step"] == when and len(checkpoint.pending) == (staleness if when else 1) * 16
    assert read(run(config)) == expected


def test_a_run_made_longer_equals_straight(tmp_path: Path, model: str, straight: tuple[int, Any]) -> None:
    staleness, expected = straight
    run(make_config(model, tmp_path, "longer", staleness, STEPS // 2))
    assert read(run(make_config(model, tmp_path, "longer", staleness))) == expected


def test_two_ranks_take_every_prompt_once_and_go_on(tmp_path: Path, model: str) -> None:
    """Ranks that lack different numbers of groups, a thread on each, and one process group."""
    files = []
    for name, steps in (("straight", 4), ("longer", 2), ("longer", 4)):
        files.append(tmp_path / f"{name}-{steps}.yaml")
        files[-1].write_text(to_yaml(make_config(model, tmp_path, name, 1, steps)))
    run_on_two_ranks(Path(__file__).with_name("runs_on_ranks.py"), *files)
    assert read(tmp_path / "longer") == read(tmp_path / "straight")
    metrics, samples, _ = read(tmp_path / "straight")
    rows = [json.loads(line) for line in samples.splitlines()]
    assert len({(s["prompt_id"], s["index"]) for s in rows}) == len(rows) == 64
    assert {(s["step"], s["policy_version"]) for s in rows} == {(1, 0), (2, 0), (3, 1), (4, 2)}
    assert sum(line["groups/discarded"] for line in metrics) > 0
