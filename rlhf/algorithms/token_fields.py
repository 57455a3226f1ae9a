"""What a loss knows about each completion token of a micro-batch, besides the log-prob that the policy computes."""

from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenFields:
    """Constants per token (N of them, sequence after sequence) of one micro-batch of S sequences.

    `weight_N` holds the step's denominator (aggregation.py). `old_logp_N` is None where the batch is used once: the old
    policy is then the current one. `reference_logp_N` is None without a KL term. `candidate_id_Nm`, `target_logp_NC`:
    where a whole distribution is learned, over these tokens and the rest of the vocabulary (C = m + 1).
    """

    advantage_N: Tensor
    weight_N: Tensor
    engine_logp_N: Tensor
    sequence_N: Tensor
    sequences: int
    old_logp_N: Tensor | None = None
    reference_logp_N: Tensor | None = None
    candidate_id_Nm: Tensor | None = None
    target_logp_NC: Tensor | None = None

    def __getitem__(self, rows: slice) -> "TokenFields":
        """The same fields of some tokens."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor[rows] for name, tensor in tensors.items()})
