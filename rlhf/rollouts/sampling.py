"""Drawing tokens: random numbers that belong to (seed, position), put through the inverse cumulative distribution."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from rlhf.config.rollouts import SamplingConfig

# the inverse is looked up in two levels: first the block of tokens, then the token in its block. One pass over the
# vocabulary, and no float32 running sum over 10^5 tokens, whose rounding would swallow the unlikely ones
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Draw:
    """Tokens drawn for a batch: `token_B` (int64) and `logp_B` (float32), the log-prob each token was drawn with."""

    token_B: torch.Tensor
    logp_B: torch.Tensor


def uniforms(seed: int, count: int) -> np.ndarray:
    """The first `count` random numbers in [0, 1) of the sample with this seed, float64; number t decides token t.

    Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): number t is a function
    of (seed, t) alone, so no sample's draws depend on its neighbours, the batch size or how many tokens are asked for.
    """
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def uniform_stream(seed: int) -> Iterator[float]:
    """The numbers of `uniforms(seed, ...)` one by one, without end."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    while True:
        yield generator.random()


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: SamplingConfig) -> Draw:
    """One token a row from softmax(logits / temperature), truncated by top_k, then top_p, and renormalised.

    `logp_B` is the log-prob under exactly that distribution. Temperature 0 takes the most likely token and reports the
    log-prob at temperature 1 without truncation: the log-prob under the drawn distribution would be 0 and say nothing.
    `uniform_B`: float64 in [0, 1) (see `uniforms`). Rows with non-finite logits get a non-finite log-prob.
    """
    logits_BV = logits_BV.float()
    if sampling.temperature == 0:
        token_B = logits_BV.argmax(-1)
        return Draw(token_B, logits_BV.log_softmax(-1).gather(-1, token_B[:, None]).squeeze(-1))
    logits_BV = truncate(logits_BV / sampling.temperature, sampling.top_k, sampling.top_p)
    token_B, log_normaliser_B = draw_from_logits(logits_BV, uniform_B)
    return Draw(token_B, logits_BV.gather(-1, token_B[:, None]).squeeze(-1) - log_normaliser_B)


def draw_from_logits(logits_BV: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(token_B, log_normaliser_B): a token a row from softmax(logits), and what a logit minus is its log-prob.

    `logits_BV`: float32, -inf for tokens never to be drawn. `uniform_B`: float64 in [0, 1).
    """
    maximum_B1 = logits_BV.amax(-1, keepdim=True)
    weight_BV = (logits_BV - maximum_B1).exp_()
    token_B, total_B = _invert_cdf(weight_BV, uniform_B.to(weight_BV.device))
    return token_B, maximum_B1.squeeze(-1) + total_B.log().float()


def truncate(logits_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Logits with -inf outside the top_k most likely tokens (0: off) and, of those, the smallest set of mass >= top_p.

    Tokens tied with the last one of the top_k stay in. The most likely token always stays.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        smallest_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    if top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
        prob_BV = sorted_BV.double().softmax(-1)
        mass_before_BV = prob_BV.cumsum(-1) - prob_BV
        is_outside_BV = mass_before_BV >= top_p
        is_outside_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(is_outside_BV.scatter(-1, order_BV, is_outside_BV), -torch.inf)
    return logits_BV


def _invert_cdf(weight_BV: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(token_B, total_B): the first token whose running sum of weights exceeds uniform * total, and the total."""
    rows, vocabulary = weight_BV.shape
    block_BNK = F.pad(weight_BV, (0, -vocabulary % BLOCK)).view(rows, -1, BLOCK)
    mass_BN = block_BNK.sum(-1).double()
    cdf_BN = mass_BN.cumsum(-1)
    target_B1 = uniform_B[:, None] * cdf_BN[:, -1:]
    block_B1 = torch.searchsorted(cdf_BN, target_B1, right=True).clamp_(max=cdf_BN.shape[-1] - 1)
    rest_B1 = target_B1 - (cdf_BN.gather(-1, block_B1) - mass_BN.gather(-1, block_B1))
    within_BK = block_BNK[torch.arange(rows, device=weight_BV.device), block_B1.squeeze(-1)].double().cumsum(-1)
    # rounding may leave the rest at or beyond the block's own sum: then it is the block's last token of non-zero weight
    last_B = (within_BK < within_BK[:, -1:]).sum(-1)
    token_B = torch.minimum((within_BK <= rest_B1).sum(-1), last_B)
    return block_B1.squeeze(-1) * BLOCK + token_B, cdf_BN[:, -1]
