"""How a trained policy orders pairs that it has not seen."""

from pathlib import Path

import torch

from rlhf.config.data import PreferencesConfig
from rlhf.config.model import ModelConfig
from rlhf.data.preference_source import load_preferences
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.models.packing import TrainingSequence, micro_batches, pack

LONGEST, TOKENS_PER_BATCH = 32, 2048
"""Completions that were cut off at 24 tokens get an end of turn, and may have other tokens than they were drawn as."""


def judge_pairs(model: str, reference: str, pairs: Path, beta: float) -> dict[str, float]:
    """Pairs whose chosen completion has the higher implicit reward, in per cent; the mean margin of these rewards; and
    the chosen ones' mean log-prob in nats."""
    source = load_preferences(PreferencesConfig(path=str(pairs)), load_tokenizer(ModelConfig(path=reference)), LONGEST)
    sequences = [
        TrainingSequence(sample.prompt.token_ids, sample.completion_ids)
        for index in range(len(source)) for sample in source[index]
    ]  # fmt: skip
    logp_P2, ref_P2 = (_sums(path, sequences).view(-1, 2) for path in (model, reference))
    margin_P = beta * ((logp_P2 - ref_P2)[:, 0] - (logp_P2 - ref_P2)[:, 1])
    return {
        "pairs right, %": 100 * float((margin_P > 0).double().mean()), "margin": float(margin_P.mean()),
        "log-prob of chosen, nats": float(logp_P2[:, 0].mean()),
    }  # fmt: skip


@torch.no_grad()
def _sums(path: str, sequences: list[TrainingSequence]) -> torch.Tensor:
    """Summed log-probs, (S,) float64."""
    policy = load_policy(ModelConfig(path=path, dtype="float32")).eval()
    sums_S = torch.zeros(len(sequences), dtype=torch.float64)
    for members in micro_batches(sequences, TOKENS_PER_BATCH):
        packed = pack([sequences[index] for index in members])
        zeros_M = torch.zeros(len(members), dtype=torch.float64)
        sums_S[list(members)] = zeros_M.index_add(0, packed.sequence_N, policy(packed).logp_N.double())
    return sums_S
