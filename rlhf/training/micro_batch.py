"""From samples to what one forward pass takes: a packed batch, and a value for each of its target tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf.algorithms.aggregation import Denominator, StepTotals, token_weight
from rlhf.algorithms.token_fields import TokenFields
from rlhf.models.packing import PackedBatch, pack
from rlhf.models.policy import AtHead
from rlhf.training.algorithm import Objective, ScreeningAlgorithm
from rlhf.training.batch import TrainingSample


def micro_batch(
    samples: Sequence[TrainingSample], totals: StepTotals, denominator: Denominator,
    old_logps: Mapping[int, Tensor] | None, max_tokens: int, device: torch.device,
) -> tuple[PackedBatch, TokenFields]:  # fmt: skip
    """`totals`: of the whole optimizer step, which its micro-batches share. `old_logps` by id() of the sample, where
    the ratio is not taken against the engine's. `max_tokens`: the longest completion there may be."""
    packed = pack([sample.sequence for sample in samples]).to(device)
    lengths = torch.tensor([sample.length for sample in samples], dtype=torch.long)

    def per_token(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths).to(device)

    def flat(values: list[tuple[float, ...]]) -> Tensor:
        return torch.tensor([value for row in values for value in row], dtype=torch.float32, device=device)

    references = [sample.reference_logps for sample in samples]
    matches = [sample.match for sample in samples if sample.match is not None]
    fields = TokenFields(
        advantage_N=flat([sample.token_advantages for sample in samples]),
        weight_N=per_token([token_weight(sample.length, totals, denominator, max_tokens) for sample in samples]),
        engine_logp_N=flat([sample.sample.own(sample.sample.logps) for sample in samples]),
        sequence_N=packed.sequence_N,
        sequences=len(samples),
        old_logp_N=flat([tuple(old_logps[id(sample)].tolist()) for sample in samples]) if old_logps else None,
        reference_logp_N=flat(references) if all(r is not None for r in references) else None,
        candidate_id_Nm=torch.cat([m.candidate_id_Tm for m in matches]).to(device) if matches else None,
        target_logp_NC=torch.cat([m.target_logp_TC for m in matches]).to(device) if matches else None,
    )
    return packed, fields


def screened(algorithm: ScreeningAlgorithm, fields: TokenFields, packed: PackedBatch) -> AtHead:
    """The algorithm's objective with the weights that it gives tokens when it sees what enters the head."""

    def at_head(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Objective:
        return algorithm.objective(algorithm.screen(fields, hidden_ND, weight_VD, bias_V, packed.target_N))

    return at_head
