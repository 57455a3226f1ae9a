"""What the reference policy makes of completions, from one forward pass: hidden states for a critic, log-probs for the
KL term, likely tokens as candidates."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from rlhf.models.packing import PackedBatch, TrainingSequence, pack
from rlhf.models.policy import Reading
from rlhf.training.even_batches import rank_micro_batches

Read = Callable[[PackedBatch, int], Reading]
"""`Policy.read` or `Policy.read_reference`: a packed batch, and how many candidates."""


class ReadCompletion(NamedTuple):
    """Of a completion of T tokens, in numpy. `state_RD` (T + 1, D): before each token and behind the last, float16.
    `logp_T`: float32. `candidate_id_Rm`, `candidate_logp_Rm` (T + 1, m): the taken token first, int32 and float32;
    None where none were asked for. Behind the last token nothing was taken, and place 0 holds that token again.
    """

    state_RD: np.ndarray
    logp_T: np.ndarray
    candidate_id_Rm: np.ndarray | None
    candidate_logp_Rm: np.ndarray | None


class ReferenceReader:
    """`candidates`: how many likely tokens of each state are kept, 0 for none. `token_budget`: of a forward pass.
    `is_sharded`: the reference is, so that its passes are collective.
    """

    def __init__(
        self, read: Read, *, token_budget: int, device: torch.device, candidates: int = 0, is_sharded: bool = False
    ) -> None:
        self.read, self.token_budget, self.device, self.candidates = read, token_budget, device, candidates
        self.is_sharded = is_sharded

    def __call__(self, sequences: Sequence[TrainingSequence]) -> list[ReadCompletion]:
        """Of sequences with at least one completion token, in order."""
        # one more token, so that the last one is forwarded; what it is, no state sees
        longer = [TrainingSequence(s.prompt_ids, (*s.completion_ids, s.completion_ids[-1])) for s in sequences]
        found: list[ReadCompletion | None] = [None] * len(longer)
        for members in rank_micro_batches(longer, self.token_budget, self.device, is_even=self.is_sharded):
            chosen = [longer[index] for index in members]
            reading = self.read(pack(chosen).to(self.device), self.candidates)
            sizes = [len(sequence.completion_ids) for sequence in chosen]
            states = reading.hidden_ND.half().cpu().split(sizes)
            logps = reading.logp_N.float().cpu().split(sizes)
            ids = logps_of = [None] * len(sizes)
            if reading.candidates is not None:
                ids = [part.int().numpy() for part in reading.candidates.id_Nm.cpu().split(sizes)]
                logps_of = [part.float().numpy() for part in reading.candidates.logp_Nm.cpu().split(sizes)]
            for place, index in enumerate(members):
                found[index] = ReadCompletion(
                    states[place].numpy(), logps[place][:-1].numpy(), ids[place], logps_of[place]
                )
        return found

