"""Packed batches: no padding, and each prompt forwarded once for all of its completions.

The T forwarded tokens are all prompts, each followed by its completions without their last token (which predicts nothing).
The N targets are all completion tokens, sequence after sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlhf.models.attention import AttentionPlan, build_plan


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """A prompt and one completion, as token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch. `hidden_index_N[n]` is the forwarded token whose hidden state predicts `target_N[n]`.

    A batch of no sequences holds one dummy token and no targets: it still runs the model, as sharded training needs.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    hidden_index_N: Tensor
    target_N: Tensor
    sequence_N: Tensor
    plan: AttentionPlan
    sequences: tuple[TrainingSequence, ...]

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "sequences"}
        return replace(self, **moved)


def pack(sequences: Sequence[TrainingSequence], *, share_prompts: bool = True) -> PackedBatch:
    """Lay sequences out for one forward. Raises ValueError for an empty prompt: nothing would predict the first token."""
    ids: list[int] = []
    positions: list[int] = []
    prompt_spans: list[tuple[int, int]] = []
    known: dict[tuple[int, ...], tuple[int, int]] = {}
    prompt_of: list[tuple[int, int]] = []
    for sequence in sequences:
        if not sequence.prompt_ids:
            raise ValueError("a sequence has an empty prompt: the first completion token needs a token before it")
        span = known.get(sequence.prompt_ids) if share_prompts else None
        if span is None:
            span = (len(ids), len(ids) + len(sequence.prompt_ids))
            ids.extend(sequence.prompt_ids)
            positions.extend(range(len(sequence.prompt_ids)))
            prompt_spans.append(span)
            known[sequence.prompt_ids] = span
        prompt_of.append(span)
    completion_spans: list[tuple[int, int]] = []
    hidden_index: list[int] = []
    targets: list[int] = []
    sequence_of: list[int] = []
    for index, (sequence, (start, end)) in enumerate(zip(sequences, prompt_of, strict=True)):
        completion = sequence.completion_ids
        first = len(ids)
        ids.extend(completion[:-1])
        positions.extend(range(end - start, end - start + max(0, len(completion) - 1)))
        completion_spans.append((first, len(ids)))
        if completion:
            hidden_index.append(end - 1)
            hidden_index.extend(range(first, len(ids)))
        targets.extend(completion)
        sequence_of.extend([index] * len(completion))
    if not ids:
        ids, positions, prompt_spans = [0], [0], [(0, 1)]
    return PackedBatch(
        input_ids_T=torch.tensor(ids),
        position_ids_T=torch.tensor(positions),
        hidden_index_N=torch.tensor(hidden_index, dtype=torch.long),
        target_N=torch.tensor(targets, dtype=torch.long),
        sequence_N=torch.tensor(sequence_of, dtype=torch.long),
        plan=build_plan(len(ids), prompt_spans, list(zip(prompt_of, completion_spans, strict=True))),
        sequences=tuple(sequences),
    )


def micro_batches(sequences: Sequence[TrainingSequence], token_budget: int) -> list[list[int]]:
    """Indices of `sequences` in micro-batches of at most `token_budget` forwarded tokens.

    The samples of a prompt stay together where they fit (the prompt is then forwarded once); a larger group is split and
    its prompt repeated; a single sequence above the budget gets a micro-batch of its own. Longest groups first, so that
    micro-batches fill evenly; deterministic.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(sequence.prompt_ids, []).append(index)
    chunks: list[tuple[int, list[int]]] = []
    for prompt_ids, members in groups.items():
        size, chunk = len(prompt_ids), []
        for index in sorted(members, key=lambda i: (len(sequences[i].completion_ids), i)):
            own = max(0, len(sequences[index].completion_ids) - 1)
            if chunk and size + own > token_budget:
                chunks.append((size, chunk))
                size, chunk = len(prompt_ids), []
            size, chunk = size + own, [*chunk, index]
        chunks.append((size, chunk))
    chunks.sort(key=lambda item: (-item[0], item[1]))
    batches: list[tuple[int, list[int]]] = []
    for size, chunk in chunks:
        place = next((i for i, (used, _) in enumerate(batches) if used + size <= token_budget), None)
        if place is None:
            batches.append((size, chunk))
        else:
            batches[place] = (batches[place][0] + size, batches[place][1] + chunk)
    return [sorted(members) for _, members in batches]


def even_out(batches: list[list[int]], count: int) -> list[list[int]]:
    """Append empty micro-batches until there are `count`: every rank must run the same number of forwards."""
    return batches + [[] for _ in range(count - len(batches))]
