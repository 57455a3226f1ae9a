"""Decode-time guidance: the guiding critic's values of the reference's likely tokens, added to its logits as they are
drawn, and what of the draws it answers for."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.mirror_descent import guided_logits, mirror_target, with_rest
from rlhf.training.critics.optimistic import OptimisticCritic
from rlhf.training.critics.transitions import REFERENCE_LOGPS, Transitions


class CriticGuidance:
    """A `Guidance` of engines: softmax(result / temperature) is pi_ref exp(kappa A) over all tokens, with A of the
    `candidates` likeliest ones as `mirror_target` has it, and 0 for the others.

    `temperature`: the one that rollouts are drawn at, and that pi_ref is of. Drawn at another, the result is that of a
    policy that was trained at this one. Reads the frozen critic as it is: an exchange changes what it gives.
    """

    def __init__(self, critic: OptimisticCritic, kappa: float, candidates: int, temperature: float) -> None:
        self.critic, self.kappa, self.candidates, self.temperature = critic, kappa, candidates, temperature

    @torch.no_grad()
    def __call__(self, hidden_BD: Tensor, logits_BV: Tensor) -> Tensor:
        logits_BV = logits_BV.float()
        likely = (logits_BV / self.temperature).topk(self.candidates, dim=-1)
        q_Bm = self.critic.candidate_values(hidden_BD.float(), likely.indices, likely.values)
        return guided_logits(logits_BV, likely.indices, q_Bm, self.kappa, self.temperature)


class GuidedReading(NamedTuple):
    """Of the tokens that were taken, (A,): log-probs under the guided policy and by the engine that drew them, and
    KL(guided || reference) of the states before them, in nats."""

    logp_A: Tensor
    engine_logp_A: Tensor
    kl_A: Tensor


@torch.no_grad()
def read_guided(critic: OptimisticCritic, batch: Transitions, kappa: float) -> GuidedReading:
    """From what the reference made of the completions, on the CPU: exact but for the half precision of what is kept."""
    logp_Sm, id_Sm = batch.candidate_logp_Sm, batch.candidate_id_Sm
    # the taken token has the first place; if it is not among the likely ones too, it was no candidate when it was drawn
    is_likely_S = logp_Sm[:, 1:].isneginf().any(-1)
    logp_Sm = logp_Sm.clone()
    logp_Sm[:, 0] = torch.where(is_likely_S, logp_Sm[:, 0], -torch.inf)
    base_SC = with_rest(logp_Sm)
    target_SC = mirror_target(base_SC, critic.candidate_values(batch.state_SD, id_Sm, logp_Sm), kappa)
    raised_SC = (target_SC - base_SC).masked_fill(base_SC.isneginf(), 0.0)
    raised_S = torch.where(is_likely_S, raised_SC[:, 0], raised_SC[:, -1]).cpu()
    kl_S = (target_SC.exp() * raised_SC).sum(-1).cpu()
    view, episodes = batch.view, batch.episodes
    lengths_B = torch.tensor([len(episode.token_ids) for episode in episodes])
    place_A = (lengths_B.cumsum(0) - lengths_B)[view.sequence_A] + view.start_A
    reference_A = torch.cat([torch.from_numpy(episode.extra[REFERENCE_LOGPS]) for episode in episodes])[place_A]
    engine_A = torch.cat([torch.from_numpy(episode.logps) for episode in episodes])[place_A]
    return GuidedReading(reference_A + raised_S[view.state_A], engine_A, kl_S[view.state_A])
