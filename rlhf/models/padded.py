"""The plain path beside the packed one: every sequence with its own prompt, padded to the longest. The oracle of the tests."""

import torch
from torch import Tensor, nn

from rlhf.models.packing import PackedBatch


def padded_hidden_states(body: nn.Module, batch: PackedBatch) -> Tensor:
    """Hidden states (N, D) that predict the batch's targets, from a right-padded forward with the model's own attention.

    The mask comes from lengths, never from token ids. An empty batch gives one dummy hidden state.
    """
    device = batch.input_ids_T.device
    rows = [sequence.prompt_ids + sequence.completion_ids[:-1] for sequence in batch.sequences] or [(0,)]
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    output = body(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    flat = output.last_hidden_state.reshape(len(rows) * width, -1)
    picked = [
        index * width + len(sequence.prompt_ids) - 1 + position
        for index, sequence in enumerate(batch.sequences)
        for position in range(len(sequence.completion_ids))
    ]
    if not picked:
        return flat[:1]
    return flat.index_select(0, torch.tensor(picked, device=device))
