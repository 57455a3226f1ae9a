"""What a screened optimizer step leaves behind: how many tokens were rejected and why, and how far the policy moved."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.algorithms.aggregate_steps import step_shifts
from rlhf.algorithms.curvature import TokenShifts
from rlhf.algorithms.kl import kl_estimate
from rlhf.algorithms.token_fields import TokenFields
from rlhf.algorithms.trust_region import TrustRegion, rejections
from rlhf.models.head import HeadSettings
from rlhf.training.collectives import gather_lists, sum_numbers

BATCH_TOKENS = 512
"""Tokens of a rank at which the step of the whole batch is judged."""
QUANTILE_TOKENS = 4096
"""Tokens of a rank that quantiles and rank correlations are taken over, at even distances."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
RARE, LIKELY = 0.1, 0.9
"""Borders of the buckets of a token's probability."""


@dataclass
class ScreenedStep:
    """The micro-batches of one optimizer step, on the CPU but for hidden states, which are kept where it is measured.
    """

    keeps_hidden: bool
    weight_before: Tensor | None = None
    policy: list[Tensor] = field(default_factory=list)
    objective: list[Tensor] = field(default_factory=list)
    kappa: list[Tensor] = field(default_factory=list)
    logp: list[Tensor] = field(default_factory=list)
    accepted: list[Tensor] = field(default_factory=list)
    advantage: list[Tensor] = field(default_factory=list)
    reasons: dict[str, float] = field(default_factory=dict)
    sequences_rejected: int = 0
    largest_factor: float = 1.0
    token_ids: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)

    def add(
        self, shifts: TokenShifts, fields: TokenFields, accepted_N: Tensor, hidden_ND: Tensor, actions_N: Tensor,
        region: TrustRegion,
    ) -> None:  # fmt: skip
        """One micro-batch."""
        self.policy.append(shifts.policy_N.float().cpu())
        self.objective.append(shifts.objective_N.float().cpu())
        kappa_N3 = torch.stack([shifts.kappa_policy_N, shifts.kappa_first_N, shifts.kappa_second_N], 1)
        self.kappa.append(kappa_N3.double().cpu())
        self.logp.append(shifts.logp_N.float().cpu())
        self.accepted.append(accepted_N.cpu())
        self.advantage.append(fields.advantage_N.cpu())
        self.token_ids.append(actions_N.cpu())
        found = rejections(shifts, region)._asdict()
        for name, mask_N in found.items():
            self.reasons[name] = self.reasons.get(name, 0.0) + float((mask_N & ~accepted_N).sum())
        zeros_S = torch.zeros(fields.sequences, device=accepted_N.device)
        all_S = zeros_S.index_add(0, fields.sequence_N, torch.ones_like(fields.weight_N))
        left_S = zeros_S.index_add(0, fields.sequence_N, accepted_N.to(zeros_S.dtype))
        self.sequences_rejected += int(((left_S == 0) & (all_S > 0)).sum())
        self.largest_factor = max([self.largest_factor, *(all_S / left_S)[left_S > 0].tolist()])
        if self.keeps_hidden:
            self.hidden.append(hidden_ND)

    def counts(self) -> dict[str, float]:
        """Sums of this rank: tokens, rejected ones by reason, by the sign of the advantage and by probability."""
        rejected = ~_cat(self.accepted, torch.bool)
        advantage, probability = _cat(self.advantage), _cat(self.logp).exp()
        parts = {
            "positive": advantage > 0, "negative": advantage < 0, "rare": probability < RARE,
            "middle": (probability >= RARE) & (probability <= LIKELY), "likely": probability > LIKELY,
        }  # fmt: skip
        counts = {"tokens": float(len(rejected)), "rejected": float(rejected.sum())}
        for name, mask in parts.items():
            counts[f"tokens_{name}"] = float(mask.sum())
            counts[f"rejected_{name}"] = float((mask & rejected).sum())
        counts |= {f"reason_{name.removesuffix('_N')}": count for name, count in self.reasons.items()}
        return counts | {"sequences_rejected": float(self.sequences_rejected)}

    def token_counts(self) -> list[tuple[int, int, int]]:
        """(token id, how often it was looked at, how often rejected) on this rank."""
        ids, rejected = _cat(self.token_ids, torch.long), ~_cat(self.accepted, torch.bool)
        tokens, place, counts = ids.unique(return_inverse=True, return_counts=True)
        lost = torch.zeros_like(counts).index_add(0, place, rejected.long())
        return list(zip(tokens.tolist(), counts.tolist(), lost.tolist(), strict=True))

    def kappas(self, limit: int) -> list[tuple[float, float, float]]:
        """lr-free coefficients of up to `limit` tokens."""
        kappa = torch.cat(self.kappa) if self.kappa else torch.empty(0, 3)
        return [tuple(row) for row in kappa[_spread(len(kappa), limit)].tolist()]

    def measured(
        self, logp_after_N: Tensor, step_VD: Tensor, head: HeadSettings, device: torch.device
    ) -> dict[str, float]:
        """The step as it was, beside what was predicted: `capo/batch_*` are its shifts by the head's real change, where
        nothing else had moved; `capo/kl_measured` is the k3 estimate of KL(old || new) of the whole model."""
        before, policy = _cat(self.logp), _cat(self.policy)
        moved = kl_estimate(before, logp_after_N.float(), "k3")
        places = _spread(len(moved), QUANTILE_TOKENS)
        pairs = gather_lists(list(zip(policy[places].tolist(), moved[places].tolist(), strict=True)))
        sums = {"moved": float(moved.double().sum()), "tokens": float(len(moved))}
        if self.hidden and len(moved):
            hidden = torch.cat(self.hidden)
            actions = torch.cat(self.token_ids).to(hidden.device)
            chosen = _spread(len(hidden), BATCH_TOKENS).to(hidden.device)
            advantage = _cat(self.advantage).to(hidden.device)[chosen]
            shifts = step_shifts(
                hidden[chosen], self.weight_before, actions[chosen], advantage, step_VD, temperature=head.temperature,
                logit_softcap=head.logit_softcap, logit_scale=head.logit_scale,
            )  # fmt: skip
            sums |= {
                "judged": float(len(chosen)),
                "objective": float(shifts.objective_N.double().sum()),
                "sampled": float(shifts.sampled_policy_N.double().sum()),
                "kl": float(shifts.kl_N.double().sum()),
            }
        names = ("moved", "tokens", "judged", "objective", "sampled", "kl")
        total = sum_numbers({name: sums.get(name, 0.0) for name in names}, device)
        judged = max(1.0, total["judged"])
        return {
            "capo/kl_measured": total["moved"] / max(1.0, total["tokens"]),
            "capo/predicted_measured_spearman": spearman(torch.tensor(pairs)) if len(pairs) > 2 else float("nan"),
            "capo/batch_objective_shift": total["objective"] / judged,
            "capo/batch_policy_shift": total["sampled"] / judged,
            "capo/batch_kl": total["kl"] / judged,
        }


