"""Checkpoints: exact round trip, damage found and named, settings compared, pruning."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.data.types import Prompt, Sample, Verdict
from rlhf.training import checkpoint as module
from rlhf.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    config_differences,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune,
    recover,
    save_checkpoint,
    set_aside_newer,
)
from tests.processes import run_on_two_ranks


class Killed(BaseException):
    """Nothing of ours catches it, as nothing runs after SIGKILL."""


def make(step: int) -> Checkpoint:
    parameter = torch.nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(step)))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    prompt = Prompt("task:1", (1, 2), [{"role": "user", "content": "2 + 2?"}], {"answer": "4"}, "arithmetic")
    sample = Sample(
        prompt,
        0,
        (5, 6),
        (-0.1, -0.30000000000000004),
        "stop",
        3,
        2**62 + 1,
        "4",
        {"correctness": 1.0},
        1.0,
        Verdict("right", "4"),
    )
    return Checkpoint({"step": step, "config": {}}, {"w": parameter.detach()}, optimizer.state_dict(), [sample])


def test_round_trip_is_exact(tmp_path):
    saved = make(4)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved))
    assert loaded.state == saved.state and loaded.pending == saved.pending
    assert torch.equal(loaded.weights["w"], saved.weights["w"])
    for key, value in saved.optimizer["state"][0].items():
        assert torch.equal(loaded.optimizer["state"][0][key], value)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.pt", "state.json", "pending.jsonl", "manifest.json"]
)
def test_damage_is_found_named_and_the_older_checkpoint_used(tmp_path, name):
    save_checkpoint(tmp_path, make(4))
    newest = save_checkpoint(tmp_path, make(8))
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 255
    (newest / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-000008"):
        load_checkpoint(newest)
    checkpoint, problems = newest_checkpoint(tmp_path)
    assert checkpoint.state["step"] == 4 and len(problems) == 1


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_a_fresh_start(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    (save_checkpoint(tmp_path, make(4)) / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of this run is whole"):
        newest_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, make(4))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*MiB free"):
        save_checkpoint(tmp_path, make(8))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]
    assert load_checkpoint(tmp_path / "step-000004").state["step"] == 4


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8):
        save_checkpoint(tmp_path, make(step))
    prune(tmp_path, keep_last=2, best_step=2, step=8)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000006", "step-000008"]


def test_pruning_counts_no_newer_ones_and_removes_none(tmp_path):
    for step in (5, 20, 10):
        save_checkpoint(tmp_path, make(step))
    prune(tmp_path, keep_last=1, best_step=None, step=10)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000010", "step-000020"]


def test_newer_ones_than_a_run_goes_on_from_are_set_aside_each_under_a_name_of_its_own(tmp_path):
    for _ in range(2):
        for step in (5, 20):
            save_checkpoint(tmp_path, make(step))
        set_aside_newer(tmp_path, 5)
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000005"]
    aside = sorted(tmp_path.glob("damaged-*"))
    assert [path.name for path in aside] == ["damaged-step-000020", "damaged-step-000020.1"]
    assert all(load_checkpoint(path).state["step"] == 20 for path in aside)


@pytest.mark.parametrize("moment", range(7))
def test_a_kill_while_a_step_is_written_again_leaves_a_whole_checkpoint_of_it(tmp_path, monkeypatch, moment):
    """Before each change of a folder that comes after the files were written, and in the middle of each removal."""
    writings = [make(3), make(3)]
    for number, writing in enumerate(writings):
        writing.state["writing"] = number
    save_checkpoint(tmp_path, writings[0])
    moments, remove = 0, module.shutil.rmtree

    def pass_moment() -> None:
        nonlocal moments
        if moments == moment:
            raise Killed
        moments += 1

    def killable(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            pass_moment()
            if change is remove and (arguments[0] / module.MANIFEST).exists():
                (arguments[0] / module.MANIFEST).unlink()
                pass_moment()
            return change(*arguments, **options)

        return changed

    is_killed = False
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", killable(module.os.replace))
        patch.setattr(module.shutil, "rmtree", killable(remove))
        try:
            save_checkpoint(tmp_path, writings[1])
        except Killed:
            is_killed = True
    assert is_killed == (moment < 6), "the last of the moments comes after the writing"
    recover(tmp_path)
    checkpoint, problems = newest_checkpoint(tmp_path)
    assert checkpoint.state["step"] == 3 and not problems
    assert checkpoint.state["writing"] == 1 or is_killed
    save_checkpoint(tmp_path, writings[1])
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


@pytest.mark.slow
def test_each_rank_hashes_the_files_that_it_writes_and_one_that_cannot_write_ends_it_on_all(tmp_path):
    run_on_two_ranks(Path(__file__).with_name("shards_on_ranks.py"), tmp_path)
    checkpoint = load_checkpoint(tmp_path / "step-000001")
    manifest = json.loads((tmp_path / "step-000001" / module.MANIFEST).read_text())
    names = sorted(path.name for path in (tmp_path / "step-000001").iterdir())
    assert list(manifest) == [name for name in names if name != module.MANIFEST] and len(checkpoint.shards) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_config_differences_name_what_matters_only():
    saved = {"optimizer": {"lr": 0.1}, "batch": {"steps": 4, "epochs": 1}, "tracking": {"trackers": []}}
    now = {"optimizer": {"lr": 0.2}, "batch": {"steps": 8, "epochs": 1}, "tracking": {"trackers": ["wandb"]}}
    assert config_differences(saved, now) == ["  optimizer.lr: 0.1 in the checkpoint, 0.2 now"]
