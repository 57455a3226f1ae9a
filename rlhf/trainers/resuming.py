"""Where a run goes on: the newest whole checkpoint, read into the learner and the data, and written from them."""

import math
from typing import Any

from accelerate import Accelerator

from rlhf.config.loading import to_dict
from rlhf.config.recipe import RecipeConfig
from rlhf.data.order import PromptStream
from rlhf.data.types import Sample
from rlhf.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    config_differences,
    newest_checkpoint,
    prune,
    save_checkpoint,
    save_sharded_checkpoint,
    set_aside_newer,
)
from rlhf.training.collectives import barrier, rank_of_world
from rlhf.training.learner import Learner
from rlhf.training.progress import ProgressDisplay
from rlhf.training.recorder import Recorder
from rlhf.training.run_folder import RunFolder
from rlhf.training.weights.shard_files import ShardError, ShardReader
from rlhf.training.weights.sharded_state import BoundState, load_stretches, stretches_of


def find_checkpoint(config: RecipeConfig, folder: RunFolder, progress: ProgressDisplay) -> Checkpoint | None:
    """The newest whole checkpoint, None where there is none; newer ones, which are damaged, are set aside. Collective.

    Raises CheckpointError where it was made with other settings, or where there are some and none is whole.
    """
    checkpoint, problems = newest_checkpoint(folder.checkpoints)
    for problem in problems:
        progress.message(f"WARNING: {problem}. An older checkpoint is used")
    if checkpoint is None:
        return None
    differences = config_differences(checkpoint.state["config"], to_dict(config))
    if differences:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.state['step']} in {folder.checkpoints} was made with other settings:\n"
            + "\n".join(differences)
            + "\nGo back to those settings, or choose another run.name"
        )
    barrier()  # no rank reads newer ones any more
    if rank_of_world()[0] == 0:
        for path in set_aside_newer(folder.checkpoints, checkpoint.state["step"]):
            progress.message(f"WARNING: what is left of it is kept as {path}: the run no longer needs it")
    progress.message(f"resuming {folder.path} after step {checkpoint.state['step']}")
    return checkpoint


def restore(
    checkpoint: Checkpoint, learner: Learner, stream: PromptStream, accelerator: Accelerator
) -> tuple[int, dict[int, list[Sample]]]:
    """(step, this rank's batches of later steps that were not learned from)."""
    state = checkpoint.state
    if state["world_size"] != accelerator.num_processes and checkpoint.pending:
        raise CheckpointError(
            f"the checkpoint holds samples of {state['world_size']} ranks that were not learned from, now there are "
            f"{accelerator.num_processes}: resume with {state['world_size']} ranks"
        )
    _load_weights(checkpoint, learner)
    learner.updates = state["updates"]
    learner.guard.skipped_in_row = state["skipped_in_row"]
    stream.load_state_dict(state["stream"])
    share = len(checkpoint.pending) // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    pending: dict[int, list[Sample]] = {}
    for later, sample in zip(state["pending_steps"][mine], checkpoint.pending[mine], strict=True):
        pending.setdefault(later, []).append(sample)
    return state["step"], pending


def _load_weights(checkpoint: Checkpoint, learner: Learner) -> None:
    shards = learner.state.shards()
    if bool(shards) != bool(checkpoint.shards):
        kept, now = ("in shards", "whole") if checkpoint.shards else ("whole", "in shards")
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.state['step']} has the weights {kept}, and this launch keeps them "
            f"{now}: resume with the configuration of Accelerate that the run was started with"
        )
    learner.state.load_tensors(checkpoint.weights)
    learner.state.load_optimizer(checkpoint.optimizer)
    if shards:
        reader = ShardReader(checkpoint.shards)
        try:
            for part, weights in shards.items():
                load_stretches(part, weights, reader)
        except (ShardError, BoundState) as error:
            raise CheckpointError(str(error)) from error


def save(
    config: RecipeConfig, folder: RunFolder, learner: Learner, stream: PromptStream, recorder: Recorder,
    step: int, pending: list[Sample], best: dict[str, float], own: dict[str, Any],
) -> None:  # fmt: skip
    accelerator = learner.accelerator
    value = _value_to_keep(config.checkpoint.keep_best, recorder)
    if value is not None and value >= best.get("value", -math.inf):
        best |= {"value": value, "step": step}
    optimizer, weights, shards = learner.state.optimizer(), learner.state.tensors(), learner.state.shards()
    state = {
        "step": step,
        "config": to_dict(config),
        "stream": stream.state_dict(),
        "updates": learner.updates,
        "skipped_in_row": learner.guard.skipped_in_row,
        "world_size": accelerator.num_processes,
        "best": best,
        **own,
    }
    checkpoint = Checkpoint(state, weights, optimizer, pending)
    if accelerator.is_main_process:
        folder.sync()
    if shards:
        stretches = (stretch for part, held in shards.items() for stretch in stretches_of(part, held))
        save_sharded_checkpoint(folder.checkpoints, checkpoint, stretches)
    elif accelerator.is_main_process:
        save_checkpoint(folder.checkpoints, checkpoint)
    if accelerator.is_main_process:
        prune(folder.checkpoints, config.checkpoint.keep_last, int(best["step"]) if best else None, step)
    accelerator.wait_for_everyone()


def _value_to_keep(metric: str | None, recorder: Recorder) -> float | None:
    """The metric that chooses the best checkpoint, None where this step has none."""
    if metric is None or metric in recorder.latest:
        return metric and recorder.latest[metric]
    # evaluations are rarer than checkpoints; but a name that none of them has is a mistake
    is_awaited = metric.startswith("evaluation/") and not any(n.startswith("evaluation/") for n in recorder.latest)
    if not is_awaited:
        known = ", ".join(sorted(recorder.latest))
        recorder.progress.message(f"WARNING: checkpoint.keep_best: there is no metric {metric!r}; there are {known}")
    return None