def step_metrics(step: ScreenedStep, counts: dict[str, float], device: torch.device) -> dict[str, float]:
    """Shares and quantiles of one optimizer step over all ranks, from the summed `counts`."""
    tokens = max(1.0, counts["tokens"])
    metrics = {"capo/reject_share": counts["rejected"] / tokens}
    metrics["capo/sequences_rejected"] = counts["sequences_rejected"]
    metrics |= {
        f"capo/reject_{name.removeprefix('reason_')}_share": count / tokens
        for name, count in counts.items() if name.startswith("reason_")
    }  # fmt: skip
    for part in ("positive", "negative", "rare", "middle", "likely"):
        metrics[f"capo/reject_{part}_share"] = counts[f"rejected_{part}"] / max(1.0, counts[f"tokens_{part}"])
    places = _spread(len(_cat(step.policy)), QUANTILE_TOKENS)
    columns = (_cat(step.policy), _cat(step.objective).abs(), _cat(step.accepted, torch.bool))
    rows = gather_lists(list(zip(*(column[places].tolist() for column in columns), strict=True)))
    table = torch.tensor([row for row in rows if all(map(_is_finite, row[:2]))] or [[0.0, 0.0, 1.0]])
    for index, name in enumerate(("policy_shift", "objective_shift_size")):
        for when, values in (("", table[:, index]), ("_accepted", table[table[:, 2] > 0, index])):
            if len(values):
                metrics |= {f"capo/{name}{when}_{q}": float(values.quantile(share)) for q, share in QUANTILES.items()}
                metrics[f"capo/{name}{when}_max"] = float(values.max())
    metrics["capo/largest_factor"] = max(gather_lists([step.largest_factor]))
    return metrics


def region_metrics(region: TrustRegion) -> dict[str, float]:
    """The thresholds in force: calibration changes them."""
    return {"capo/max_policy_shift": region.delta_f, "capo/max_objective_shift": region.delta_h_high}


def spearman(pairs_N2: Tensor) -> float:
    """Spearman's rank correlation; ties in order of appearance. NaN where a column is constant."""
    ranks = pairs_N2.argsort(dim=0, stable=True).argsort(dim=0, stable=True).double()
    if any(len(column.unique()) == 1 for column in pairs_N2.t()):
        return float("nan")
    return float(torch.corrcoef(ranks.t())[0, 1])


def _spread(count: int, limit: int) -> Tensor:
    """Up to `limit` positions of `count`, at even distances."""
    return torch.arange(count) if count <= limit else torch.linspace(0, count - 1, limit).round().long()


def _cat(parts: list[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)


def _is_finite(value: float) -> bool:
    return value - value == 0
