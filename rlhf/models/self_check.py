"""Does the packed path compute this architecture? Asked once, when a policy is loaded."""

from typing import TYPE_CHECKING

import torch

from rlhf.models.packing import TrainingSequence, pack
from rlhf.models.plain_path import plain_statistics, using_attention

if TYPE_CHECKING:
    from rlhf.models.policy import Policy

# (largest, mean) difference of log-probs in nats that rounding explains
TOLERANCE = {torch.float64: (1e-8, 1e-9), torch.float32: (5e-3, 1e-3)}
# scattered ids are improbable tokens, whose log-probs of about -20 move most under half-precision rounding
HALF_TOLERANCE = (3.0, 0.5)
# lengths of (prompt, completions): shared prompts, a lone one, a completion of one token
SHAPES = ((5, (4, 2, 1)), (3, (6,)), (2, (3, 3)))


class UnsupportedArchitecture(ValueError):
    """The packed path and the model's own forward disagree; the message says by how much and what to do."""


def self_check(policy: "Policy") -> None:
    """Compare the packed path's log-probs with a log-softmax of the model's own logits on a tiny batch.

    Catches what the packed path does not know: unusual scaling of logits, state that runs from token to token,
    attention that does not go through transformers' interface. Does nothing for the padded path, which is the model's
    own forward. Raises UnsupportedArchitecture.
    """
    if policy.attention == "padded":
        return
    model = policy.causal_lm
    name = type(model).__name__
    advice = "set `attention: padded` in the model section"
    batch = pack(_sequences(policy.config.get_text_config().vocab_size)).to(model.device)
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            with using_attention(model, "eager"):
                expected = plain_statistics(model, batch, policy.head.temperature).logp_N
            try:
                packed = policy(batch).logp_N
            except (TypeError, ValueError) as error:
                raise UnsupportedArchitecture(f"{name} cannot run packed batches: {error}; {advice}") from error
    finally:
        policy.train(was_training)
    difference = (packed - expected).abs()
    largest, mean = TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    # written so that NaN fails
    if not (difference.max() <= largest and difference.mean() <= mean):
        raise UnsupportedArchitecture(
            f"{name} computes other log-probs packed than plain: they differ by up to {difference.max():.3g} nats, "
            f"{difference.mean():.3g} on average ({model.dtype} explains {largest:g} and {mean:g}). "
            "Either it scales its logits in a way that the streamed head does not know, or its attention is unusual; "
            f"{advice}"
        )


def _sequences(vocabulary: int) -> list[TrainingSequence]:
    """Fixed, scattered token ids."""
    state = 1
    sequences = []

    def draw(count: int) -> tuple[int, ...]:
        nonlocal state
        ids = []
        for _ in range(count):
            state = (state * 48_271) % 2_147_483_647  # Park and Miller's generator
            ids.append(state % vocabulary)
        return tuple(ids)

    for prompt_length, completions in SHAPES:
        prompt = draw(prompt_length)
        sequences += [TrainingSequence(prompt, draw(length)) for length in completions]
    return sequences
