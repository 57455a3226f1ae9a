"""Checkpoints from which a run goes on exactly: written aside, hashed, renamed; verified before use.

checkpoints/step-000004/
  manifest.json         sha256 of every other file: a folder without it is not a checkpoint
  state.json            step, position in the data, counters, and the resolved config
  weights.safetensors   float32 master weights by name
  optimizer.pt          the optimizer's state (tensors and numbers only)
  pending.jsonl         samples that were generated and not yet learned from; `pending_steps` of the state says of which
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhf.data.sample_json import sample_from_json, sample_to_json
from rlhf.data.types import Sample

MANIFEST = "manifest.json"
# what may differ between a checkpoint's config and the resuming one: it changes neither samples nor gradients
FREE_SETTINGS = (
    "run.folder",
    "run.resume",
    "batch.steps",
    "batch.tokens_per_micro_batch",
    "checkpoint",
    "tracking",
    "evaluation",
    "guards",
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be trusted; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds. `state` has at least `step` and `config`."""

    state: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    pending: list[Sample]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-NNNNNN. A kill or a full disk leaves the earlier checkpoints as they were.

    Raises CheckpointError naming the path and the free space.
    """
    target = folder / f"step-{checkpoint.state['step']:06d}"
    staging = folder / f".{target.name}.writing"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in checkpoint.weights.items()},
            staging / "weights.safetensors",
        )
        torch.save(checkpoint.optimizer, staging / "optimizer.pt")
        (staging / "state.json").write_text(json.dumps(checkpoint.state, indent=1))
        lines = [json.dumps(sample_to_json(sample)) for sample in checkpoint.pending]
        (staging / "pending.jsonl").write_text("".join(line + "\n" for line in lines))
        manifest = {path.name: _sha256(path) for path in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*staging.iterdir(), staging]:
            _fsync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
        _fsync(folder)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        # torch and safetensors wrap a full disk in errors of their own
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        raise CheckpointError(
            f"checkpoint {target} could not be written ({error}; {free / 2**20:,.0f} MiB free there). Earlier "
            f"checkpoints are "
            "whole: free some space and start the same command again to resume"
        ) from error
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify every file against the manifest, then load. Raises CheckpointError naming the first bad file."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / MANIFEST} is missing or unreadable ({error}): {path} is not a whole checkpoint"
        ) from error
    for name, expected in manifest.items():
        file = path / name
        if not file.exists() or _sha256(file) != expected:
            raise CheckpointError(
                f"{file} is damaged or missing (sha256 does not match the manifest): remove {path} to resume from "
                f"an older one"
            )
    pending = [sample_from_json(json.loads(line)) for line in (path / "pending.jsonl").read_text().splitlines()]
    return Checkpoint(
        state=json.loads((path / "state.json").read_text()),
        weights=load_file(path / "weights.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", weights_only=True),
        pending=pending,
    )


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, or None where there is none, and what is wrong with newer ones.

    Raises CheckpointError when there are checkpoints and none of them is whole.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("no checkpoint of this run is whole:\n" + "\n".join(problems))
    return None, problems


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Remove all but the newest `keep_last` checkpoints and the best one."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if best_step is None or path.name != f"step-{best_step:06d}":
            shutil.rmtree(path)


def config_differences(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line per setting that differs and matters for resuming."""
    lines = []
    for key in sorted(saved.keys() | current.keys()):
        name = f"{prefix}{key}"
        if name in FREE_SETTINGS:
            continue
        before, now = saved.get(key), current.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            lines += config_differences(before, now, f"{name}.")
        elif before != now:
            lines.append(f"  {name}: {before!r} in the checkpoint, {now!r} now")
    return lines


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of one part of what is saved, named so that `part_of` finds them."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def part_of(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """What `prefixed` named."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
