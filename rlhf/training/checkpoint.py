"""Checkpoints from which a run goes on exactly: written aside, hashed, renamed; verified before use.

checkpoints/step-000004/
  manifest.json         sha256 of every other file: a folder without it is not a checkpoint
  state.json            step, position in the data, counters, and the resolved config
  weights.safetensors   float32 master weights by name
  optimizer.pt          the optimizer's state (tensors and numbers only)
  pending.jsonl         samples that were generated and not yet learned from; `pending_steps` of the state says of which
  shard-00000-of-00008.safetensors    where FSDP2 or ZeRO divide them: one rank's part of weights and optimizer state

Beside them may lie .step-000004.writing (not whole yet), .step-000004.old (of a step that is written again, until the
new one is in its place) and damaged-step-000008 (newer than what a run went on from, as it was not whole).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf.config.rollouts import SERVER_CONNECTION
from rlhf.data.sample_json import sample_from_json, sample_to_json
from rlhf.data.types import Sample
from rlhf.training.collectives import barrier, gather_lists, rank_of_world
from rlhf.training.weights.shard_files import PATTERN, Stretch, shard_name, write_shard

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
    *(f"engine.{name}" for name in SERVER_CONNECTION),
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be trusted; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds. `state` has at least `step` and `config`. `shards`: the files of ranks, where there are
    some."""

    state: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    pending: list[Sample]
    shards: tuple[Path, ...] = ()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-NNNNNN. A kill or a full disk leaves the earlier checkpoints as they were.

    Raises CheckpointError naming the path and the free space.
    """
    target = _target(folder, checkpoint)
    staging = _staging(target)
    try:
        _begin(staging)
        _commit(staging, target, _write_whole(staging, checkpoint))
    except Exception as error:
        raise _failed(target, error) from error
    return target


def save_sharded_checkpoint(folder: Path, checkpoint: Checkpoint, stretches: Iterable[Stretch]) -> Path:
    """As `save_checkpoint`, with a file of each rank's stretches beside what the first rank has whole. Collective: the
    folder is seen by all ranks, and none goes on before all have written. Raises CheckpointError on all of them."""
    target = _target(folder, checkpoint)
    staging, (rank, ranks) = _staging(target), rank_of_world()
    _together(target, (lambda: _begin(staging)) if rank == 0 else None)

    def write_part() -> dict[str, str]:
        file = staging / shard_name(rank, ranks)
        write_shard(file, stretches)
        # here and not by the first rank for all: the others would wait for it, longer than collectives may take
        return _settle([file])

    parts = _together(target, write_part)

    def finish() -> None:
        _commit(staging, target, parts | _write_whole(staging, checkpoint))

    _together(target, finish if rank == 0 else None)
    return target


def _together(target: Path, work: Callable[[], dict[str, str] | None] | None) -> dict[str, str]:
    """One phase on all ranks: what `work` returned on any of them. An error of any of them ends it everywhere."""
    own: Exception | None = None
    made: dict[str, str] | None = None
    try:
        if work is not None:
            made = work()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        own = error
    ranks = gather_lists([("" if own is None else f"rank {rank_of_world()[0]}: {own}", made or {})])
    told = [text for text, _ in ranks if text]
    if told:
        barrier()
        raise _failed(target, RuntimeError("; ".join(told))) from own
    return {name: digest for _, digests in ranks for name, digest in digests.items()}


def _target(folder: Path, checkpoint: Checkpoint) -> Path:
    return folder / _name(checkpoint.state["step"])


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.writing")


def _begin(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)


def _write_whole(staging: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """What is not in shards; as `_settle`."""
    weights = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.weights.items()}
    save_file(weights, staging / "weights.safetensors")
    torch.save(checkpoint.optimizer, staging / "optimizer.pt")
    (staging / "state.json").write_text(json.dumps(checkpoint.state, indent=1))
    lines = [json.dumps(sample_to_json(sample)) for sample in checkpoint.pending]
    (staging / "pending.jsonl").write_text("".join(line + "\n" for line in lines))
    return _settle([staging / name for name in ("weights.safetensors", "optimizer.pt", "state.json", "pending.jsonl")])


def _settle(files: Iterable[Path]) -> dict[str, str]:
    """Force files to disk; their sha256 by name."""
    digests = {}
    for file in files:
        _fsync(file)
        digests[file.name] = _sha256(file)
    return digests


def _commit(staging: Path, target: Path, digests: Mapping[str, str]) -> None:
    """Make a whole checkpoint of files that are on disk. A kill leaves the earlier one of this step or the new one,
    the earlier perhaps where `recover` finds it."""
    (staging / MANIFEST).write_text(json.dumps(dict(sorted(digests.items())), indent=1))
    _fsync(staging / MANIFEST)
    _fsync(staging)
    earlier = _earlier(target)
    # The earlier one is not kept in place of the new one, as it need not be the same: it may be damaged, or lack the
    # samples that a stopped run has of the next step.
    if target.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        os.replace(target, earlier)
    os.replace(staging, target)
    _fsync(target.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def _earlier(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def recover(folder: Path) -> None:
    """Mend what a kill left while a step was written again. On one rank, before any of them looks for checkpoints."""
    for earlier in folder.glob(".step-*.old"):
        target = folder / earlier.name.removeprefix(".").removesuffix(".old")
        if target.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            os.replace(earlier, target)


def _failed(target: Path, error: Exception) -> CheckpointError:
    folder = target.parent
    shutil.rmtree(_staging(target), ignore_errors=True)
    # torch and safetensors wrap a full disk in errors of their own
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    return CheckpointError(
        f"checkpoint {target} could not be written ({error}; {free / 2**20:,.0f} MiB free there). Earlier "
        f"checkpoints are whole: free some space and start the same command again to resume"
    )


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
        shards=tuple(sorted(path.glob(PATTERN))),
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


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints of steps after `step`, from which a run goes on: they are not to be counted among its own,
    nor to be found by a later start. Returns their new paths. On one rank, when none reads them any more."""
    moved = []
    for path in list_checkpoints(folder):
        if path.name > _name(step):
            # one that was set aside before is kept too: nobody has looked at it yet
            names = (f"damaged-{path.name}" + (f".{number}" if number else "") for number in count())
            moved.append(next(folder / name for name in names if not (folder / name).exists()))
            os.replace(path, moved[-1])
    return moved


def prune(folder: Path, keep_last: int, best_step: int | None, step: int) -> None:
    """Remove all but the newest `keep_last` checkpoints and the best one, of those up to `step`, which was just
    written: newer ones are of no use to this run, and not its to remove."""
    ours = [path for path in list_checkpoints(folder) if path.name <= _name(step)]
    for path in ours[:-keep_last]:
        if best_step is None or path.name != _name(best_step):
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
