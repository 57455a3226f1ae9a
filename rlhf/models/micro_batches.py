"""Which sequences are forwarded together: micro-batches under a budget of tokens."""

from collections.abc import Sequence

from rlhf.models.sequences import TrainingSequence


def forwarded_tokens(sequences: Sequence[TrainingSequence]) -> int:
    """Tokens that `pack` forwards for `sequences`: each distinct prompt once, completions up to their last target."""
    present = [sequence for sequence in sequences if sequence.completion_ids]
    prompts = {sequence.prompt_ids for sequence in present}
    return sum(map(len, prompts)) + sum(sequence.forwarded for sequence in present)


def micro_batches(sequences: Sequence[TrainingSequence], token_budget: int) -> list[list[int]]:
    """Indices of `sequences` by micro-batch, each of at most `token_budget` forwarded tokens.

    Samples of a prompt stay together where they fit: a group that exceeds the budget is cut, and its prompt forwarded
    in each part. A sequence that alone exceeds the budget is a micro-batch of its own. Similar lengths go together, as
    they share the padded shapes of the attention. A pure function of its arguments; an empty list for no sequences.
    Raises ValueError for a budget below 1.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(sequence.prompt_ids, []).append(index)
    parts = [part for members in groups.values() for part in _cut(sequences, members, token_budget)]
    # first-fit decreasing: few micro-batches, long ones first so that running out of memory shows at once
    parts.sort(key=lambda part: (-part[0], part[1][0]))
    batches: list[tuple[int, list[int]]] = []
    for tokens, members in parts:
        for place, (filled, others) in enumerate(batches):
            if filled + tokens <= token_budget:
                batches[place] = (filled + tokens, others + members)
                break
        else:
            batches.append((tokens, list(members)))
    return [sorted(members) for _, members in batches]


def even_out(batches: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """`batches` followed by empty ones up to `count`, so that every rank runs the same number of forward passes.

    Raises ValueError where there are more than `count` already.
    """
    if len(batches) > count:
        raise ValueError(
            f"{len(batches)} micro-batches cannot be evened out to {count}: take the largest count of all ranks"
        )
    return [list(members) for members in batches] + [[] for _ in range(count - len(batches))]


def _cut(sequences: Sequence[TrainingSequence], members: list[int], token_budget: int) -> list[tuple[int, list[int]]]:
    """A group's members, longest first, as parts of (forwarded tokens, members) within the budget."""
    parts: list[tuple[int, list[int]]] = []
    # empty completions last: they forward no prompt, so one that is first in a part would hide the prompt of the next
    ordered = sorted(members, key=lambda i: (not sequences[i].completion_ids, -sequences[i].forwarded, i))
    for index in ordered:
        own, sequence = sequences[index].forwarded, sequences[index]
        prompt = len(sequence.prompt_ids) if sequence.completion_ids else 0
        if parts and parts[-1][0] + own <= token_budget:
            parts[-1] = (parts[-1][0] + own, [*parts[-1][1], index])
        else:
            parts.append((prompt + own, [index]))
    return parts
