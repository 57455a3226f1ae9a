"""Sequences to one row of tokens without padding; a prompt that several completions share is forwarded once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from rlhf.models.attention_plan import AttentionPlan, Segment, attention_plan
from rlhf.models.micro_batches import even_out, forwarded_tokens, micro_batches
from rlhf.models.sequences import TrainingSequence

__all__ = [
    "PackedBatch",
    "TrainingSequence",
    "even_out",
    "forwarded_tokens",
    "micro_batches",
    "pack",
]


@dataclass(frozen=True)
class PackedBatch:
    """T forwarded tokens and N target tokens, the latter in order of sequence, then position.

    `hidden_index_N[n]` is the forwarded token whose final hidden state predicts `target_N[n]`, and `sequence_N[n]` the
    index of its sequence in `sequences`. `lengths` are the sequences' numbers of targets: completion tokens, and of
    dialogues the assistant's.
    The plain padded path rebuilds its batch from `sequences`.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    hidden_index_N: torch.Tensor
    target_N: torch.Tensor
    sequence_N: torch.Tensor
    lengths: tuple[int, ...]
    plan: AttentionPlan
    sequences: tuple[TrainingSequence, ...]

    @property
    def tokens(self) -> int:
        return self.input_ids_T.shape[0]

    @property
    def targets(self) -> int:
        return self.target_N.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """A copy with its tensors on `device`."""
        names = ("input_ids_T", "position_ids_T", "hidden_index_N", "target_N", "sequence_N")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, plan=self.plan.to(device), **moved)


def pack(sequences: Sequence[TrainingSequence], *, share_prompts: bool = True) -> PackedBatch:
    """The packed batch of `sequences`.

    Of a completion, what comes before its last target is forwarded: the rest predicts nothing. Sequences with an empty
    completion have no targets and are not forwarded. No targets at all give a batch of one dummy token with N = 0,
    which still runs the whole model: every rank takes part in every collective operation of a sharded forward and
    backward pass.
    """
    row = _Row()
    # target positions by sequence; filled group by group, read in order of sequence
    predicted_from: list[list[int]] = [[] for _ in sequences]
    for prompt_ids, members in _groups(sequences, share_prompts):
        if len(members) == 1:
            sequence = sequences[members[0]]
            start = row.append(prompt_ids + sequence.completion_ids[: sequence.forwarded], position=0)
            first = start + len(prompt_ids) - 1
            predicted_from[members[0]] = [first + position for position in sequence.target_positions]
            continue
        prompt_start = row.append(prompt_ids, position=0)
        last = prompt_start + len(prompt_ids) - 1
        for index in members:
            sequence = sequences[index]
            own = sequence.completion_ids[: sequence.forwarded]
            start = row.append(own, position=len(prompt_ids), prefix=(prompt_start, len(prompt_ids)))
            predicted_from[index] = [start + p - 1 if p else last for p in sequence.target_positions]
    if not row.input_ids:
        row.append((0,), position=0)
    lengths = tuple(sequence.targets for sequence in sequences)
    targets = [s.completion_ids[position] for s in sequences for position in s.target_positions]
    return PackedBatch(
        input_ids_T=torch.tensor(row.input_ids, dtype=torch.long),
        position_ids_T=torch.tensor(row.position_ids, dtype=torch.long),
        hidden_index_N=torch.tensor([t for positions in predicted_from for t in positions], dtype=torch.long),
        target_N=torch.tensor(targets, dtype=torch.long),
        sequence_N=torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(lengths, dtype=torch.long)),
        lengths=lengths,
        plan=attention_plan(row.segments, len(row.input_ids)),
        sequences=tuple(sequences),
    )


def _groups(sequences: Sequence[TrainingSequence], share_prompts: bool) -> list[tuple[tuple[int, ...], list[int]]]:
    """(prompt, indices of its sequences that have targets), in order of first appearance."""
    present = [index for index, sequence in enumerate(sequences) if sequence.completion_ids]
    if not share_prompts:
        return [(sequences[index].prompt_ids, [index]) for index in present]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in present:
        groups.setdefault(sequences[index].prompt_ids, []).append(index)
    return list(groups.items())


class _Row:
    """The row while it grows."""

    def __init__(self) -> None:
        self.input_ids: list[int] = []
        self.position_ids: list[int] = []
        self.segments: list[Segment] = []

    def append(self, ids: tuple[int, ...], *, position: int, prefix: tuple[int, int] = (0, 0)) -> int:
        """Where the segment starts; no ids, no segment."""
        start = len(self.input_ids)
        if ids:
            self.input_ids += ids
            self.position_ids += range(position, position + len(ids))
            self.segments.append(Segment(start, len(ids), *prefix))
        return start
