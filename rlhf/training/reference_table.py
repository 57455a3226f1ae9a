"""Log-probs of a preference dataset under the starting checkpoint, made once and kept in the run's folder.

Before the first step the policy is the reference: no second model is loaded for it, then or later.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file

from rlhf.data.preference_source import PreferenceSource
from rlhf.training.batch import TrainingSample
from rlhf.training.checkpoint import CheckpointError
from rlhf.training.collectives import gather_lists
from rlhf.training.learner import Learner

PAIRS_AT_A_TIME = 64


class ReferenceTable:
    """`logps`: by (prompt id, 0 for the chosen one and 1 for the rejected one), one number a token."""

    def __init__(self, logps: Mapping[tuple[str, int], tuple[float, ...]], file: Path) -> None:
        self._logps, self._file = logps, file

    def look_up(self, samples: Sequence[TrainingSample]) -> list[tuple[float, ...]]:
        """Raises CheckpointError for a pair that is not in the table."""
        try:
            return [self._logps[sample.sample.prompt.id, sample.sample.index % 2] for sample in samples]
        except KeyError as error:
            raise CheckpointError(
                f"{self._file} has no log-probs of the pair {error.args[0][0]!r}: the run was begun with fewer steps, "
                "and its starting checkpoint is no longer loaded; set algorithm.reference_logps to live"
            ) from error


def make_table(source: PreferenceSource, indices: Sequence[int], learner: Learner, file: Path) -> ReferenceTable:
    """The table of the pairs at `indices`, written to `file`. Collective; call it before the first optimizer step."""
    rank, world_size = learner.accelerator.process_index, learner.accelerator.num_processes
    mine = indices[rank::world_size]
    # every rank makes the same number of calls, though the last may be empty
    calls = range(0, -(-len(indices) // world_size), PAIRS_AT_A_TIME)
    console = Console(stderr=True)
    shown = track(calls, "reference log-probs", console=console, disable=rank > 0 or not console.is_terminal)
    found = []
    for start in shown:
        part = [source[index] for index in mine[start : start + PAIRS_AT_A_TIME]]
        samples = [TrainingSample(sample, 0.0) for pair in part for sample in pair]
        keys = [(sample.sample.prompt.id, sample.sample.index) for sample in samples]
        found += list(zip(keys, learner.logps(samples), strict=True))
    rows = sorted(gather_lists(found))
    if learner.accelerator.is_main_process:
        _write(rows, source.fingerprint, file)
    learner.accelerator.wait_for_everyone()
    return ReferenceTable(dict(rows), file)


def read_table(source: PreferenceSource, file: Path) -> ReferenceTable:
    """The table that an earlier start of this run has written. Raises CheckpointError where it is of other pairs."""
    with safe_open(file, "pt") as tensors:
        if (tensors.metadata() or {}).get("fingerprint") != source.fingerprint:
            raise CheckpointError(
                f"{file} is of other pairs than those of {source.name}: restore the data that the run began with, or "
                "choose another run.name"
            )
        logps_N, lengths_S = tensors.get_tensor("logps"), tensors.get_tensor("lengths").tolist()
        ids = bytes(tensors.get_tensor("ids").tolist()).decode().split("\n")
    keys = [(name, side) for name in ids for side in (0, 1)]
    values = [tuple(part.tolist()) for part in logps_N.split(lengths_S)]
    return ReferenceTable(dict(zip(keys, values, strict=True)), file)


def _write(rows: Sequence[tuple[tuple[str, int], tuple[float, ...]]], fingerprint: str, file: Path) -> None:
    staging = file.with_suffix(".writing")
    tensors = {
        "logps": torch.tensor([value for _, values in rows for value in values], dtype=torch.float32),
        "lengths": torch.tensor([len(values) for _, values in rows]),
        "ids": torch.tensor(list("\n".join(key[0] for key, _ in rows[::2]).encode()), dtype=torch.uint8),
    }
    save_file(tensors, staging, metadata={"fingerprint": fingerprint})
    staging.replace(file)
